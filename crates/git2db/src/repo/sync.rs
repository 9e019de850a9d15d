//! Making commits and refs of a repository durable, whatever its own configuration says.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use git2::{ObjectType, Oid, Repository, Tree};

use super::RepoError;
use crate::durable;

/// What was written could not be made durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repo(RepoError),
    /// A file or folder of it cannot be written.
    #[error("{path:?} cannot be written to the disk")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SyncError {
    /// The reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repo(error) => error.reason(),
            Self::File { source, .. } if durable::is_full(source) => "DiskFull",
            Self::File { .. } => "InternalError",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Repo(error) => error.is_retriable(),
            Self::File { .. } => true,
        }
    }
}

/// Makes durable what of a commit lies in files of its own. What lies in packs is durable.
pub(crate) fn sync_commit(repo: &Repository, bare: &Path, commit: Oid) -> Result<(), SyncError> {
    let access = |error| SyncError::Repo(super::access(bare)(error));
    if !sync_loose(bare, commit)? {
        return Ok(());
    }
    let mut trees: Vec<Tree<'_>> = vec![
        repo.find_commit(commit)
            .and_then(|commit| commit.tree())
            .map_err(access)?,
    ];
    while let Some(tree) = trees.pop() {
        // One in a pack came whole.
        if !sync_loose(bare, tree.id())? {
            continue;
        }
        for entry in &tree {
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    trees.push(repo.find_tree(entry.id()).map_err(access)?);
                }
                Some(ObjectType::Blob) => {
                    sync_loose(bare, entry.id())?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a ref that was just written durable.
pub(crate) fn sync_ref(bare: &Path, name: &str) -> Result<(), SyncError> {
    let reference = bare.join(name);
    sync(&reference)?;
    // A name with slashes may have made folders.
    let refs = bare.join("refs");
    let above = reference.ancestors().skip(1);
    for folder in above.take_while(|folder| folder.starts_with(&refs)) {
        durable::sync_dir(folder).map_err(failed(folder))?;
    }
    Ok(())
}

/// Makes an object durable if it lies in a file of its own. Whether it does.
fn sync_loose(bare: &Path, id: Oid) -> Result<bool, SyncError> {
    let hex = id.to_string();
    let folder = bare.join("objects").join(&hex[..2]);
    let file = folder.join(&hex[2..]);
    if !fs::exists(&file).map_err(failed(&file))? {
        return Ok(false);
    }
    sync(&file)?;
    durable::sync_dir(&folder).map_err(failed(&folder))?;
    Ok(true)
}

fn sync(file: &Path) -> Result<(), SyncError> {
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(failed(file))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SyncError + '_ {
    |source| SyncError::File {
        path: path.to_owned(),
        source,
    }
}
