//! A thread that writes, so that training goes on.

use std::{
    sync::mpsc::{Receiver, SyncSender, channel, sync_channel},
    thread::{self, JoinHandle},
};

use super::{CheckpointError, Checkpoints, Written};
use crate::trainer::State;

/// What became of a checkpoint: where it is, or the step that it was to be of and why it is not.
pub(crate) type Saved = Result<Written, (u64, CheckpointError)>;

/// Writes checkpoints on a thread of its own. At most one waits while another is written.
#[derive(Debug)]
pub struct CheckpointWriter {
    states: SyncSender<State>,
    written: Receiver<Saved>,
    thread: JoinHandle<()>,
}

impl CheckpointWriter {
    pub(super) fn start(checkpoints: Checkpoints) -> Result<Self, CheckpointError> {
        let (states, from) = sync_channel::<State>(1);
        let (to, written) = channel();
        let thread = thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                for state in from {
                    let step = state.cursor.step;
                    let done = checkpoints.write(&state).map_err(|error| (step, error));
                    // Nobody hears of it when training has failed meanwhile.
                    drop(to.send(done));
                }
            })
            .map_err(|_| CheckpointError::Thread)?;
        Ok(Self {
            states,
            written,
            thread,
        })
    }

    /// Has a copy of this state written. Waits where two are not written yet.
    ///
    /// # Errors
    /// When the thread has ended, which only a bug makes it do.
    pub fn write(&self, state: &State) -> Result<(), CheckpointError> {
        let sent = self.states.send(state.clone());
        sent.map_err(|_| CheckpointError::Thread)
    }

    /// What became of those that were written since this was last asked.
    pub fn written(&self) -> Vec<Saved> {
        self.written.try_iter().collect()
    }

    /// Waits for all, and says what became of them.
    pub fn finish(self) -> Vec<Saved> {
        drop(self.states);
        let rest = self.written.iter().collect();
        // It has sent its last; a panic of it shows as a missing one.
        drop(self.thread.join());
        rest
    }
}
