//! The branches of a repository on this machine, in pages.

use std::path::Path;

use git2::Repository;

use super::RepoError;
use crate::CommitId;

/// Which branches are wanted.
#[derive(Clone, Copy, Debug)]
pub struct BranchQuery<'a> {
    /// What their names begin with.
    pub prefix: &'a str,
    /// Those alone that stand behind this name, which need not be there.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: usize,
}

/// A branch and the commit that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchTip {
    /// Without `refs/heads/`.
    pub name: String,
    /// The commit.
    pub commit: CommitId,
    /// Its whole message. What is not UTF-8 in it is replaced.
    pub message: String,
    /// When it was committed, in seconds since 1970.
    pub committed_at: i64,
}

const HEADS: &str = "refs/heads/";

/// The branches of the repository at `path` that the query asks for, in the order of their names'
/// bytes, and whether there are more.
///
/// # Errors
/// The repository cannot be read. One whose name is not UTF-8 is passed over: no call here could
/// name it.
pub fn branches(path: &Path, query: &BranchQuery<'_>) -> Result<(Vec<BranchTip>, bool), RepoError> {
    let repo = super::open(path)?;
    let mut names = Vec::new();
    for found in repo.references().map_err(super::access(path))? {
        let found = found.map_err(super::access(path))?;
        let Ok(Some(name)) = found.name().map(|name| name.strip_prefix(HEADS)) else {
            continue;
        };
        if name.starts_with(query.prefix) && query.after.is_none_or(|after| name > after) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    let has_more = names.len() > query.limit;
    names.truncate(query.limit);
    let tips = names.iter().map(|name| tip(&repo, path, name));
    // One that was deleted meanwhile is left out.
    let tips = tips
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    Ok((tips, has_more))
}

/// One branch of the repository at `path`, by its name without `refs/heads/`; `None` if there is
/// none.
///
/// # Errors
/// The repository cannot be read, or no branch can have that name.
pub fn branch(path: &Path, name: &str) -> Result<Option<BranchTip>, RepoError> {
    if !git2::Reference::is_valid_name(&format!("{HEADS}{name}")) {
        let name = name.to_owned();
        return Err(RepoError::InvalidReference { name });
    }
    tip(&super::open(path)?, path, name)
}

fn tip(repo: &Repository, path: &Path, name: &str) -> Result<Option<BranchTip>, RepoError> {
    let commit = repo
        .find_reference(&format!("{HEADS}{name}"))
        .and_then(|found| found.peel_to_commit());
    match commit {
        Ok(commit) => Ok(Some(BranchTip {
            name: name.to_owned(),
            commit: CommitId::from_oid(commit.id()),
            message: String::from_utf8_lossy(commit.message_raw_bytes()).into_owned(),
            committed_at: commit.time().seconds(),
        })),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(super::access(path)(error)),
    }
}
