//! What a run can be resumed from, on disk.
//!
//! A checkpoint is a folder `step-N`: the adapter as PEFT has it, all numbers that the run goes on
//! with (`state.safetensors`), where it is (`cursor.json`), and last `checkpoint.json` with size and
//! SHA-256 of each of them. It is written aside, read back, synced and renamed, so that a folder of
//! that name is whole; one that is not all the same (its disk failed, somebody edited it) is passed
//! over for the one before.

mod carry;
#[cfg(test)]
mod kills;
mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use carry::{adopt, newest};
use hyprstream_models::{
    DecoderConfig,
    adapter::{AdapterError, BaseName},
};
pub(crate) use writer::Saved;
pub use writer::{CheckpointWriter, Cost};

use crate::{learner::Parameters, trainer::State};

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    config: DecoderConfig,
    parameters: Parameters,
    base: BaseName,
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Steps that were done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// What there is to resume from.
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest that is whole.
    pub found: Option<(Written, State)>,
    /// Newer ones that are not, and why.
    pub passed_over: Vec<(PathBuf, CheckpointError)>,
}

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder of it.
    #[error("{} cannot be {doing}", path.display())]
    Io {
        /// What was tried, as in "it cannot be written".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was not written to its end, or changed since.
    #[error("the checkpoint {} is not whole: {why}", path.display())]
    Damaged {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is of another adapter.
    #[error(
        "the checkpoint {} is of an adapter of another form: train into another folder, or with \
         the form of before", path.display()
    )]
    OtherLayout {
        /// Its folder.
        path: PathBuf,
    },
    /// The adapter holds a number that is not finite.
    #[error("number {index} of the adapter is not finite")]
    NotFinite {
        /// Which.
        index: usize,
    },
    /// The adapter cannot be written as PEFT has it.
    #[error("the adapter cannot be written")]
    Adapter(#[source] AdapterError),
    /// The thread that writes ended.
    #[error("the thread that writes checkpoints ended")]
    Thread,
}

const PREFIX: &str = "step-";
/// Begins the names of folders that are being written or deleted.
const ASIDE: &str = ".aside-";
/// Begins those of checkpoints that were taken away, with their step behind it.
const OLD: &str = ".aside-old-";

impl Checkpoints {
    /// The checkpoints in `folder`, which is made where it is missing, of adapters of this layout
    /// for the model of this configuration. `keep` newest ones are kept. Remains of a process that
    /// was killed are deleted, but that one which it took away and had no other for yet is put back.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn open(
        folder: &Path,
        keep: usize,
        config: DecoderConfig,
        parameters: Parameters,
        base: BaseName,
    ) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(of("made", folder))?;
        for name in names(folder)? {
            if name.starts_with(ASIDE) {
                write::clear(folder, &name)?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            keep: keep.max(1),
            config,
            parameters,
            base,
        })
    }

    /// The newest checkpoint that is whole.
    ///
    /// # Errors
    /// When the folder cannot be read, or the newest that is whole is of an adapter of another
    /// form.
    pub fn latest(&self) -> Result<Latest, CheckpointError> {
        read::latest(self)
    }

    /// Writes a checkpoint, and deletes the oldest of those that are too many.
    ///
    /// # Errors
    /// [`CheckpointError`]. Those before it are untouched then.
    pub fn write(&self, state: &State) -> Result<Written, CheckpointError> {
        write::write(self, state)
    }

    /// Writes states of the size of `like` on a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn writer(&self, like: &State) -> Result<CheckpointWriter, CheckpointError> {
        CheckpointWriter::start(self.clone(), like)
    }

    fn path(&self, step: u64) -> PathBuf {
        path(&self.folder, step)
    }

    /// All folders of checkpoints, whole or not, the newest first.
    fn all(&self) -> Result<Vec<Written>, CheckpointError> {
        all(&self.folder)
    }
}

fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{step:08}"))
}

fn all(folder: &Path) -> Result<Vec<Written>, CheckpointError> {
    let mut all: Vec<Written> = names(folder)?
        .into_iter()
        .filter_map(|name| {
            let step = name.strip_prefix(PREFIX)?.parse().ok()?;
            let path = folder.join(&name);
            Some(Written { step, path })
        })
        .collect();
    all.sort_by_key(|written| std::cmp::Reverse(written.step));
    Ok(all)
}

fn names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = fs::read_dir(folder).map_err(of("read", folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(of("read", folder))
}

/// An error of this act on this path.
fn of(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
