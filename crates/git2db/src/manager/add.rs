//! Repositories that come under a registry.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Git2DB, ManagerError, Name, Tracked, list, list::Entry};
use crate::{Reference, RemoteUrl, durable, repo};

/// How [`Git2DB::add`] takes a repository that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adding {
    /// It is moved into the registry's folder, which must be on the same file system, and deleted
    /// with its entry.
    Adopt,
    /// It stays where it is, also when its entry is removed.
    Reference,
}

impl Git2DB {
    /// Makes an empty repository and tracks it. Its `HEAD` names `refs/heads/main`.
    ///
    /// # Errors
    /// The name is taken, or the repository cannot be made.
    pub fn create(&self, name: Name) -> Result<Tracked, ManagerError> {
        // Made aside: what is killed meanwhile is swept with the clones that nobody continues.
        let aside = self.root.join("clones").join(format!("{}.git", new_id()?));
        repo::init_bare(&aside).map_err(ManagerError::Repo)?;
        let added = self.take_in(name, &aside, None, Reference::Head, false);
        if added.is_err() {
            durable::remove_dir_all(&aside).map_err(|e| ManagerError::io("remove", &aside, e))?;
        }
        added
    }

    /// Tracks the repository at `path`: a bare one, or a working folder, whose `.git` is then what
    /// is tracked.
    ///
    /// # Errors
    /// The name is taken, there is no repository, or it cannot be adopted: one with worktrees,
    /// which know where it lies, one of a working folder, or one on another file system.
    pub fn add(&self, name: Name, path: &Path, adding: Adding) -> Result<Tracked, ManagerError> {
        let unsuitable = |why| ManagerError::Unsuitable {
            path: path.to_owned(),
            why,
        };
        let path = fs::canonicalize(path).map_err(|e| ManagerError::io("find", path, e))?;
        let dot_git = path.join(".git");
        let (path, is_bare) = if dot_git.is_dir() {
            (dot_git, false)
        } else {
            (path, true)
        };
        let found = repo::open(&path).map_err(ManagerError::Repo)?;
        if found.path().canonicalize().ok().as_ref() != Some(&path) || found.is_worktree() {
            return Err(unsuitable("it is a worktree: track its repository"));
        }
        let followed = found
            .find_reference("HEAD")
            .and_then(|head| head.symbolic_target().map(|name| name.map(str::to_owned)))
            .ok()
            .flatten()
            .and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned))
            .map_or(Reference::Head, Reference::Branch);
        let url = found.find_remote("origin").ok().and_then(|remote| {
            remote
                .url()
                .ok()
                .and_then(|url| RemoteUrl::parse_stored(url).ok())
        });
        if adding == Adding::Reference {
            return self.refer_to(name, path, url, followed);
        }
        if path.starts_with(self.root()) {
            return Err(unsuitable("it lies in the registry's own folder"));
        }
        if !is_bare || !found.is_bare() {
            return Err(unsuitable(
                "it belongs to a working folder: reference it, or clone it",
            ));
        }
        if !worktrees(&path)?.is_empty() {
            return Err(unsuitable(
                "it has worktrees, which know where it lies: reference it, or clone it",
            ));
        }
        drop(found);
        self.take_in(name, &path, url, followed, false)
    }

    /// Moves the complete repository at `from` into the registry's folder and lists it. After a
    /// kill it is either at `from` still, or listed.
    pub(crate) fn take_in(
        &self,
        name: Name,
        from: &Path,
        url: Option<RemoteUrl>,
        reference: Reference,
        fetched: bool,
    ) -> Result<Tracked, ManagerError> {
        let mut locked = self.locked()?;
        locked.vacant(&name)?;
        let created = list::now();
        let entry = Entry {
            name,
            id: new_id()?,
            url,
            reference,
            at: None,
            created,
            last_fetched: fetched.then_some(created),
            moving: true,
        };
        let to = self.own_path(&entry.id);
        // Invariant: the list names the id before the folder has it. See `recover`.
        locked.all_mut().push(entry.clone());
        locked.write(&self.root)?;
        if let Err(error) = fs::rename(from, &to) {
            locked.all_mut().pop();
            locked.write(&self.root)?;
            return Err(match error.kind() {
                io::ErrorKind::CrossesDevices => ManagerError::Unsuitable {
                    path: from.to_owned(),
                    why: "it lies on another file system: reference it, or clone it",
                },
                _ => ManagerError::io("move", from, error),
            });
        }
        super::pool::forget(from);
        for folder in [to.parent(), from.parent()].into_iter().flatten() {
            durable::sync_dir(folder).map_err(|e| ManagerError::io("sync", folder, e))?;
        }
        if let Some(last) = locked.all_mut().last_mut() {
            last.moving = false;
        }
        locked.write(&self.root)?;
        Ok(self.tracked(&entry))
    }

    fn refer_to(
        &self,
        name: Name,
        path: PathBuf,
        url: Option<RemoteUrl>,
        reference: Reference,
    ) -> Result<Tracked, ManagerError> {
        let mut locked = self.locked()?;
        locked.vacant(&name)?;
        let entry = Entry {
            name,
            id: new_id()?,
            url,
            reference,
            at: Some(path),
            created: list::now(),
            last_fetched: None,
            moving: false,
        };
        locked.all_mut().push(entry.clone());
        locked.write(&self.root)?;
        Ok(self.tracked(&entry))
    }
}

/// The folders of worktrees that are still there.
pub(super) fn worktrees(bare: &Path) -> Result<Vec<PathBuf>, ManagerError> {
    let folder = bare.join("worktrees");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ManagerError::io("read", &folder, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| ManagerError::io("read", &folder, e))?;
        // `gitdir` holds the path of the worktree's own `.git`.
        if let Ok(text) = fs::read_to_string(entry.path().join("gitdir")) {
            let dot_git = PathBuf::from(text.trim_end());
            if dot_git.exists() {
                found.push(dot_git.parent().map_or(dot_git.clone(), Path::to_owned));
            }
        }
    }
    Ok(found)
}

/// 32 random hexadecimal digits.
fn new_id() -> Result<String, ManagerError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    fs::File::open(path)
        .and_then(|mut source| io::Read::read_exact(&mut source, &mut bytes))
        .map_err(|e| ManagerError::io("read", path, e))?;
    Ok(hex::encode(bytes))
}
