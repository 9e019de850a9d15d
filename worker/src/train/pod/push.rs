//! A thread that pushes checkpoints, so that training goes on.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hyprstream_contract::training::Checkpoint;
use hyprstream_git2db::Observer;
use tracing::{info, warn};

use super::{
    board::Board,
    branch::{Branch, BranchError, Kind, Provenance, Snapshot, Tip, of_contract},
    wait::{Pauses, Stop},
};

/// Longest pause between two attempts when there is little time left.
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Pushes checkpoints one after the other. While one is pushed the newest waits, and takes the
/// place of any that waited before.
pub(super) struct Pusher {
    shared: Arc<Shared>,
    thread: JoinHandle<Branch>,
}

/// What is pushed, by whom, and who is told.
struct Work {
    branch: Branch,
    from: Provenance,
    board: Arc<Board>,
    stop: Stop,
    /// The last checkpoint that the registry has.
    pushed: Option<u64>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Option<Snapshot>,
    wish: Wish,
    failed: Option<BranchError>,
    /// Why the last attempt failed.
    trouble: Option<String>,
}

#[derive(Clone, Copy, Default)]
enum Wish {
    /// Whatever comes is pushed.
    #[default]
    Go,
    /// What waits is pushed, but not later than this.
    Drain(Instant),
    /// Nothing more is begun.
    End,
}

impl Pusher {
    /// Pushes to `branch`, whose last checkpoint on the registry is of the step `pushed`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(
        branch: Branch,
        from: Provenance,
        board: Arc<Board>,
        stop: Stop,
        pushed: Option<u64>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let work = Work {
            branch,
            from,
            board,
            stop,
            pushed,
        };
        let thread = {
            let shared = Arc::clone(&shared);
            let name = thread::Builder::new().name("pushes".to_owned());
            name.spawn(move || work.run(&shared))?
        };
        Ok(Self { shared, thread })
    }

    /// Has this checkpoint pushed, in place of one that waits.
    pub(super) fn offer(&self, snapshot: Snapshot) {
        // What it takes the place of is deleted without the lock.
        let _before = self.shared.lock().waiting.replace(snapshot);
        self.shared.changed.notify_all();
    }

    /// Waits until what waits is pushed, at most until `deadline`. Gives the branch back, and if
    /// something is not pushed the reason.
    pub(super) fn drain(self, deadline: Instant) -> (Option<Branch>, Result<(), String>) {
        self.shared.lock().wish = Wish::Drain(deadline);
        self.shared.changed.notify_all();
        let branch = self.thread.join().ok();
        let mut state = self.shared.lock();
        let waiting = state.waiting.take();
        let trouble = match &state.failed {
            Some(error) => Some(super::chain(error)),
            None => state.trouble.take().filter(|_| waiting.is_some()),
        };
        let left = match (trouble, waiting) {
            (Some(why), _) => Err(why),
            (None, Some(_)) => Err("no time is left".to_owned()),
            (None, None) => Ok(()),
        };
        (branch, left)
    }

    /// Waits until what is being pushed is, and gives the branch back.
    ///
    /// # Errors
    /// Why nothing can be pushed any more.
    pub(super) fn end(self) -> Result<Branch, BranchError> {
        self.shared.lock().wish = Wish::End;
        self.shared.changed.notify_all();
        let branch = self.thread.join();
        if let Some(error) = self.shared.lock().failed.take() {
            return Err(error);
        }
        branch.map_err(|_| BranchError::Io {
            doing: "pushed to: its thread ended",
            path: "the branch".into(),
            source: io::Error::other("a panic"),
        })
    }

    /// Whether nothing can be pushed any more.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.lock().failed.is_some()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next checkpoint to push; `None` if there will be none.
    fn next(&self) -> Option<Snapshot> {
        let mut state = self.lock();
        loop {
            match state.wish {
                Wish::End => return None,
                Wish::Go | Wish::Drain(_) => {}
            }
            if let Some(snapshot) = state.waiting.take() {
                return Some(snapshot);
            }
            if let Wish::Drain(_) = state.wish {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts back what could not be pushed, unless a newer one waits, and pauses. Whether another
    /// attempt is to be made.
    fn again(&self, snapshot: Snapshot, pause: Duration, why: String) -> bool {
        let began = Instant::now();
        let mut state = self.lock();
        state.trouble = Some(why);
        state.waiting.get_or_insert(snapshot);
        loop {
            let pause = match state.wish {
                Wish::End => return false,
                Wish::Go => pause,
                Wish::Drain(deadline) if Instant::now() >= deadline => return false,
                Wish::Drain(_) => pause.min(LAST_PAUSE),
            };
            let Some(left) = pause.checked_sub(began.elapsed()) else {
                return true;
            };
            let waited = self
                .changed
                .wait_timeout(state, left.max(Duration::from_millis(1)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Ends a push for which there is no time any more.
impl Observer for Shared {
    fn is_cancelled(&self) -> bool {
        matches!(self.lock().wish, Wish::Drain(deadline) if Instant::now() >= deadline)
    }
}

impl Work {
    fn run(mut self, shared: &Shared) -> Branch {
        let mut pauses = Pauses::new();
        let mut is_sure = true;
        while let Some(snapshot) = shared.next() {
            if self.pushed.is_some_and(|pushed| pushed >= snapshot.step) {
                continue;
            }
            let error = match self.push(&snapshot, is_sure, shared) {
                Ok(()) => {
                    (pauses, is_sure) = (Pauses::new(), true);
                    continue;
                }
                Err(error) => error,
            };
            // The registry may have taken it all the same.
            is_sure = false;
            self.board.metrics.push_failures.inc();
            let why = super::chain(&error);
            warn!(
                step = snapshot.step,
                error = why,
                "a checkpoint is not pushed yet"
            );
            let text = format!(
                "the checkpoint of step {} is not pushed yet: {why}",
                snapshot.step
            );
            self.board.note("push", text);
            if error.kind() == Kind::Taken {
                shared.lock().failed = Some(error);
                self.stop.control.cancel();
                break;
            }
            if !shared.again(snapshot, pauses.next(), why) {
                break;
            }
        }
        self.branch
    }

    fn push(
        &mut self,
        snapshot: &Snapshot,
        is_sure: bool,
        shared: &Shared,
    ) -> Result<(), BranchError> {
        if !is_sure && let Tip::Checkpoint(commit, said) = self.branch.look()? {
            let step = said.step.filter(|step| Some(*step) > self.pushed);
            if let Some(step) = step {
                self.pushed(step, &commit);
                if step >= snapshot.step {
                    return Ok(());
                }
            }
        }
        let commit = self.branch.push_checkpoint(snapshot, &self.from, shared)?;
        self.pushed(snapshot.step, &commit);
        let notices = self.branch.tidy(snapshot.step, &commit, shared);
        if notices.is_empty() {
            self.board.clear("keep");
        } else {
            self.board.note("keep", notices.join("; "));
        }
        Ok(())
    }

    fn pushed(&mut self, step: u64, commit: &hyprstream_git2db::CommitId) {
        info!(step, %commit, "a checkpoint is pushed");
        self.pushed = Some(step);
        self.board.clear("push");
        self.board.metrics.pushes.inc();
        self.board.has(Checkpoint {
            step,
            commit: of_contract(commit),
        });
    }
}
