//! Where things lie below the registry's root.
//!
//! ```text
//! store/                      contents by SHA-256, shared by all repositories
//! git/<namespace>/<name>.git  pushed repositories
//! mirror/<id>.git             copies of upstreams
//! <repository>.git/hyprstream/lfs/ab/cd/<sha256>
//!                             hard links to the contents that the repository may give away
//! <repository>.git/hyprstream/parts/<sha256>
//!                             what came of uploads that broke off
//! <repository>.git/hyprstream/lost/<sha256>
//!                             notes of members whose bytes went bad on the disk
//! <repository>.git/hyprstream/let-go/<sha256>
//!                             why members were let go
//! <repository>.git/hyprstream/pins/<commit>
//!                             its modification time is when the commit was last asked for
//! <repository>.git/hyprstream/damaged
//!                             note that git objects went bad
//! mirror/<id>.git/hyprstream/accepted/<id>
//!                             which credentials the upstream has accepted
//! mirror/<id>.git/hyprstream/readers
//!                             who may read the mirror
//! mirror/<id>.git/hyprstream/used
//!                             its modification time is the last use of the mirror
//! adapters/<namespace>/<model>.json
//!                             which adapters the workers of a Model have
//! empty.git                   advertised for a repository that a push is about to make
//! quarantine/                 contents that went bad, by the SHA-256 that they had
//! audit/audit.jsonl           who changed what, and who was not let
//! protection/<namespace>.json   which refs of its repositories are protected
//! <repository>.git/hyprstream/protection.json
//!                             which refs of one repository are
//! scrub                       where reading everything again is; there only during a reading
//! collect-objects             note that contents without a repository are to be removed
//! tmp/  trash/                being made, being removed
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hyprstream_git2db::{
    Digest, RepoError,
    repo::init_bare,
    store::{ObjectStore, StoreError},
};

use crate::names::Repository;

/// The folders of one registry.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    store: ObjectStore,
}

/// The root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A folder cannot be made.
    #[error("cannot make folder {path}")]
    MakeFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object store cannot be opened.
    #[error("cannot open the object store")]
    Store(#[source] StoreError),
    /// The empty repository cannot be made.
    #[error("cannot make the empty repository")]
    Empty(#[source] RepoError),
}

/// A repository could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("cannot initialise a repository")]
    Init(#[source] RepoError),
    #[error("cannot put a new repository into place at {path}")]
    Place { path: PathBuf, source: io::Error },
}

impl Layout {
    /// Opens the root, and makes what is missing in it.
    pub(crate) fn open(root: &Path) -> Result<Self, LayoutError> {
        for folder in ["git", "mirror", "tmp", "trash"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(|source| LayoutError::MakeFolder { path, source })?;
        }
        let store = ObjectStore::open(&root.join("store")).map_err(LayoutError::Store)?;
        let layout = Self {
            root: root.to_owned(),
            store,
        };
        init_bare(&layout.empty_repository()).map_err(LayoutError::Empty)?;
        quieten(&layout.empty_repository()).map_err(|source| LayoutError::MakeFolder {
            path: layout.empty_repository(),
            source,
        })?;
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn store(&self) -> &ObjectStore {
        &self.store
    }

    pub(crate) fn empty_repository(&self) -> PathBuf {
        self.root.join("empty.git")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Where the repository lies, whether or not it is there.
    pub(crate) fn repository(&self, repository: &Repository) -> PathBuf {
        self.root.join(format!("{repository}.git"))
    }

    pub(crate) fn exists(&self, repository: &Repository) -> bool {
        self.repository(repository).join("HEAD").is_file()
    }

    /// Makes the repository if it is not there. Several callers at once are fine.
    pub(crate) fn create(&self, repository: &Repository) -> Result<PathBuf, CreateError> {
        if !self.exists(repository) {
            let (_aside, made) = self.aside(repository)?;
            // If another request was faster, that one's is as good.
            self.place(&made, repository)?;
        }
        Ok(self.repository(repository))
    }

    /// Makes an empty repository that has no place yet, in a folder that goes with the value.
    pub(crate) fn aside(
        &self,
        repository: &Repository,
    ) -> Result<(tempfile::TempDir, PathBuf), CreateError> {
        let place = |source| CreateError::Place {
            path: self.repository(repository),
            source,
        };
        let aside = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(self.tmp())
            .map_err(place)?;
        let made = aside.path().join("repository.git");
        init_bare(&made).map_err(CreateError::Init)?;
        if matches!(repository, Repository::Pushed { .. }) {
            quieten(&made).map_err(place)?;
        }
        fs::create_dir_all(made.join("hyprstream/lfs")).map_err(place)?;
        Ok((aside, made))
    }

    /// Puts a repository into its place, durably. `false` if there is one.
    pub(crate) fn place(&self, made: &Path, repository: &Repository) -> Result<bool, CreateError> {
        let path = self.repository(repository);
        let place = |source| CreateError::Place {
            path: path.clone(),
            source,
        };
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(place)?;
        match fs::rename(made, &path) {
            Ok(()) => {
                sync_folders(parent, &self.root).map_err(place)?;
                Ok(true)
            }
            // Another request was faster; a repository is never empty, so that it was not replaced.
            Err(_) if self.exists(repository) => Ok(false),
            // What is left of one that was removed while something was written to it.
            Err(error) if path.is_dir() => {
                tracing::warn!(%repository, %error, "replacing what is left of a repository");
                let trash = tempfile::Builder::new()
                    .prefix("rest-")
                    .tempdir_in(self.trash())
                    .map_err(place)?;
                fs::rename(&path, trash.path().join("repository.git")).map_err(place)?;
                fs::rename(made, &path).map_err(place)?;
                sync_folders(parent, &self.root).map_err(place)?;
                Ok(true)
            }
            Err(source) => Err(place(source)),
        }
    }

    /// Where it is noted that the bytes of a member went bad, whether or not they did.
    pub(crate) fn lost(&self, repository: &Repository, oid: &Digest) -> PathBuf {
        let folder = self.repository(repository).join("hyprstream/lost");
        folder.join(oid.as_str())
    }

    /// Where it is noted why a member was let go, whether or not one was.
    pub(crate) fn let_go(&self, repository: &Repository, oid: &Digest) -> PathBuf {
        let folder = self.repository(repository).join("hyprstream/let-go");
        folder.join(oid.as_str())
    }

    /// What notes how far reading everything again has come.
    pub(crate) fn scrub_position(&self) -> PathBuf {
        self.root.join("scrub")
    }

    /// Where the repository's own name of an object lies, whether or not it is there. Only what
    /// lies there is given to readers of the repository.
    pub(crate) fn member(&self, repository: &Repository, oid: &Digest) -> PathBuf {
        let hex = oid.as_str();
        let folder = self.repository(repository).join("hyprstream/lfs");
        folder.join(&hex[..2]).join(&hex[2..4]).join(hex)
    }

    /// The size in bytes of an object that the repository has.
    pub(crate) fn member_size(
        &self,
        repository: &Repository,
        oid: &Digest,
    ) -> io::Result<Option<u64>> {
        match fs::metadata(self.member(repository, oid)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the repository an object of the store; nothing to do if it has it.
    ///
    /// # Errors
    /// `NotFound` if the store does not have it, or the repository is gone.
    pub(crate) fn add_member(&self, repository: &Repository, oid: &Digest) -> io::Result<()> {
        let (source, link) = (self.store.path(oid), self.member(repository, oid));
        let folder = link.parent().unwrap_or(&self.root);
        // Not those above: a repository that was just removed must not come back as half of one.
        for folder in [folder.parent().unwrap_or(folder), folder] {
            make_folder(folder)?;
        }
        let linked = self.link_member(repository, &source, &link, folder);
        if linked.is_ok() {
            let _ = fs::remove_file(self.lost(repository, oid));
            let _ = fs::remove_file(self.let_go(repository, oid));
        }
        linked
    }

    fn link_member(
        &self,
        repository: &Repository,
        source: &Path,
        link: &Path,
        folder: &Path,
    ) -> io::Result<()> {
        match self.second_name(source, link) {
            Ok(_) => sync_folders(folder, &self.repository(repository)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lets a file be found under a second name too; the folder is not synced. Returns its size in
    /// bytes.
    pub(crate) fn second_name(&self, file: &Path, name: &Path) -> io::Result<u64> {
        match fs::hard_link(file, name) {
            // Some file systems allow no further links to a much used file: then a copy.
            Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
                let mut copy = tempfile::NamedTempFile::new_in(self.tmp())?;
                io::copy(&mut fs::File::open(file)?, copy.as_file_mut())?;
                copy.as_file().sync_all()?;
                copy.persist(name).map_err(|error| error.error)?;
            }
            linked => linked?,
        }
        fs::metadata(name).map(|metadata| metadata.len())
    }
}

/// Makes one folder; fine if it is there.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Makes new names in `folder` and in those above it, up to `top`, outlive a loss of power.
pub(crate) fn sync_folders(folder: &Path, top: &Path) -> io::Result<()> {
    for folder in folder
        .ancestors()
        .take_while(|folder| folder.starts_with(top))
    {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Takes a setting of libgit2 out of a repository that only git writes: git has another of its
/// own, and would warn everyone who pushes about the old one.
fn quieten(repository: &Path) -> io::Result<()> {
    let path = repository.join("config");
    let config = fs::read_to_string(&path)?;
    let lines = config
        .lines()
        .filter(|line| !line.to_lowercase().contains("fsyncobjectfiles"));
    fs::write(
        &path,
        lines.fold(String::new(), |text, line| text + line + "\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(name: &str) -> Repository {
        Repository::Pushed {
            namespace: "a".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    #[test]
    fn many_creators_of_one_repository_all_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| layout.create(&pushed("m")).unwrap());
            }
        });
        assert!(layout.exists(&pushed("m")));
        assert_eq!(fs::read_dir(layout.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn an_object_of_the_store_belongs_to_a_repository_only_once_given() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let oid = layout.store().insert_bytes(b"weights").unwrap();
        for name in ["m", "n"] {
            layout.create(&pushed(name)).unwrap();
            assert_eq!(layout.member_size(&pushed(name), &oid).unwrap(), None);
        }
        layout.add_member(&pushed("m"), &oid).unwrap();
        layout.add_member(&pushed("m"), &oid).unwrap();
        assert_eq!(layout.member_size(&pushed("m"), &oid).unwrap(), Some(7));
        assert_eq!(layout.member_size(&pushed("n"), &oid).unwrap(), None);
        let missing = Digest::of(b"other");
        let error = layout.add_member(&pushed("m"), &missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
