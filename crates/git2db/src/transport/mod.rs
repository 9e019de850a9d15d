//! Other ways than a git server by which commits come: a repository on this machine, a peer.
//!
//! Whoever has git objects implements [`GitSource`] (for LFS objects,
//! [`lfs::ObjectSource`](crate::lfs::ObjectSource)). A source is not trusted: what it sends is a
//! pack whose objects are named by what they hash to, nothing of it is used before the pack is
//! whole, and no ref is moved before each wanted commit is found complete.

mod local;
mod objects;
mod receive;
mod select;

use std::io::Write;

pub use local::LocalSource;
pub use objects::LocalObjects;
pub(crate) use objects::store_objects;
pub(crate) use receive::{ensure_whole, receive, want_new};

use crate::{CommitId, Observer, RemoteError, remote::RemoteRef};

/// What a [`GitSource`] is asked for.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// Commits, or annotated tags, as [`GitSource::refs`] names them.
    pub commits: Vec<CommitId>,
    /// What is here with all that led to it, down to [`Self::shallow`], so that it need not be sent.
    pub have: Vec<CommitId>,
    /// Commits whose parents are not here and are not wanted.
    pub shallow: Vec<CommitId>,
    /// How many commits of each history; `None` for all.
    pub depth: Option<u32>,
}

/// Somebody who has a repository's git objects.
pub trait GitSource: Sync {
    /// All refs, as `git ls-remote` shows them: `HEAD` if it names something, and for each
    /// annotated tag another with `^{}` for what it names.
    ///
    /// # Errors
    /// The source cannot be reached or has no such repository.
    fn refs(&self, observer: &dyn Observer) -> Result<Vec<RemoteRef>, RemoteError>;

    /// Writes a pack into `sink` with what is wanted and not had, no thin one. Returns the commits
    /// whose parents it left out for [`Want::depth`].
    ///
    /// Once `sink` fails the work is over, and its error may be returned as any other: the caller
    /// knows why.
    ///
    /// # Errors
    /// A wanted object is not there, the source failed, or `observer` ended it.
    fn pack(
        &self,
        want: &Want,
        sink: &mut dyn Write,
        observer: &dyn Observer,
    ) -> Result<Vec<CommitId>, RemoteError>;
}
