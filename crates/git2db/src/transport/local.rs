//! A repository on this machine, read without a server and without the git program.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use git2::Repository;

use super::{
    GitSource, LocalObjects, Want,
    select::{Selection, list},
};
use crate::{CommitId, Observer, RemoteError, RemoteUrl, RepoError, remote::RemoteRef, repo};

/// The repository at a path, bare or with a working folder. Unlike libgit2's own transport for
/// paths it knows depth, and reads shallow repositories.
#[derive(Clone, Debug)]
pub struct LocalSource {
    path: PathBuf,
    url: RemoteUrl,
}

impl LocalSource {
    /// The repository at `path`, which is absolute.
    ///
    /// # Errors
    /// There is none that this user may read.
    pub fn open(path: &Path) -> Result<Self, RemoteError> {
        let url = RemoteUrl::local(path).map_err(|e| RemoteError::Local {
            detail: e.to_string(),
        })?;
        let source = Self {
            path: path.to_owned(),
            url,
        };
        source.repo()?;
        Ok(source)
    }

    /// Where its LFS objects lie if git-lfs put them there.
    pub fn objects(&self) -> LocalObjects {
        let dot_git = self.path.join(".git");
        let git_dir = if dot_git.exists() {
            dot_git
        } else {
            self.path.clone()
        };
        LocalObjects {
            folder: git_dir.join("lfs/objects"),
        }
    }

    fn repo(&self) -> Result<Repository, RemoteError> {
        let opened = if self.path.join(".git").exists() {
            repo::open_worktree(&self.path)
        } else {
            repo::open(&self.path)
        };
        opened.map_err(|error| match error {
            RepoError::Open { source, .. } if source.code() == git2::ErrorCode::NotFound => {
                RemoteError::RepositoryNotFound {
                    url: self.url.clone(),
                    detail: "there is nothing".to_owned(),
                }
            }
            RepoError::Open { source, .. } => crate::libgit::remote_error(&self.url, &source),
            other => RemoteError::Local {
                detail: other.to_string(),
            },
        })
    }

    fn error(&self, error: &git2::Error) -> RemoteError {
        crate::libgit::remote_error(&self.url, error)
    }
}

impl GitSource for LocalSource {
    fn refs(&self, _observer: &dyn Observer) -> Result<Vec<RemoteRef>, RemoteError> {
        let repo = self.repo()?;
        list(&repo).map_err(|e| self.error(&e))
    }

    fn pack(
        &self,
        want: &Want,
        sink: &mut dyn Write,
        observer: &dyn Observer,
    ) -> Result<Vec<CommitId>, RemoteError> {
        let repo = self.repo()?;
        let mut selection = Selection::new(&repo, want).map_err(|e| self.error(&e))?;
        selection.collect(want, observer).map_err(|e| {
            if observer.is_cancelled() {
                RemoteError::Cancelled
            } else {
                self.error(&e)
            }
        })?;
        let mut failed = None;
        let written = selection.pack.foreach(|bytes| {
            if observer.is_cancelled() {
                return false;
            }
            match sink.write_all(bytes) {
                Ok(()) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        match (written, failed) {
            (_, Some(error)) => Err(RemoteError::Local {
                detail: format!("the pack cannot be written: {error}"),
            }),
            (Err(_), None) if observer.is_cancelled() => Err(RemoteError::Cancelled),
            (Err(error), None) => Err(self.error(&error)),
            (Ok(()), None) => Ok(selection.boundary),
        }
    }
}
