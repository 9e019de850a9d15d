//! One attempt at a job, and when it has to end.
//!
//! The bytes come from whoever the author of a Model named, and so do the pauses between them: a
//! byte a second keeps every timeout of a connection from running out. So an attempt is watched
//! from outside, and ended when too little comes, when nobody asks for it any more, or when it
//! has had its turn and others wait.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hyprstream_contract::registry::reason;
use hyprstream_git2db::{Cancel, Observer, Progress};
use hyprstream_slots::{Slot, Slots};
use parking_lot::Mutex;

use super::{Job, failure::Failure};
use crate::{limits::FetchLimits, state::State};

/// What an attempt is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the first byte of a pack: the upstream may have to make one.
    Asking,
    /// A pack comes.
    Pack,
    /// LFS objects come.
    Objects,
    /// The upstream is not needed: disk and processor work, or other jobs.
    Here,
}

/// Why an attempt was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody asks for the job any more.
    Abandoned,
    /// Too little came.
    Slow,
    /// A pack took too long.
    Late,
    /// Others wait; it goes on later.
    Turn,
    /// Others wait for the place of a pack that comes slowly.
    Crowded,
}

/// One attempt at a job.
pub(super) struct Run {
    cancel: Cancel,
    all: Cancel,
    /// Bytes that came from the upstream.
    moved: AtomicU64,
    /// The last count of the pack that comes, to tell how much is new.
    pack: AtomicU64,
    stage: Mutex<(Stage, Instant)>,
    git_began: Mutex<Instant>,
}

impl Run {
    /// An attempt that also ends with `all`.
    pub(super) fn new(all: &Cancel) -> Self {
        Self {
            cancel: Cancel::new(),
            all: all.clone(),
            moved: AtomicU64::new(0),
            pack: AtomicU64::new(0),
            stage: Mutex::new((Stage::Asking, Instant::now())),
            git_began: Mutex::new(Instant::now()),
        }
    }

    /// Notes what is being done now.
    pub(super) fn enter(&self, stage: Stage) {
        let mut now = self.stage.lock();
        if now.0 != stage {
            *now = (stage, Instant::now());
        }
    }

    /// The git objects come once more.
    pub(super) fn begin_again(&self) {
        *self.git_began.lock() = Instant::now();
        self.enter(Stage::Asking);
    }

    /// Lets `pause` pass before the rate of the stage counts, such as for reading again what came
    /// earlier.
    pub(super) fn pardon(&self, pause: Duration) {
        self.stage.lock().1 += pause;
    }

    /// Notes bytes that came.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns when the attempt has to end.
    pub(super) async fn watch(&self, state: &State, job: &Job, slot: &Slot, slots: &Slots) -> End {
        let limits = &state.limits.fetch;
        let began = Instant::now();
        let mut window = (Instant::now(), 0);
        loop {
            tokio::time::sleep(limits.tick()).await;
            if job.asked.lock().elapsed() >= limits.lease {
                return End::Abandoned;
            }
            let (stage, since) = *self.stage.lock();
            let moved = self.moved.load(Ordering::Relaxed);
            if window.0 < since || stage == Stage::Here {
                window = (since.max(Instant::now()), moved);
            }
            match stage {
                Stage::Asking if since.elapsed() >= limits.first_byte => return End::Slow,
                Stage::Here | Stage::Asking => {}
                Stage::Pack if self.git_began.lock().elapsed() >= limits.pack_deadline => {
                    return End::Late;
                }
                Stage::Pack | Stage::Objects => {
                    if moved.saturating_sub(window.1) >= limits.least_per_window() {
                        window = (Instant::now(), moved);
                    } else if window.0.elapsed() >= limits.rate_window {
                        return End::Slow;
                    }
                }
            }
            let wanted = || slots.is_wanted(slot) || state.mirrors.claims.is_awaited(job.number);
            if stage == Stage::Objects && began.elapsed() >= limits.turn && wanted() {
                return End::Turn;
            }
            // A pack cannot be continued, so that one which comes well may go on.
            let took = self.git_began.lock().elapsed();
            let is_slow = (self.pack.load(Ordering::Relaxed) as f64)
                < took.as_secs_f64() * limits.turn_bytes_per_second as f64;
            if stage == Stage::Pack && took >= limits.turn && is_slow && wanted() {
                return End::Crowded;
            }
        }
    }
}

impl Observer for Run {
    fn progress(&self, progress: Progress) {
        let Progress::Git {
            bytes_done,
            objects_done,
            objects_total,
        } = progress
        else {
            return;
        };
        let before = self.pack.swap(bytes_done, Ordering::Relaxed);
        // Another way of fetching counts from the beginning.
        self.moved(bytes_done.checked_sub(before).unwrap_or(bytes_done));
        self.enter(if objects_total > 0 && objects_done >= objects_total {
            Stage::Here
        } else {
            Stage::Pack
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.all.is_cancelled()
    }
}

impl End {
    /// What the Model hears of it; `None` if nobody listens, or there is nothing to say.
    pub(super) fn failure(self, limits: &FetchLimits) -> Option<Failure> {
        let message = match self {
            Self::Abandoned | Self::Turn => return None,
            Self::Slow => format!(
                "the upstream sends less than {} bytes a second; what came is kept, and the \
                 registry tries again",
                limits.least_bytes_per_second
            ),
            Self::Crowded => format!(
                "others wait for the place, and the upstream has sent its git objects for {} with \
                 less than {} bytes a second: the registry tries again",
                humantime::format_duration(limits.turn),
                limits.turn_bytes_per_second
            ),
            Self::Late => format!(
                "the upstream did not send its git objects within {}: keep large files in LFS, \
                 or raise --fetch-pack-deadline of the registry",
                humantime::format_duration(limits.pack_deadline)
            ),
        };
        Some(Failure::passing(reason::UPSTREAM_ERROR, message))
    }
}
