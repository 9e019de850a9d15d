//! The repositories that are tracked in one folder, and the open ones of this process.
//!
//! ```text
//! ROOT/repositories.json     the list: a name, an id and more for each repository
//! ROOT/lock                  locked while the list is changed
//! ROOT/repositories/ID.git   the repositories, by id, so that a new name moves nothing
//! ROOT/store/                the one store of large files
//! ROOT/clones/               clones that are not complete; nothing of it is listed
//! ROOT/trash/                what is being deleted
//! ```
//!
//! ```
//! use hyprstream_git2db::{Git2DB, RemoteUrl};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let db = Git2DB::open(dir.path())?;
//! db.create("team/empty".parse()?)?;
//! db.rename(&"team/empty".parse()?, "team/model".parse()?)?;
//! let repository = db.repository(&"team/model".parse()?)?;
//! repository.add_remote("origin", &RemoteUrl::parse("https://example.org/model")?)?;
//! assert_eq!(db.list()?.len(), 1);
//! db.remove(&"team/model".parse()?)?;
//! # Ok(())
//! # }
//! ```

mod add;
mod error;
mod list;
mod name;
mod pool;
mod remove;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use add::Adding;
pub use error::ManagerError;
pub use name::{InvalidName, Name};
pub use pool::GitManager;
pub(crate) use pool::{Opened, open};

use self::list::{Entry, List};
use crate::{
    CloneBuilder, Reference, RemoteUrl, RepositoryHandle, durable, lock::FileLock,
    store::ObjectStore,
};

/// The registry of the repositories that are tracked in one folder. Cheap to clone; threads and
/// processes may share the folder.
///
/// A process that is killed at any point leaves every repository listed whole or not listed at
/// all. What it left half-done is finished or cleared away by the next that changes something.
#[derive(Clone, Debug)]
pub struct Git2DB {
    root: PathBuf,
    store: ObjectStore,
}

/// A repository of a [`Git2DB`], as the list had it when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tracked {
    /// Its name, which [`Git2DB::rename`] may change.
    pub name: Name,
    /// 32 hexadecimal digits that stay the same as long as it is tracked.
    pub id: String,
    /// Where it was cloned from. Never with credentials.
    pub url: Option<RemoteUrl>,
    /// What of it is followed.
    pub reference: Reference,
    /// Where its git directory lies.
    pub path: PathBuf,
    /// Whether it lies outside the folder and stays there when it is removed from the list.
    pub is_referenced: bool,
    /// When it was added, to the second.
    pub created: SystemTime,
    /// When it was last fetched, to the second.
    pub last_fetched: Option<SystemTime>,
}

impl Git2DB {
    /// The registry in the folder `root`, made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be used, or holds repositories without their list.
    pub fn open(root: &Path) -> Result<Self, ManagerError> {
        for folder in ["repositories", "clones", "trash"] {
            let path = root.join(folder);
            durable::create_dir_all(&path).map_err(|e| ManagerError::io("make", &path, e))?;
        }
        let store = ObjectStore::open(&root.join("store")).map_err(ManagerError::Store)?;
        let root = std::fs::canonicalize(root).map_err(|e| ManagerError::io("find", root, e))?;
        let found = Self { root, store };
        // Finishes what a killed process began.
        drop(found.locked()?);
        found.empty_trash()?;
        Ok(found)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The store of the large files of all repositories.
    pub fn store(&self) -> &ObjectStore {
        &self.store
    }

    /// All tracked repositories, by name.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn list(&self) -> Result<Vec<Tracked>, ManagerError> {
        let list = List::read(&self.root)?;
        let mut all: Vec<_> = list.ready().map(|entry| self.tracked(entry)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The tracked repository of that name.
    ///
    /// # Errors
    /// `NotTracked` if there is none; the list cannot be read.
    pub fn get(&self, name: &Name) -> Result<Tracked, ManagerError> {
        let list = List::read(&self.root)?;
        let found = list.ready().find(|entry| entry.name == *name);
        found
            .map(|entry| self.tracked(entry))
            .ok_or_else(|| ManagerError::NotTracked { name: name.clone() })
    }

    /// The repository of that name, to work with. It goes on working when the name is changed.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn repository(&self, name: &Name) -> Result<RepositoryHandle, ManagerError> {
        let tracked = self.get(name)?;
        RepositoryHandle::open(&tracked.path, self.store.clone()).map_err(ManagerError::Repo)
    }

    /// A clone of the repository at `url` that is to be tracked under `name`.
    pub fn clone_from(&self, name: Name, url: RemoteUrl) -> CloneBuilder<'_> {
        CloneBuilder::new(self, name, url)
    }

    /// Gives a repository another name. Nothing on the disk moves but the list.
    ///
    /// # Errors
    /// There is none of the old name, or already one of the new.
    pub fn rename(&self, from: &Name, to: Name) -> Result<Tracked, ManagerError> {
        let mut list = self.locked()?;
        if from != &to {
            list.vacant(&to)?;
        }
        let entry = list.entry(from)?;
        entry.name = to;
        let renamed = entry.clone();
        list.write(&self.root)?;
        Ok(self.tracked(&renamed))
    }

    /// Follows another branch or tag from now on. The repository itself is not touched.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn follow(&self, name: &Name, reference: Reference) -> Result<(), ManagerError> {
        let mut list = self.locked()?;
        list.entry(name)?.reference = reference;
        list.write(&self.root)
    }

    /// Notes that a repository was fetched just now.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn mark_fetched(&self, name: &Name) -> Result<(), ManagerError> {
        let mut list = self.locked()?;
        list.entry(name)?.last_fetched = Some(list::now());
        list.write(&self.root)
    }

    /// The list, which nobody else changes until the value is dropped, without anything half-done.
    fn locked(&self) -> Result<Locked, ManagerError> {
        let path = self.root.join("lock");
        let lock = FileLock::acquire(&path, &|| false)
            .map_err(|e| ManagerError::io("lock", &path, e))?
            .expect("nothing cancels the wait");
        let mut locked = Locked {
            list: List::read(&self.root)?,
            _lock: lock,
        };
        self.recover(&mut locked)?;
        Ok(locked)
    }

    fn tracked(&self, entry: &Entry) -> Tracked {
        Tracked {
            name: entry.name.clone(),
            id: entry.id.clone(),
            url: entry.url.clone(),
            reference: entry.reference.clone(),
            path: self.path_of(entry),
            is_referenced: entry.at.is_some(),
            created: list::time(entry.created),
            last_fetched: entry.last_fetched.map(list::time),
        }
    }

    fn path_of(&self, entry: &Entry) -> PathBuf {
        entry.at.clone().unwrap_or_else(|| self.own_path(&entry.id))
    }

    fn own_path(&self, id: &str) -> PathBuf {
        self.root.join("repositories").join(format!("{id}.git"))
    }
}

/// The list while it is locked.
struct Locked {
    list: List,
    _lock: FileLock,
}

impl std::ops::Deref for Locked {
    type Target = List;

    fn deref(&self) -> &List {
        &self.list
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut List {
        &mut self.list
    }
}
