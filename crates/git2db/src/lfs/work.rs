//! Objects side by side, and how far they are together.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use super::{LfsError, Pointer, Transfer};
use crate::{Observer, Progress};

/// What the threads of one transfer share.
pub(super) struct Work<'a> {
    observer: &'a dyn Observer,
    total: u64,
    done: AtomicU64,
    moved_bytes: AtomicU64,
    moved_objects: AtomicU64,
    present_objects: AtomicU64,
    failed: AtomicBool,
}

impl<'a> Work<'a> {
    pub(super) fn new(objects: &[Pointer], observer: &'a dyn Observer) -> Self {
        let work = Self {
            observer,
            total: objects.iter().map(|o| o.size).sum(),
            done: AtomicU64::new(0),
            moved_bytes: AtomicU64::new(0),
            moved_objects: AtomicU64::new(0),
            present_objects: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        work.report();
        work
    }

    /// The object was there.
    pub(super) fn present(&self, object: &Pointer) {
        self.present_objects.fetch_add(1, Ordering::Relaxed);
        self.add(object.size);
    }

    /// Bytes that were there from an earlier attempt.
    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    /// Bytes that have to be transferred again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
        self.report();
    }

    /// Bytes that came or went.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.add(bytes);
    }

    /// An object is complete.
    pub(super) fn finished(&self) {
        self.moved_objects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn transfer(&self) -> Transfer {
        Transfer {
            objects_present: self.present_objects.load(Ordering::Relaxed),
            objects_moved: self.moved_objects.load(Ordering::Relaxed),
            bytes_moved: self.moved_bytes.load(Ordering::Relaxed),
        }
    }

    /// Runs `act` for every object, `parallel` at a time, until one fails.
    pub(super) fn each(
        &self,
        objects: &[&Pointer],
        parallel: usize,
        act: &(dyn Fn(&Pointer) -> Result<(), LfsError> + Sync),
    ) -> Result<(), LfsError> {
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..parallel.clamp(1, objects.len().max(1)) {
                scope.spawn(|| {
                    while !self.is_cancelled() {
                        let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            return;
                        };
                        if let Err(error) = act(object) {
                            let mut first =
                                first_error.lock().unwrap_or_else(PoisonError::into_inner);
                            // What the others then say is only that they were ended.
                            if !self.failed.swap(true, Ordering::Relaxed) {
                                *first = Some(error);
                            }
                        }
                    }
                });
            }
        });
        match first_error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(error) => Err(error),
            None if self.observer.is_cancelled() => Err(LfsError::Cancelled),
            None => Ok(()),
        }
    }

    fn report(&self) {
        self.observer.progress(Progress::Objects {
            bytes_done: self.done.load(Ordering::Relaxed),
            bytes_total: self.total,
        });
    }
}

/// Ends the threads when one of them fails.
impl Observer for Work<'_> {
    fn is_cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.observer.is_cancelled()
    }
}
