//! Watching and ending long work.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// How far long work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Git objects come in.
    Git {
        /// Bytes of the pack so far. Git does not tell how many there will be.
        bytes_done: u64,
        /// Objects so far.
        objects_done: u64,
        /// Objects in all.
        objects_total: u64,
    },
    /// LFS objects are downloaded or uploaded.
    Objects {
        /// Bytes of the objects asked for that are there. Falls when a transfer starts over.
        bytes_done: u64,
        /// Bytes of the objects asked for.
        bytes_total: u64,
    },
}

/// Is told of progress and asked whether to go on. `()` watches nothing and never ends anything.
pub trait Observer: Sync {
    /// Takes note of progress; called often, from any thread.
    fn progress(&self, _progress: Progress) {}

    /// Whether the work shall end. It ends within a second or at the next answer of the server,
    /// whichever is later, with the operation's `Cancelled` error.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Observer for () {}

/// A flag by which any thread ends the work that observes it. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Observer for Cancel {
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A progress callback and a flag in one [`Observer`].
pub struct Watch<F> {
    /// Called with every progress.
    pub on_progress: F,
    /// Ends the work when set.
    pub cancel: Cancel,
}

impl<F: Fn(Progress) + Sync> Observer for Watch<F> {
    fn progress(&self, progress: Progress) {
        (self.on_progress)(progress);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
