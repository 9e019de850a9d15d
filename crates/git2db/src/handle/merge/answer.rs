//! How is merged, and what comes of it.

use crate::handle::Conflict;
use crate::{CommitId, commit::Metadata, lfs::Pointer};

/// How branches are merged.
#[derive(Clone, Debug)]
pub struct Merge {
    /// Whether a branch may go forward without a commit of the merge.
    pub fast_forward: FastForward,
    /// What the commit of the merge says.
    pub metadata: Metadata,
    /// Whether files that moved on one side take the changes that the other side made to them.
    /// Folders that moved are not found, other than by git. A merge in which large files are in
    /// conflict is made without renames.
    pub renames: bool,
    /// The commit that the branch must name, if it was looked at before.
    pub expected: Option<CommitId>,
}

/// Whether a branch may go forward without a commit of the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastForward {
    /// If it has no commits of its own.
    Allow,
    /// It must: else nothing is merged.
    Only,
    /// Never: there is a commit of the merge in any case.
    Never,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "after conflicts nothing was merged"]
pub enum Merged {
    /// The branch has all of it already.
    UpToDate,
    /// The branch names that commit now.
    FastForward(CommitId),
    /// The branch names a new commit now.
    Committed(CommitId),
    /// Nothing has changed, because these files cannot be merged.
    Conflicts(Vec<ConflictedFile>),
}

/// A file that both sides changed, each in another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictedFile {
    /// Its path.
    pub path: String,
    /// Which sides have it.
    pub kind: Conflict,
    /// What both began with.
    pub base: Option<Version>,
    /// What the branch has.
    pub ours: Option<Version>,
    /// What was to be merged.
    pub theirs: Option<Version>,
}

/// One side's version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The git blob, 40 hexadecimal digits.
    pub blob: String,
    /// The mode that git notes, such as `0o100644`.
    pub mode: u32,
    /// The content that the blob points to, for a large file.
    pub pointer: Option<Pointer>,
}

impl ConflictedFile {
    /// Whether one side has a large file.
    pub fn is_large(&self) -> bool {
        [&self.base, &self.ours, &self.theirs]
            .into_iter()
            .flatten()
            .any(|side| side.pointer.is_some())
    }
}

impl Merge {
    /// As `git merge` does without options.
    pub fn new(metadata: Metadata) -> Self {
        Self {
            fast_forward: FastForward::Allow,
            metadata,
            renames: true,
            expected: None,
        }
    }
}
