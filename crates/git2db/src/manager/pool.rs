//! The open repositories of this process.

use std::{
    fmt, fs, io,
    ops::Deref,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use git2::Repository;

use crate::{RepoError, repo};

/// The open repositories of this process, kept for the next operation on them. There is one, which
/// all operations go through.
///
/// libgit2's repositories may be sent to other threads and not shared by them, so that each
/// operation has one to itself and gives it back. At most [`capacity`](Self::set_capacity) wait,
/// each for a minute; then the one that waited longest is closed. One whose folder or `config` was
/// replaced or changed, or whose folder is gone, is not used again. A repository keeps its packs
/// open, so that a deleted one takes space until it is closed.
#[derive(Debug)]
pub struct GitManager {
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    capacity: usize,
    /// The one that was given back last is last.
    repositories: Vec<Waiting>,
    reused: u64,
    opened: u64,
}

struct Waiting {
    path: PathBuf,
    stamp: Stamp,
    repository: Repository,
    since: Instant,
}

/// What tells that a folder is still the repository that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    folder: (u64, u64),
    owner: u32,
    /// libgit2 keeps what it read of it.
    config: Option<(u64, i64, i64, u64)>,
    /// Read once, when the objects are opened.
    alternates: Option<(u64, i64, i64, u64)>,
}

const CAPACITY: usize = 32;
const MAX_IDLE: Duration = Duration::from_mins(1);

static MANAGER: LazyLock<GitManager> = LazyLock::new(|| GitManager {
    idle: Mutex::new(Idle {
        capacity: CAPACITY,
        repositories: Vec::new(),
        reused: 0,
        opened: 0,
    }),
});

impl GitManager {
    /// That of this process.
    pub fn global() -> &'static Self {
        &MANAGER
    }

    /// Keeps at most `capacity` repositories open while nothing uses them; 0 keeps none. It is 32
    /// without a call.
    pub fn set_capacity(&self, capacity: usize) {
        let closed = self.with(|idle| {
            idle.capacity = capacity;
            idle.trim()
        });
        drop(closed);
    }

    /// How many repositories wait to be used again.
    pub fn idle(&self) -> usize {
        self.with(|idle| idle.repositories.len())
    }

    /// How many operations found their repository open, and how many had to open it.
    pub fn reused_and_opened(&self) -> (u64, u64) {
        self.with(|idle| (idle.reused, idle.opened))
    }

    /// Closes what waits of the repository at `path`.
    pub fn forget(&self, path: &Path) {
        let closed: Vec<_> = self.with(|idle| {
            let all = std::mem::take(&mut idle.repositories);
            let (gone, kept) = all.into_iter().partition(|w| w.path == path);
            idle.repositories = kept;
            gone
        });
        drop(closed);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Idle) -> T) -> T {
        act(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, path: &Path, stamp: Stamp) -> Option<Repository> {
        // Closing takes time and is done without the lock.
        let (found, closed) = self.with(|idle| {
            let closed = idle.trim();
            let at = idle
                .repositories
                .iter()
                .rposition(|w| w.path == path && w.stamp == stamp);
            let found = at.map(|at| idle.repositories.remove(at));
            match found {
                Some(_) => idle.reused += 1,
                None => idle.opened += 1,
            }
            (found, closed)
        });
        drop(closed);
        found.map(|waiting| waiting.repository)
    }

    fn put(&self, waiting: Waiting) {
        let closed = self.with(|idle| {
            idle.repositories.push(waiting);
            idle.trim()
        });
        drop(closed);
    }
}

impl Idle {
    /// Takes out what is too much or too old.
    fn trim(&mut self) -> Vec<Waiting> {
        let old = self
            .repositories
            .iter()
            .take_while(|w| w.since.elapsed() > MAX_IDLE)
            .count();
        let many = self.repositories.len().saturating_sub(self.capacity);
        self.repositories.drain(..old.max(many)).collect()
    }
}

/// The bare repository at `path`, open for one operation.
pub(crate) fn open(path: &Path) -> Result<Opened, RepoError> {
    let stamp = Stamp::of(path).ok();
    let waiting = stamp.and_then(|stamp| MANAGER.take(path, stamp));
    let repository = match waiting {
        Some(repository) => repository,
        None => repo::open(path)?,
    };
    Ok(Opened {
        path: path.to_owned(),
        stamp,
        repository: Some(repository),
    })
}

pub(super) fn forget(path: &Path) {
    MANAGER.forget(path);
}

/// An open repository, which waits for the next operation once it is dropped.
pub(crate) struct Opened {
    path: PathBuf,
    stamp: Option<Stamp>,
    repository: Option<Repository>,
}

impl Deref for Opened {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        self.repository
            .as_ref()
            .expect("it is there until the drop")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // After a panic nobody knows what state it is in.
        if std::thread::panicking() {
            return;
        }
        let (Some(stamp), Some(repository)) = (self.stamp, self.repository.take()) else {
            return;
        };
        if Stamp::of(&self.path).ok() == Some(stamp) {
            let path = std::mem::take(&mut self.path);
            let since = Instant::now();
            MANAGER.put(Waiting {
                path,
                stamp,
                repository,
                since,
            });
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let folder = fs::metadata(path)?;
        let file = |name: &str| {
            let found = fs::metadata(path.join(name)).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        };
        Ok(Self {
            folder: (folder.dev(), folder.ino()),
            owner: folder.uid(),
            config: file("config"),
            alternates: file("objects/info/alternates"),
        })
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waiting").field(&self.path).finish()
    }
}
