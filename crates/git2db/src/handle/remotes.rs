//! The remotes that a repository's configuration names.

use git2::ErrorCode;

use super::{RepositoryHandle, error::FetchError};
use crate::{InvalidUrl, RemoteUrl, repo};

/// A remote of a repository's configuration.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its name, such as `origin`.
    pub name: String,
    /// Where it lies. An error for one that others configured and that this library does not use,
    /// such as one with a password in it.
    pub url: Result<RemoteUrl, InvalidUrl>,
    /// What a fetch without refspecs fetches.
    pub fetch: Vec<String>,
}

impl RepositoryHandle {
    /// All remotes, by name.
    ///
    /// # Errors
    /// The configuration cannot be read.
    pub fn remotes(&self) -> Result<Vec<Remote>, FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        let access = |e| FetchError::Repo(repo::access(self.path())(e));
        let names = repo.remotes().map_err(access)?;
        let mut remotes = Vec::new();
        for name in &names {
            if let Some(name) = name.map_err(access)? {
                remotes.push(self.read_remote(&repo, name)?);
            }
        }
        remotes.sort_by(|a: &Remote, b| a.name.cmp(&b.name));
        Ok(remotes)
    }

    /// The remote of that name.
    ///
    /// # Errors
    /// `NoRemote` if there is none; the configuration cannot be read.
    pub fn remote(&self, name: &str) -> Result<Remote, FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        self.read_remote(&repo, name)
    }

    /// Adds a remote whose branches are fetched to `refs/remotes/NAME/*`.
    ///
    /// # Errors
    /// There is one of that name, or it cannot be a name.
    pub fn add_remote(&self, name: &str, url: &RemoteUrl) -> Result<(), FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        repo.remote(name, url.as_str())
            .map(|_| ())
            .map_err(|e| self.remote_error(name, e))
    }

    /// Gives a remote another name, and its refs in `refs/remotes` theirs.
    ///
    /// # Errors
    /// There is none, one has the new name, or it has refspecs that do not follow the usual form,
    /// which are left as they are: `Refspecs` names them, and the rest is done.
    pub fn rename_remote(&self, from: &str, to: &str) -> Result<(), FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        self.read_remote(&repo, from)?;
        let left = repo
            .remote_rename(from, to)
            .map_err(|e| self.remote_error(to, e))?;
        let left: Vec<String> = left
            .iter()
            .filter_map(|spec| spec.ok().flatten().map(str::to_owned))
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(FetchError::Refspecs { left })
        }
    }

    /// Removes a remote with its refs in `refs/remotes`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_remote(&self, name: &str) -> Result<(), FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        self.read_remote(&repo, name)?;
        repo.remote_delete(name)
            .map_err(|e| self.remote_error(name, e))
    }

    /// Lets a remote lie elsewhere.
    ///
    /// # Errors
    /// There is none.
    pub fn set_remote_url(&self, name: &str, url: &RemoteUrl) -> Result<(), FetchError> {
        let repo = self.repo().map_err(FetchError::Repo)?;
        self.read_remote(&repo, name)?;
        repo.remote_set_url(name, url.as_str())
            .map_err(|e| self.remote_error(name, e))
    }

    fn read_remote(&self, repo: &git2::Repository, name: &str) -> Result<Remote, FetchError> {
        let found = repo
            .find_remote(name)
            .map_err(|e| self.remote_error(name, e))?;
        let access = |e| FetchError::Repo(repo::access(self.path())(e));
        let specs = found.fetch_refspecs().map_err(access)?;
        Ok(Remote {
            name: name.to_owned(),
            url: RemoteUrl::parse_stored(found.url().unwrap_or_default()),
            fetch: specs
                .iter()
                .filter_map(|spec| spec.ok().flatten().map(str::to_owned))
                .collect(),
        })
    }

    fn remote_error(&self, name: &str, error: git2::Error) -> FetchError {
        let name = name.to_owned();
        match error.code() {
            ErrorCode::NotFound => FetchError::NoRemote { name },
            ErrorCode::Exists => FetchError::RemoteExists { name },
            ErrorCode::InvalidSpec => FetchError::InvalidRemote { name },
            _ => FetchError::Repo(repo::access(self.path())(error)),
        }
    }
}
