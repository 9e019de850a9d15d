//! Which refs are pushed, and whether they may be.

use git2::{Oid, Repository};

use super::{push_error::PushError, update::is_fast_forward};
use crate::{CommitId, RemoteUrl};

/// One ref to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRef {
    /// What the remote's ref shall name: a full name of a ref, a branch's or tag's, or a commit.
    /// `None` deletes the remote's ref.
    pub source: Option<String>,
    /// Full name of the remote's ref.
    pub target: String,
    /// Sets it also where that is no fast-forward, or changes a tag.
    pub force: bool,
    /// What it must name now.
    pub expected: Expected,
}

/// What a remote's ref must name for a push to change it, as `git push --force-with-lease`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    #[default]
    Any,
    /// Nothing: it is new.
    Absent,
    /// Just this.
    Is(CommitId),
}

/// A ref with what it becomes.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) name: String,
    pub(super) new: Option<Oid>,
    pub(super) force: bool,
    pub(super) expected: Expected,
}

impl PushRef {
    /// A branch to that of the same name, without force.
    pub fn branch(name: &str) -> Self {
        let full = format!("refs/heads/{name}");
        Self::new(Some(full.clone()), full)
    }

    /// A tag to that of the same name.
    pub fn tag(name: &str) -> Self {
        let full = format!("refs/tags/{name}");
        Self::new(Some(full.clone()), full)
    }

    /// Deletes the ref of that full name.
    pub fn delete(target: &str) -> Self {
        Self::new(None, target.to_owned())
    }

    /// Reads `[+][SOURCE]:TARGET` or `[+]NAME`. Names that do not begin with `refs/` are those of
    /// branches; without a source the target is deleted.
    pub fn parse(text: &str) -> Self {
        let (force, rest) = match text.strip_prefix('+') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let full = |name: &str| {
            if name.starts_with("refs/") {
                name.to_owned()
            } else {
                format!("refs/heads/{name}")
            }
        };
        let (source, target) = match rest.split_once(':') {
            Some(("", target)) => (None, full(target)),
            Some((source, target)) => (Some(source.to_owned()), full(target)),
            None => (Some(full(rest)), full(rest)),
        };
        Self {
            force,
            ..Self::new(source, target)
        }
    }

    /// Only if the remote's ref is as expected.
    #[must_use]
    pub fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// Also where it is no fast-forward.
    #[must_use]
    pub fn forced(mut self) -> Self {
        self.force = true;
        self
    }

    fn new(source: Option<String>, target: String) -> Self {
        Self {
            source,
            target,
            force: false,
            expected: Expected::Any,
        }
    }
}

/// Whether all refs may be changed, with `now` for what the remote's name. Returns those that have
/// to be.
pub(super) fn check(
    repo: &Repository,
    refs: &[Resolved],
    now: impl Fn(&str) -> Option<Oid>,
    url: &RemoteUrl,
) -> Result<Vec<Resolved>, PushError> {
    let mut changed = Vec::new();
    for wanted in refs {
        let old = now(&wanted.name);
        let rejected = |why: &str| PushError::Rejected {
            url: url.clone(),
            name: wanted.name.clone(),
            why: why.to_owned(),
        };
        let as_expected = match &wanted.expected {
            Expected::Any => true,
            Expected::Absent => old.is_none(),
            Expected::Is(commit) => old == Some(commit.oid()),
        };
        if !as_expected {
            return Err(rejected(&match old {
                Some(old) => format!("it names {old}, which is not what was expected"),
                None => "it does not exist, which is not what was expected".to_owned(),
            }));
        }
        match (old, wanted.new) {
            (None, None) => return Err(rejected("it does not exist and cannot be deleted")),
            (Some(old), Some(new)) if old == new => continue,
            (Some(old), Some(new)) if !wanted.force => {
                if !wanted.name.starts_with("refs/heads/") {
                    return Err(rejected("it names something else already"));
                }
                if repo.find_commit(old).is_err() {
                    return Err(rejected("it has commits that are not here: fetch first"));
                }
                if !is_fast_forward(repo, old, new) {
                    return Err(rejected("it has commits that what is pushed does not have"));
                }
            }
            _ => {}
        }
        changed.push(wanted.clone());
    }
    Ok(changed)
}
