//! What a fetch is asked for and what it did.

use std::num::NonZeroU32;

use super::{refspec::Refspec, update::Updated};
use crate::Limits;

/// How [`RepositoryHandle::fetch`](crate::RepositoryHandle::fetch) fetches.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// What to fetch; if there is none, what the remote's configuration says.
    pub refspecs: Vec<Refspec>,
    /// Which tags come along.
    pub tags: Tags,
    /// Removes the refs within the refspecs' targets, tags only if a refspec names them, that the
    /// remote no longer has.
    pub prune: bool,
    /// How much of the history.
    pub depth: Depth,
    /// What is accepted.
    pub limits: Limits,
}

impl Default for FetchOptions {
    /// As `git fetch` without an option, with [`Limits::default`].
    fn default() -> Self {
        Self {
            refspecs: Vec::new(),
            tags: Tags::Following,
            prune: false,
            depth: Depth::AsIs,
            limits: Limits::default(),
        }
    }
}

/// Which tags come with a fetch. One that is here already is never changed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// None but those that refspecs name.
    None,
    /// Those of commits that are here after the fetch.
    Following,
    /// All, with what they need.
    All,
}

/// How much of a history a fetch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All that is new. A history that is cut stays cut where it is.
    AsIs,
    /// So many commits of each tip, as `git fetch --depth`.
    Commits(NonZeroU32),
    /// All, also what an earlier fetch left out, as `git fetch --unshallow`.
    Whole,
}

/// What a fetch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "it says which refs were not changed"]
pub struct Fetched {
    /// Refs that were made, changed or pruned.
    pub updated: Vec<Updated>,
    /// Refs that were left as they are, with the reason: no fast-forward and not forced, or checked
    /// out.
    pub rejected: Vec<(String, String)>,
}
