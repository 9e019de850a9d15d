//! Settings that libgit2 keeps per process.

#![allow(unsafe_code)]

use std::{
    sync::{Mutex, Once},
    time::Duration,
};

use git2::{ConfigLevel, opts};

use super::{memory, stream};

/// How long libgit2 waits for servers, in this whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// For the next bytes.
    pub answer: Duration,
}

impl Default for Timeouts {
    /// 15 s and 60 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_mins(1),
        }
    }
}

/// Bytes of objects that libgit2 keeps.
const CACHE_BYTES: isize = 16 << 20;

static INIT: Once = Once::new();
static TIMEOUTS: Mutex<Timeouts> = Mutex::new(Timeouts {
    connect: Duration::from_secs(15),
    answer: Duration::from_mins(1),
});

/// What holds now.
pub(super) fn timeouts() -> Timeouts {
    *TIMEOUTS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(super) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Sets how long libgit2 waits for servers. For the whole process: call it before other threads
/// use this crate. Without a call, [`Timeouts::default`] holds.
pub fn set_timeouts(timeouts: Timeouts) {
    init();
    apply(timeouts);
}

fn apply(timeouts: Timeouts) {
    let mut held = TIMEOUTS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    *held = timeouts;
    // SAFETY: libgit2 keeps both as plain integers and reads them when it connects; our own
    // writes are serialised, and callers are told to set them before other threads connect.
    let result = unsafe {
        opts::set_server_connect_timeout_in_milliseconds(millis(timeouts.connect))
            .and_then(|()| opts::set_server_timeout_in_milliseconds(millis(timeouts.answer)))
    };
    if let Err(error) = result {
        tracing::warn!(%error, "the timeouts of libgit2 cannot be set");
    }
}

/// Prepares libgit2, once: no configuration files but a repository's own, default timeouts.
///
/// Objects are verified by their hash and repositories of other users refused, which are
/// libgit2's defaults and stay so.
pub(crate) fn init() {
    INIT.call_once(|| {
        for level in [
            ConfigLevel::System,
            ConfigLevel::Global,
            ConfigLevel::XDG,
            ConfigLevel::ProgramData,
        ] {
            // SAFETY: nothing of ours uses libgit2 before this, and `Once` lets one thread run it
            // while all others wait.
            if let Err(error) = unsafe { opts::set_search_path(level, "") } {
                tracing::warn!(%error, "libgit2 may read configuration of this machine");
            }
        }
        opts::strict_hash_verification(true);
        // What it may keep of objects that it has read, in this whole process.
        // SAFETY: as above.
        if let Err(error) = unsafe { opts::set_cache_max_size(CACHE_BYTES) } {
            tracing::warn!(%error, "the cache of libgit2 cannot be limited");
        }
        memory::limit();
        stream::register();
        apply(Timeouts::default());
    });
}
