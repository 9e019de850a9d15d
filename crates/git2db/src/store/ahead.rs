//! Writing to the disk while more comes.
//!
//! The kernel keeps what is written in memory until somebody syncs it, and lets the disk idle for
//! as long. A large object would be brought first and written then; so the kernel is asked every
//! few MiB to begin.

#![allow(unsafe_code)]

use std::{fs::File, os::fd::AsRawFd as _};

/// Bytes after which the kernel is asked again.
const EVERY_BYTES: u64 = 4 << 20;

/// How far the writing of one file to the disk has been begun.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    begun: u64,
}

impl Ahead {
    /// For a file of which so many bytes are there already.
    pub(super) fn from(begun: u64) -> Self {
        Self { begun }
    }

    /// Notes that the file, written from its beginning, is so long now. Nothing waits for the
    /// disk, and nothing is durable before a sync, which also tells what could not be written.
    pub(super) fn wrote(&mut self, file: &File, len: u64) {
        let new = len.saturating_sub(self.begun);
        if new < EVERY_BYTES {
            return;
        }
        let at = |bytes: u64| libc::off64_t::try_from(bytes).unwrap_or(libc::off64_t::MAX);
        // SAFETY: the descriptor is open during the call, which touches no memory of ours. A file
        // system that does not know it writes at the sync, as without it.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                at(self.begun),
                at(new),
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
        self.begun = len;
    }
}
