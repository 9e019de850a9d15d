//! A thread that writes, so that training goes on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::Path,
    sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{CheckpointError, Checkpoints, Written};
use crate::trainer::State;

/// What a checkpoint cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Size of its files.
    pub bytes: u64,
    /// How long training stood still for it: a copy of the state, and [`Self::waited`].
    pub stood_still: Duration,
    /// How long of that it waited, because two before it were not written yet.
    pub waited: Duration,
    /// How long it took until it was on disk, from when training stood still on.
    pub took: Duration,
}

/// What became of a checkpoint: where it is and what it cost, or the step that it was to be of and
/// why it is not.
pub(crate) type Saved = Result<(Written, Cost), (u64, CheckpointError)>;

/// The same as the thread says it.
type Done = Result<(Written, u64, Instant), (u64, CheckpointError)>;

/// Writes checkpoints on a thread of its own. At most one waits while another is written.
///
/// The memory of states that were written is used again for those that come: fresh memory costs
/// more than the copy, since the kernel clears it page by page while training stands still.
#[derive(Debug)]
pub struct CheckpointWriter {
    states: SyncSender<State>,
    written: Receiver<Done>,
    spare: Receiver<State>,
    /// What is known so far of those that are not written yet: when training stood still.
    begun: RefCell<BTreeMap<u64, Begun>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    stood_still: Duration,
    waited: Duration,
}

impl CheckpointWriter {
    /// Starts the thread. `like` is a state of the run, of whose size memory is made ready.
    pub(super) fn start(checkpoints: Checkpoints, like: &State) -> Result<Self, CheckpointError> {
        Self::writing(like, move |state| checkpoints.write(state))
    }

    /// The same with another way to write.
    pub(super) fn writing(
        like: &State,
        write: impl Fn(&State) -> Result<Written, CheckpointError> + Send + 'static,
    ) -> Result<Self, CheckpointError> {
        let (states, from) = sync_channel::<State>(1);
        let (to, written) = channel();
        let (used, spare) = channel();
        // Its receiver is just above.
        drop(used.send(like.clone()));
        let thread = thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || work(write, &from, &to, &used))
            .map_err(|_| CheckpointError::Thread)?;
        Ok(Self {
            states,
            written,
            spare,
            begun: RefCell::default(),
            thread,
        })
    }

    /// Has a copy of this state written. Waits where two are not written yet.
    ///
    /// # Errors
    /// When the thread has ended, which only a bug makes it do.
    pub fn write(&self, state: &State) -> Result<(), CheckpointError> {
        let at = Instant::now();
        let copy = state.copy_into(self.spare.try_recv().ok());
        let copied = at.elapsed();
        match self.states.try_send(copy) {
            Ok(()) => {}
            Err(TrySendError::Full(copy)) => {
                let sent = self.states.send(copy);
                sent.map_err(|_| CheckpointError::Thread)?;
            }
            Err(TrySendError::Disconnected(_)) => return Err(CheckpointError::Thread),
        }
        let stood_still = at.elapsed();
        let waited = stood_still.saturating_sub(copied);
        let begun = Begun {
            at,
            stood_still,
            waited,
        };
        self.begun.borrow_mut().insert(state.cursor.step, begun);
        Ok(())
    }

    /// What became of those that were written since this was last asked.
    pub fn written(&self) -> Vec<Saved> {
        self.saved(self.written.try_iter())
    }

    /// Waits for all, and says what became of them.
    pub fn finish(mut self) -> Vec<Saved> {
        // Dropped, so that the thread ends.
        self.states = sync_channel(1).0;
        let rest = self.saved(self.written.iter());
        // It has sent its last; a panic of it shows as a missing one.
        drop(self.thread.join());
        rest
    }

    fn saved(&self, all: impl Iterator<Item = Done>) -> Vec<Saved> {
        let mut saved = Vec::new();
        for done in all {
            let step = match &done {
                Ok((written, ..)) => written.step,
                Err((step, _)) => *step,
            };
            let begun = self.begun.borrow_mut().remove(&step);
            saved.push(done.map(|(written, bytes, at)| {
                let cost = begun.map_or_else(Cost::default, |begun| Cost {
                    bytes,
                    stood_still: begun.stood_still,
                    waited: begun.waited,
                    took: at.saturating_duration_since(begun.at),
                });
                (written, cost)
            }));
        }
        saved
    }
}

fn work(
    write: impl Fn(&State) -> Result<Written, CheckpointError>,
    states: &Receiver<State>,
    written: &Sender<Done>,
    used: &Sender<State>,
) {
    for state in states {
        let step = state.cursor.step;
        let done = match write(&state) {
            Ok(saved) => {
                let at = Instant::now();
                let bytes = bytes_of(&saved.path);
                Ok((saved, bytes, at))
            }
            Err(error) => Err((step, error)),
        };
        // Nobody hears of it, or takes its memory, when training has failed meanwhile.
        drop(used.send(state));
        drop(written.send(done));
    }
}

/// Size of the files in `folder`; what cannot be read counts for nothing.
fn bytes_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok());
    sizes.map(|found| found.len()).sum()
}
