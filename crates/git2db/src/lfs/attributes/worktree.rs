//! Which files of a worktree are LFS's: by its `.gitattributes` as they are now, where a folder has
//! none by that of the index, by `info/attributes` before them all, and after them all by the file
//! that the repository's own `core.attributesFile` names. Those of the machine are not read, as no
//! other configuration of it is.
//!
//! What was read is kept by the thread and read again when it has changed.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use git2::{Error, Oid, Repository, RepositoryOpenFlags};

use super::{ATTRIBUTES, Attributes, TooCostly};

/// A larger file is ignored, as by git.
const MAX_FILE_BYTES: u64 = 100 << 20;

thread_local! {
    static LAST: RefCell<Option<Rules>> = const { RefCell::new(None) };
}

/// Whether the file at `path` of the worktree at `root` has `filter=lfs`.
///
/// # Errors
/// The worktree or its attributes cannot be read, or not be followed in a bounded time.
pub(crate) fn is_lfs(root: &Path, path: &str) -> Result<bool, Error> {
    LAST.with_borrow_mut(|last| {
        let git = Stamp::of(&root.join(".git"));
        if last.as_ref().is_none_or(|r| r.root != root || r.git != git) {
            *last = None;
            *last = Some(Rules::open(root, git)?);
        }
        let rules = last.as_mut().expect("it was set just now");
        rules.is_lfs(path)
    })
}

struct Rules {
    root: PathBuf,
    /// What the worktree had at `.git` when the repository was opened.
    git: Stamp,
    repo: Repository,
    attributes: Attributes,
    /// The file that the repository names for all of its worktrees.
    configured: Option<PathBuf>,
    /// What each file was when it was read.
    read: HashMap<PathBuf, Stamp>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Missing,
    /// Of a folder nothing but that it is the same.
    Folder(u64, u64),
    /// Device, number, size, times of modification and change.
    File(u64, u64, u64, (i64, i64), (i64, i64)),
    /// Only the index has it.
    Staged(Oid),
}

impl Stamp {
    fn of(path: &Path) -> Self {
        fs::symlink_metadata(path).map_or(Self::Missing, |found| Self::look(&found))
    }

    fn look(found: &Metadata) -> Self {
        if found.is_dir() {
            return Self::Folder(found.dev(), found.ino());
        }
        Self::File(
            found.dev(),
            found.ino(),
            found.len(),
            (found.mtime(), found.mtime_nsec()),
            (found.ctime(), found.ctime_nsec()),
        )
    }
}

impl Rules {
    fn open(root: &Path, git: Stamp) -> Result<Self, Error> {
        let none: [&Path; 0] = [];
        Ok(Self {
            root: root.to_owned(),
            git,
            repo: Repository::open_ext(root, RepositoryOpenFlags::NO_SEARCH, none)?,
            attributes: Attributes::default(),
            configured: None,
            read: HashMap::new(),
        })
    }

    fn is_lfs(&mut self, path: &str) -> Result<bool, Error> {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let above = folder.match_indices('/').map(|(at, _)| &folder[..at]);
        let folders: Vec<&str> = match folder {
            "" => vec![""],
            folder => [""].into_iter().chain(above).chain([folder]).collect(),
        };
        if !self.is_fresh(&folders)? {
            self.attributes = Attributes::default();
            self.read.clear();
        }
        self.read_all(&folders)?;
        // A bound for each file: what is asked here is asked of a worktree of one's own, again and
        // again.
        self.attributes.begin();
        self.attributes
            .is_lfs(path)
            .map_err(|why| Error::from_str(&format!("the attributes of {path:?}: {why}")))
    }

    /// Whether nothing that was read has changed, as far as it counts for these folders.
    fn is_fresh(&self, folders: &[&str]) -> Result<bool, Error> {
        let known = |path: &Path, now| self.read.get(path).is_none_or(|then| *then == now);
        let common = self.repo.commondir();
        let config = common.join("config");
        let info = common.join("info").join("attributes");
        if !known(&config, Stamp::of(&config)) || !known(&info, Stamp::of(&info)) {
            return Ok(false);
        }
        for folder in folders {
            let path = Path::new(folder).join(ATTRIBUTES);
            if self.read.contains_key(&path) && !known(&path, self.stamp(&path)?) {
                return Ok(false);
            }
        }
        let global = self.configured.as_ref();
        Ok(global.is_none_or(|path| known(path, Stamp::of(path))))
    }

    fn read_all(&mut self, folders: &[&str]) -> Result<(), Error> {
        let common = self.repo.commondir();
        let (config, info) = (common.join("config"), common.join("info/attributes"));
        if !self.read.contains_key(&config) {
            // In this order: the last definition of a macro holds.
            let configured = self.repo.config()?.get_path("core.attributesFile");
            self.configured = configured.ok().map(|path| self.root.join(path));
            if let Some(global) = self.configured.clone() {
                self.read.insert(global.clone(), Stamp::of(&global));
                if let Some(text) = text_of(&global)? {
                    let read = self.attributes.add_last(&text);
                    read.map_err(|why| costly(&global, why))?;
                }
            }
            self.read_folder("")?;
            self.read.insert(info.clone(), Stamp::of(&info));
            if let Some(text) = text_of(&info)? {
                let read = self.attributes.add_first(&text);
                read.map_err(|why| costly(&info, why))?;
            }
            self.read.insert(config.clone(), Stamp::of(&config));
        }
        for folder in folders {
            self.read_folder(folder)?;
        }
        Ok(())
    }

    fn read_folder(&mut self, folder: &str) -> Result<(), Error> {
        let path = Path::new(folder).join(ATTRIBUTES);
        if self.read.contains_key(&path) {
            return Ok(());
        }
        let stamp = self.stamp(&path)?;
        let text = match stamp {
            Stamp::Staged(id) => {
                let blob = self.repo.find_blob(id)?;
                (blob.size() as u64 <= MAX_FILE_BYTES).then(|| blob.content().to_vec())
            }
            Stamp::File(..) => text_of(&self.root.join(&path))?,
            Stamp::Missing | Stamp::Folder(..) => None,
        };
        if let Some(text) = text {
            let read = self.attributes.add(folder, &text);
            read.map_err(|why| costly(&path, why))?;
        }
        self.read.insert(path, stamp);
        Ok(())
    }

    /// The file of a folder, or what the index has in its place.
    fn stamp(&self, path: &Path) -> Result<Stamp, Error> {
        if let Ok(found) = fs::symlink_metadata(self.root.join(path))
            && found.is_file()
        {
            return Ok(Stamp::look(&found));
        }
        let mut index = self.repo.index()?;
        index.read(false)?;
        let staged = index.get_path(path, 0);
        Ok(staged.map_or(Stamp::Missing, |entry| Stamp::Staged(entry.id)))
    }
}

/// `None` if there is no file, or one so large that git ignores it.
fn text_of(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |e: io::Error| Error::from_str(&format!("cannot read {}: {e}", path.display()));
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MAX_FILE_BYTES => {}
        Ok(_) => return Ok(None),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(failed(e)),
    }
    fs::read(path).map(Some).map_err(failed)
}

fn costly(path: &Path, why: TooCostly) -> Error {
    Error::from_str(&format!("{}: {why}", path.display()))
}
