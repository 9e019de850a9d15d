//! What was committed: commits by name, the log, differences, files.

mod diff;
mod error;
mod load;
mod log;

pub use diff::{Difference, DifferenceKind, FileVersion};
pub use error::HistoryError;
pub use load::{FileContent, FileReader};
pub use log::{Log, LogRange};

use git2::{Commit, ErrorCode, Repository};

use super::RepositoryHandle;
use crate::{
    CommitId,
    commit::{Author, Timestamp},
    repo,
};

/// A commit as `git log` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its name.
    pub id: CommitId,
    /// The commits that it follows; several for a merge, none for the first.
    pub parents: Vec<CommitId>,
    /// Who wrote the change.
    pub author: Signer,
    /// Who made the commit.
    pub committer: Signer,
    /// The message. What is not UTF-8 is replaced.
    pub message: String,
}

/// Who did something to a commit or tag, and when. What is not UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Name.
    pub name: String,
    /// Mail address.
    pub email: String,
    /// When.
    pub time: Timestamp,
}

impl CommitInfo {
    /// The first line of the message.
    pub fn subject(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    pub(crate) fn of(commit: &Commit<'_>) -> Self {
        Self {
            id: CommitId::from_oid(commit.id()),
            parents: commit.parent_ids().map(CommitId::from_oid).collect(),
            author: Signer::of(&commit.author()),
            committer: Signer::of(&commit.committer()),
            message: String::from_utf8_lossy(commit.message_bytes()).into_owned(),
        }
    }
}

impl Signer {
    pub(crate) fn of(signature: &git2::Signature<'_>) -> Self {
        Self {
            name: String::from_utf8_lossy(signature.name_bytes()).into_owned(),
            email: String::from_utf8_lossy(signature.email_bytes()).into_owned(),
            time: Timestamp {
                seconds: signature.when().seconds(),
                offset_minutes: signature.when().offset_minutes(),
            },
        }
    }

    /// The same person, to make another commit.
    pub fn author(&self) -> Author {
        Author {
            name: self.name.clone(),
            email: self.email.clone(),
        }
    }
}

impl RepositoryHandle {
    /// The commit that `revision` names, by git's rules: a branch, a tag, `main~2`, `v1^{commit}`,
    /// the beginning of a commit's name.
    pub fn resolve(&self, revision: &str) -> Result<CommitId, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        let found = repo
            .revparse_single(revision)
            .and_then(|object| object.peel_to_commit());
        match found {
            Ok(commit) => Ok(CommitId::from_oid(commit.id())),
            Err(error) => match error.code() {
                ErrorCode::NotFound
                | ErrorCode::Ambiguous
                | ErrorCode::InvalidSpec
                | ErrorCode::Peel
                | ErrorCode::UnbornBranch => Err(HistoryError::Revision {
                    revision: revision.to_owned(),
                    detail: error.message().to_owned(),
                }),
                _ => Err(self.history(error)),
            },
        }
    }

    /// What a commit says.
    pub fn commit_info(&self, commit: &CommitId) -> Result<CommitInfo, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        Ok(CommitInfo::of(&self.find(&repo, commit)?))
    }

    /// The last commit that both have in common, from which a merge starts; `None` if there is
    /// none. Of several, the one that `git merge-base` names.
    pub fn merge_base(
        &self,
        one: &CommitId,
        other: &CommitId,
    ) -> Result<Option<CommitId>, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        self.find(&repo, one)?;
        self.find(&repo, other)?;
        match repo.merge_base(one.oid(), other.oid()) {
            Ok(base) => Ok(Some(CommitId::from_oid(base))),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.history(error)),
        }
    }

    pub(super) fn find<'r>(
        &self,
        repo: &'r Repository,
        commit: &CommitId,
    ) -> Result<Commit<'r>, HistoryError> {
        repo.find_commit(commit.oid())
            .map_err(|error| match error.code() {
                ErrorCode::NotFound => HistoryError::NoCommit {
                    commit: commit.clone(),
                },
                _ => self.history(error),
            })
    }

    fn history(&self, error: git2::Error) -> HistoryError {
        HistoryError::Repo(repo::access(self.path())(error))
    }
}
