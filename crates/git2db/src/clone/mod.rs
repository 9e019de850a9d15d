//! Cloning into a registry.

mod error;
mod run;

use std::num::NonZeroU32;

pub use error::CloneError;

use crate::{
    CommitId, Credentials, Git2DB, Limits, Observer, Reference, RemoteUrl, lfs,
    manager::{Name, Tracked},
    transport::GitSource,
};

/// A clone that is to be tracked; [`run`](Self::run) does it.
///
/// It brings the git objects and the LFS objects of the wanted commit. Without a depth come all
/// branches, as `refs/remotes/origin/*`, and all tags; with one just what is wanted. The wanted
/// branch is then `refs/heads/NAME` and `HEAD`; for a tag or a commit, `HEAD` is the commit.
#[must_use = "nothing happens before run()"]
pub struct CloneBuilder<'a> {
    db: &'a Git2DB,
    name: Name,
    url: RemoteUrl,
    reference: Reference,
    depth: Option<NonZeroU32>,
    include: Vec<String>,
    exclude: Vec<String>,
    with_lfs: bool,
    credentials: Credentials,
    limits: Limits,
    options: lfs::Options,
    git: Option<&'a dyn GitSource>,
    objects: Option<&'a (dyn lfs::ObjectSource + Sync)>,
}

/// A clone that is complete and tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cloned {
    /// The repository.
    pub tracked: Tracked,
    /// The commit whose LFS objects came.
    pub commit: CommitId,
    /// What of the LFS objects came, and what was there.
    pub objects: lfs::Transfer,
}

impl<'a> CloneBuilder<'a> {
    pub(crate) fn new(db: &'a Git2DB, name: Name, url: RemoteUrl) -> Self {
        Self {
            db,
            name,
            url,
            reference: Reference::Head,
            depth: None,
            include: Vec::new(),
            exclude: Vec::new(),
            with_lfs: true,
            credentials: Credentials::None,
            limits: Limits::default(),
            options: lfs::Options::default(),
            git: None,
            objects: None,
        }
    }

    /// Wants the head of a branch. Without this or its like it is the remote's default branch.
    pub fn branch(self, name: &str) -> Self {
        self.reference(Reference::Branch(name.to_owned()))
    }

    /// Wants what a tag names.
    pub fn tag(self, name: &str) -> Self {
        self.reference(Reference::Tag(name.to_owned()))
    }

    /// Wants a commit.
    pub fn commit(self, commit: CommitId) -> Self {
        self.reference(Reference::Commit(commit))
    }

    /// Wants that.
    pub fn reference(mut self, reference: Reference) -> Self {
        self.reference = reference;
        self
    }

    /// Brings so many commits only, of what is wanted only. Works for paths on this machine, too.
    pub fn depth(mut self, depth: NonZeroU32) -> Self {
        self.depth = Some(depth);
        self
    }

    /// Brings the large files that match one of `globs`, in place of all.
    pub fn include<S: Into<String>>(mut self, globs: impl IntoIterator<Item = S>) -> Self {
        self.include.extend(globs.into_iter().map(Into::into));
        self
    }

    /// Leaves out the large files that match one of `globs`, also where they are included.
    pub fn exclude<S: Into<String>>(mut self, globs: impl IntoIterator<Item = S>) -> Self {
        self.exclude.extend(globs.into_iter().map(Into::into));
        self
    }

    /// Brings no large files.
    pub fn without_lfs(mut self) -> Self {
        self.with_lfs = false;
        self
    }

    /// Authenticates. Credentials are kept nowhere.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// Accepts no more than that.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Transfers large files in that way.
    pub fn lfs_options(mut self, options: lfs::Options) -> Self {
        self.options = options;
        self
    }

    /// Takes git objects from `source` in place of the URL, which stays the remote of the clone.
    pub fn git_from(mut self, source: &'a dyn GitSource) -> Self {
        self.git = Some(source);
        self
    }

    /// Takes large files from `source` in place of the URL's LFS server.
    pub fn objects_from(mut self, source: &'a (dyn lfs::ObjectSource + Sync)) -> Self {
        self.objects = Some(source);
        self
    }

    /// Clones. Several that clone the same under the same name wait for each other.
    ///
    /// # Errors
    /// Nothing is listed. What came so far is continued by the next attempt with that name and
    /// URL, for a week; large files of which a part came are not begun anew.
    pub fn run(self, observer: &dyn Observer) -> Result<Cloned, CloneError> {
        run::run(&self, observer)
    }
}
