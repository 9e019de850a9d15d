//! One file on its way through the filter.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

use libgit2_sys::git_writestream;

use super::{FilterError, fail};
use crate::{
    lfs::{InvalidPointer, MAX_POINTER_BYTES, Pointer},
    store::{ObjectStore, StoreError, Writer},
};

/// Bytes that are given on at once.
const CHUNK_BYTES: usize = 1 << 18;

/// A `git_writestream` whose fields libgit2 sees, and what we keep behind it.
#[repr(C)]
pub(super) struct Stream {
    // Invariant: first, so that libgit2's pointer to it is one to the whole.
    functions: git_writestream,
    next: *mut git_writestream,
    store: ObjectStore,
    to_worktree: bool,
    state: State,
}

enum State {
    /// So few bytes that they may be a pointer.
    Head(Vec<u8>),
    /// A large content on its way into the store.
    Cleaning(Box<Writer>),
    /// No pointer on its way out, given on as it is.
    Passing,
    /// Nothing is given on any more.
    Failed,
}

impl Stream {
    /// A stream in front of `next`, freed by libgit2 through its `free`.
    pub(super) fn start(
        store: ObjectStore,
        to_worktree: bool,
        next: *mut git_writestream,
    ) -> *mut git_writestream {
        let stream = Box::new(Self {
            functions: git_writestream {
                write: Some(write),
                close: Some(close),
                free: Some(free),
            },
            next,
            store,
            to_worktree,
            state: State::Head(Vec::new()),
        });
        Box::into_raw(stream).cast()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), FilterError> {
        match &mut self.state {
            State::Head(head) if head.len() + bytes.len() < MAX_POINTER_BYTES => {
                head.extend_from_slice(bytes);
                Ok(())
            }
            State::Head(head) => {
                let head = std::mem::take(head);
                if self.to_worktree {
                    self.state = State::Passing;
                    self.give(&head)?;
                    self.give(bytes)
                } else {
                    let mut writer = Box::new(self.store.writer()?);
                    writer.write(&head)?;
                    writer.write(bytes)?;
                    self.state = State::Cleaning(writer);
                    Ok(())
                }
            }
            State::Cleaning(writer) => Ok(writer.write(bytes)?),
            State::Passing => self.give(bytes),
            State::Failed => Err(FilterError::Next),
        }
    }

    fn finish(&mut self) -> Result<(), FilterError> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Head(head) if self.to_worktree => self.smudge(&head),
            State::Head(head) => {
                // What is a pointer already stays one; an empty file is no object, as for git-lfs.
                let is_pointer = !matches!(Pointer::parse(&head), Err(InvalidPointer::NotAPointer));
                if head.is_empty() || is_pointer {
                    return self.give(&head);
                }
                let mut writer = self.store.writer()?;
                writer.write(&head)?;
                self.give(writer.finish()?.to_string().as_bytes())
            }
            State::Cleaning(writer) => self.give(writer.finish()?.to_string().as_bytes()),
            State::Passing => Ok(()),
            State::Failed => Err(FilterError::Next),
        }
    }

    /// Gives on the content behind `head`, or `head` itself if it is no pointer or its object is
    /// not in the store.
    fn smudge(&self, head: &[u8]) -> Result<(), FilterError> {
        let Ok(pointer) = Pointer::parse(head) else {
            return self.give(head);
        };
        let mut reader = match self.store.reader(&pointer) {
            Ok(reader) => reader,
            Err(StoreError::Missing { .. }) => return self.give(head),
            Err(error) => return Err(error.into()),
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match reader.next(&mut buffer)? {
                0 => return Ok(()),
                read => self.give(&buffer[..read])?,
            }
        }
    }

    fn give(&self, bytes: &[u8]) -> Result<(), FilterError> {
        // SAFETY: `next` is a stream of libgit2 that lives until after this one was closed.
        let function = unsafe { (*self.next).write };
        match function {
            Some(function) if function(self.next, bytes.as_ptr().cast(), bytes.len()) >= 0 => {
                Ok(())
            }
            _ => Err(FilterError::Next),
        }
    }
}

extern "C" fn write(stream: *mut git_writestream, bytes: *const c_char, len: usize) -> c_int {
    if len == 0 {
        return 0;
    }
    // SAFETY: libgit2 gives what `start` returned, from one thread, and `len` bytes.
    let (stream, bytes) = unsafe {
        (
            &mut *stream.cast::<Stream>(),
            std::slice::from_raw_parts(bytes.cast::<u8>(), len),
        )
    };
    match stream.take(bytes) {
        Ok(()) => 0,
        Err(error) => {
            stream.state = State::Failed;
            fail(error)
        }
    }
}

extern "C" fn close(stream: *mut git_writestream) -> c_int {
    // SAFETY: as in `write`.
    let stream = unsafe { &mut *stream.cast::<Stream>() };
    let code = match stream.finish() {
        Ok(()) => 0,
        Err(error) => fail(error),
    };
    // SAFETY: as in `give`. Closed after a failure too, so that libgit2 closes its file.
    let closed = match unsafe { (*stream.next).close } {
        Some(function) => function(stream.next),
        None => 0,
    };
    if code < 0 { code } else { closed }
}

extern "C" fn free(stream: *mut git_writestream) {
    // SAFETY: libgit2 frees once what `start` made from a box.
    drop(unsafe { Box::from_raw(stream.cast::<Stream>()) });
}
