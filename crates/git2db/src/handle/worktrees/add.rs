//! Making a worktree.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    MOUNTED, Worktree, Worktrees, WorktreesError,
    check::{best, free_path, full},
    index, io_error,
    record::Record,
    shared,
};
use crate::{
    CommitId, Include, Limits,
    checkout::{self, Checkout, Source},
    lock::FileLock,
    repo,
    storage::{self, Kind},
};

/// A worktree to be made.
#[derive(Clone, Debug)]
pub struct Add<'a> {
    /// Where: missing, or an empty folder.
    pub path: &'a Path,
    /// What it has checked out.
    pub start: Start,
    /// The driver; `None` takes the best that works there.
    pub driver: Option<Kind>,
    /// The files that are wanted. The others are marked `skip-worktree`, so that git does not miss
    /// them.
    pub include: Include,
    /// What is accepted of the commit.
    pub limits: Limits,
}

/// What a new worktree has checked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A branch that is made.
    NewBranch {
        /// Its name, without `refs/heads/`.
        name: String,
        /// The commit that it names first.
        commit: CommitId,
    },
    /// A branch that exists and that no worktree has.
    Branch(String),
    /// A commit and no branch.
    Detached(CommitId),
}

impl<'a> Add<'a> {
    /// All files, by the best driver, within the usual limits.
    pub fn new(path: &'a Path, start: Start) -> Self {
        Self {
            path,
            start,
            driver: None,
            include: Include::all(),
            limits: Limits::default(),
        }
    }
}

/// How often a checkout is made anew that somebody prunes at the wrong time.
const ATTEMPTS: usize = 5;

impl Worktrees<'_> {
    /// Makes a worktree, named after the last part of its path.
    ///
    /// The LFS objects of the wanted files must be in the store. After an error nothing is left;
    /// after a kill, [`Self::prune`] removes what is. Sets `core.trustctime` to false in the
    /// repository, since files that are shared get other change times when others share them.
    ///
    /// # Errors
    /// The branch is checked out elsewhere, the path is taken, or the files cannot be made.
    pub fn add(&self, add: &Add<'_>) -> Result<Worktree, WorktreesError> {
        let repo = self.repository.repo().map_err(WorktreesError::Repo)?;
        self.check_branch(&repo, &add.start)?;
        let (held, checkout, commit) = self.hold_checkout(&repo, add)?;
        let path = free_path(add.path)?;
        self.check_start(&repo, &add.start, &path)?;
        trust_no_ctime(&repo).map_err(|e| self.access(e))?;
        let kind = match add.driver {
            Some(kind) => kind,
            None => best(&path)?,
        };
        let name = self.free_name(&path);
        let record = Record {
            driver: kind,
            checkout: checkout.key.clone(),
            path,
            complete: false,
        };
        let made = self
            .make(&name, &record, add, &commit)
            .and_then(|()| self.write_index(&repo, &name, &record, &checkout, add, &commit))
            .and_then(|()| self.finish(&repo, &name, record.clone(), &add.start));
        if let Err(error) = made {
            // The first error says what went wrong; `prune` tries again. What is at the path and
            // not ours stays.
            if self.discard(&name, &record).is_err() {
                tracing::warn!(name, "a half worktree is left to be pruned");
            }
            return Err(error);
        }
        drop(held);
        self.open(&name)
    }

    /// Makes the checkout of the commit and holds the lock, under which it stays.
    fn hold_checkout(
        &self,
        repo: &git2::Repository,
        add: &Add<'_>,
    ) -> Result<(FileLock, Checkout, CommitId), WorktreesError> {
        let home = self.home();
        let mut commit = self.commit(repo, &add.start)?;
        for _ in 0..ATTEMPTS {
            let source = Source {
                bare: self.repository.path(),
                commit: &commit,
                include: &add.include,
                limits: add.limits,
                store: self.repository.store(),
            };
            let checkout =
                checkout::materialise(&source, &home).map_err(WorktreesError::Checkout)?;
            let held = self.hold()?;
            // The branch may have moved meanwhile.
            let now = self.commit(repo, &add.start)?;
            let stays = checkout::open(&home, &checkout.key).map_err(WorktreesError::Checkout)?;
            if now == commit && stays.is_some() {
                return Ok((held, checkout, commit));
            }
            commit = now;
        }
        Err(WorktreesError::Contended { commit })
    }

    /// What stock git keeps of a worktree, and the files.
    fn make(
        &self,
        name: &str,
        record: &Record,
        add: &Add<'_>,
        commit: &CommitId,
    ) -> Result<(), WorktreesError> {
        let admin = self.admin(name);
        fs::create_dir(&admin).map_err(|e| io_error("create folder", &admin, e))?;
        record.write(&admin)?;
        let head = match &add.start {
            Start::NewBranch { name, .. } | Start::Branch(name) => format!("ref: {}\n", full(name)),
            Start::Detached(_) => format!("{commit}\n"),
        };
        let dot_git = record.path.join(".git");
        let put = |name: &str, text: &[u8]| {
            let path = admin.join(name);
            fs::write(&path, text).map_err(|e| io_error("write", &path, e))
        };
        let home = self.home();
        match &add.start {
            Start::Detached(_) => shared::put(&home, &admin, "HEAD", head.as_bytes())?,
            Start::NewBranch { .. } | Start::Branch(_) => put("HEAD", head.as_bytes())?,
        }
        shared::put(&home, &admin, "commondir", b"../..\n")?;
        put("gitdir", &line(&dot_git))?;
        if storage::driver(record.driver).is_mount() {
            shared::put(&home, &admin, "locked", MOUNTED.as_bytes())?;
        }
        self.with_view(name, record, |driver, view| driver.create(view))?;
        let admin = admin
            .canonicalize()
            .map_err(|e| io_error("find", &admin, e))?;
        let text = [b"gitdir: ".as_slice(), &line(&admin)].concat();
        fs::write(&dot_git, text).map_err(|e| io_error("write", &dot_git, e))
    }

    fn write_index(
        &self,
        repo: &git2::Repository,
        name: &str,
        record: &Record,
        checkout: &Checkout,
        add: &Add<'_>,
        commit: &CommitId,
    ) -> Result<(), WorktreesError> {
        let admin = self.admin(name);
        let tree = repo
            .find_commit(commit.oid())
            .and_then(|commit| commit.tree())
            .map_err(|e| self.access(e))?;
        let (home, private) = (self.home(), self.private(name));
        if record.driver != Kind::Overlay2 || !same_disk(&checkout.path, &private)? {
            return index::write(&admin.join("index"), &tree, &record.path, &add.include);
        }
        // The kernel shows the checkout's own inodes then, the same in every worktree.
        let shared = index::shared(&home, &checkout.key, &checkout.path)?;
        if !index::link(&shared, &admin)? {
            let folder = home.join("indexes");
            fs::create_dir_all(&folder).map_err(|e| io_error("create folder", &folder, e))?;
            index::write(&shared, &tree, &record.path, &add.include)?;
            index::link(&shared, &admin)?;
        }
        Ok(())
    }

    fn finish(
        &self,
        repo: &git2::Repository,
        name: &str,
        record: Record,
        start: &Start,
    ) -> Result<(), WorktreesError> {
        if let Start::NewBranch { name, commit } = start {
            repo.reference(&full(name), commit.oid(), false, "branch: a new worktree")
                .map_err(|e| self.access(e))?;
        }
        let complete = true;
        Record { complete, ..record }.write(&self.admin(name))
    }

    pub(super) fn access(&self, error: git2::Error) -> WorktreesError {
        WorktreesError::Repo(repo::access(self.repository.path())(error))
    }
}

fn line(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    [path.as_os_str().as_bytes(), b"\n"].concat()
}

fn same_disk(one: &Path, other: &Path) -> Result<bool, WorktreesError> {
    let device = |path: &Path| {
        let found = fs::metadata(path).map_err(|e| io_error("read", path, e))?;
        Ok::<_, WorktreesError>(found.dev())
    };
    Ok(device(one)? == device(other)?)
}

/// Hard links and overlays let others change the change times of a file.
fn trust_no_ctime(repo: &git2::Repository) -> Result<(), git2::Error> {
    let mut config = repo.config()?;
    if let Ok(false) = config.snapshot()?.get_bool("core.trustctime") {
        return Ok(());
    }
    config
        .open_level(git2::ConfigLevel::Local)?
        .set_bool("core.trustctime", false)
}
