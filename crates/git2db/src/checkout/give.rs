//! Giving what was written for a checkout to the store, beside the writing of more.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use rustix::fs::syncfs;

use super::{CheckoutError, keep::io_error};
use crate::{
    Digest,
    store::{Batch, ObjectStore},
};

/// A file that is to be an object of the store. Ordered as the store has them, which fills one of
/// its folders after the other; executable copies come after what they are copies of.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NewObject {
    pub(super) executable: bool,
    pub(super) oid: Digest,
    pub(super) path: PathBuf,
}

/// Syncs files and links them into the store, in which nothing appears before it is durable.
pub(super) struct Giver {
    folder: PathBuf,
    /// The file system, opened before anything was written: it tells those who have it open what
    /// of theirs it could not write.
    disk: File,
    state: State,
}

enum State {
    Idle(Batch),
    Working(JoinHandle<Result<Batch, CheckoutError>>),
    /// It failed, and said so.
    Failed,
}

/// So many files are synced at once.
const AT_ONCE: usize = 16 << 10;

impl Giver {
    /// For files on the file system of `folder`.
    pub(super) fn new(store: &ObjectStore, folder: &Path) -> Result<Self, CheckoutError> {
        Ok(Self {
            folder: folder.to_owned(),
            disk: File::open(folder).map_err(|e| io_error("open", folder, e))?,
            state: State::Idle(store.batch()),
        })
    }

    /// Takes `new` and begins to give it, if it is much and what was taken before is given.
    pub(super) fn begin(&mut self, new: &mut Vec<NewObject>) -> Result<(), CheckoutError> {
        let is_working = matches!(&self.state, State::Working(thread) if !thread.is_finished());
        if new.len() < AT_ONCE || is_working {
            return Ok(());
        }
        let mut batch = self.wait()?;
        let failed = |e| io_error("sync", &self.folder, e);
        let disk = self.disk.try_clone().map_err(failed)?;
        let (new, folder) = (std::mem::take(new), self.folder.clone());
        let thread = thread::Builder::new()
            .name("give".to_owned())
            .spawn(move || {
                give(&disk, &folder, &mut batch, new)?;
                Ok(batch)
            });
        self.state = State::Working(thread.map_err(failed)?);
        Ok(())
    }

    /// Gives the rest. All that was written to the file system until now is durable then.
    pub(super) fn finish(&mut self, new: &mut Vec<NewObject>) -> Result<(), CheckoutError> {
        let mut batch = self.wait()?;
        give(&self.disk, &self.folder, &mut batch, std::mem::take(new))
    }

    /// The batch, once nobody works on it.
    fn wait(&mut self) -> Result<Batch, CheckoutError> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(batch) => Ok(batch),
            State::Working(thread) => thread.join().unwrap_or_else(|_| Err(self.ended())),
            State::Failed => Err(self.ended()),
        }
    }

    fn ended(&self) -> CheckoutError {
        let source = std::io::Error::other("the thread that does it ended");
        io_error("sync", &self.folder, source)
    }
}

impl Drop for Giver {
    /// Nothing is linked from a folder that is being removed.
    fn drop(&mut self) {
        if let State::Working(thread) = std::mem::replace(&mut self.state, State::Failed) {
            // Whoever drops it unfinished has an error of its own.
            let _ = thread.join();
        }
    }
}

fn give(
    disk: &File,
    folder: &Path,
    batch: &mut Batch,
    mut new: Vec<NewObject>,
) -> Result<(), CheckoutError> {
    // Also writes the folders, and says of a disk that lost something.
    syncfs(disk).map_err(|e| io_error("sync", folder, e.into()))?;
    new.sort_unstable();
    for object in new {
        batch
            .link(&object.path, &object.oid, object.executable)
            .map_err(CheckoutError::Store)?;
    }
    Ok(())
}
