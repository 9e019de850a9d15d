//! Refs that follow those of a remote.

use std::{fs, path::Path};

use git2::{ErrorCode, Oid, Repository};

use crate::CommitId;

/// A ref that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Its full name.
    pub name: String,
    /// What it named before; `None` if it is new.
    pub old: Option<CommitId>,
    /// What it names now; `None` if it is gone.
    pub new: Option<CommitId>,
}

/// Why a ref stays as it is.
type Rejected = &'static str;

/// Lets the ref `name` name `commit`. `Ok(None)` if it does so already. Changed by others since it
/// was looked at, it is looked at again.
pub(super) fn set(
    repo: &Repository,
    name: &str,
    commit: &CommitId,
    force: bool,
) -> Result<Result<Option<Updated>, Rejected>, git2::Error> {
    let new = commit.oid();
    loop {
        let old = match repo.refname_to_id(name) {
            Ok(old) => Some(old),
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(error),
        };
        if old == Some(new) {
            return Ok(Ok(None));
        }
        if is_checked_out(repo, name) {
            return Ok(Err("it is checked out"));
        }
        if let Some(old) = old.filter(|_| !force) {
            if name.starts_with("refs/tags/") {
                return Ok(Err("the tag is here already and names something else"));
            }
            if !is_fast_forward(repo, old, new) {
                return Ok(Err("it is no fast-forward"));
            }
        }
        let updated = match old {
            Some(old) => repo.reference_matching(name, new, true, old, "fetch"),
            None => repo.reference(name, new, false, "fetch"),
        };
        match updated {
            Ok(_) => {
                return Ok(Ok(Some(Updated {
                    name: name.to_owned(),
                    old: old.map(CommitId::from_oid),
                    new: Some(commit.clone()),
                })));
            }
            // `Exists` is also what a ref says that stands in the way (`dev` and `dev/next`).
            Err(error) if error.code() == ErrorCode::Modified => {}
            Err(error) if error.code() == ErrorCode::Exists && repo.refname_to_id(name).is_ok() => {
            }
            Err(error) => return Err(error),
        }
    }
}

/// Removes the refs that are `gone`.
pub(super) fn prune(
    repo: &Repository,
    gone: &dyn Fn(&str) -> bool,
) -> Result<Vec<Updated>, git2::Error> {
    let mut names = Vec::new();
    for name in repo.references()?.names() {
        names.push(name?.to_owned());
    }
    let mut pruned = Vec::new();
    for name in names {
        if !gone(&name) || is_checked_out(repo, &name) {
            continue;
        }
        let mut found = repo.find_reference(&name)?;
        // `refs/remotes/origin/HEAD` names another ref and is nobody's copy.
        let Some(old) = found.target() else { continue };
        found.delete()?;
        pruned.push(Updated {
            name,
            old: Some(CommitId::from_oid(old)),
            new: None,
        });
    }
    Ok(pruned)
}

/// Whether `new` has all that `old` has.
pub(super) fn is_fast_forward(repo: &Repository, old: Oid, new: Oid) -> bool {
    old == new || repo.graph_descendant_of(new, old).unwrap_or(false)
}

/// Whether a working folder shows the branch, which must not change under it.
pub(super) fn is_checked_out(repo: &Repository, name: &str) -> bool {
    if !name.starts_with("refs/heads/") {
        return false;
    }
    let shows = |head: &Path| {
        fs::read_to_string(head)
            .is_ok_and(|text| text.trim_end().strip_prefix("ref: ") == Some(name))
    };
    let common = repo.commondir();
    let worktrees = fs::read_dir(common.join("worktrees")).into_iter().flatten();
    (!repo.is_bare() && shows(&common.join("HEAD")))
        || worktrees
            .filter_map(Result::ok)
            .any(|entry| shows(&entry.path().join("HEAD")))
}

/// Whether a remote's ref is a tag, and not what an annotated one names.
pub(super) fn is_tag(name: &str) -> bool {
    name.starts_with("refs/tags/") && !name.ends_with("^{}")
}
