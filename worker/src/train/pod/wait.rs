//! Waiting for the registry.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hyprstream_training::Control;
use tracing::warn;

use super::{
    board::Board,
    branch::{BranchError, Kind},
};

/// The first pause after a failure; doubled after every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a refusal is not believed: rights that were just given are seen some seconds later.
const REFUSAL_PATIENCE: Duration = Duration::from_mins(1);
/// How often it is looked whether there is time yet.
const BLINK: Duration = Duration::from_millis(100);

/// Whether the pod was told to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    told: Arc<AtomicBool>,
    /// Of the run.
    pub(super) control: Control,
}

impl Stop {
    /// Ends what goes on.
    pub(super) fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.control.suspend();
    }

    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

/// Pauses between attempts, each twice as long as the one before.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// How long the registry is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    pub(super) most: Duration,
    pub(super) stop: &'a Stop,
    pub(super) board: &'a Board,
}

impl Patience<'_> {
    /// Tries until it works, fails for good, or has taken too long.
    ///
    /// # Errors
    /// The last one, or [`BranchError::Stopped`].
    pub(super) fn until<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, BranchError>,
    ) -> Result<T, BranchError> {
        let (began, mut pauses) = (Instant::now(), Pauses::new());
        loop {
            let error = match attempt() {
                Ok(done) => {
                    self.board.clear("registry");
                    return Ok(done);
                }
                Err(error) => error,
            };
            let most = match error.kind() {
                Kind::Unreachable => self.most,
                Kind::Refused => self.most.min(REFUSAL_PATIENCE),
                _ => return Err(error),
            };
            let pause = pauses.next();
            if began.elapsed() + pause > most {
                return Err(error);
            }
            let why = super::chain(&error);
            warn!(error = why, "waits for the registry");
            self.board
                .note("registry", format!("waits for the registry: {why}"));
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if self.stop.is_told() {
                    return Err(BranchError::Stopped);
                }
                thread::sleep(BLINK);
            }
        }
    }
}
