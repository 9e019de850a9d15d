//! Where everything lies below the state directory.
//!
//! | Path | Content |
//! |---|---|
//! | `store/` | contents by SHA-256, shared by all checkouts through hard links |
//! | `repositories/<hash>/git` | bare repository of pointers, for one repository of the registry |
//! | `repositories/<hash>/checkouts/<key>/` | the files of a commit; immutable |
//! | `layers/<key>/` | `.hyprstream/manifest.json` of a volume; immutable |
//! | `uses/<key>` | empty; its time is that of the last use of a checkout |
//! | `volumes/<hash>/image` | a disk of the capacity of a read-write volume |
//! | `volumes/<hash>/disk/` | where it is mounted while the volume is staged: `upper` and `work` |
//! | `journal/<hash>.json` | one entry for each volume |
//! | `adapters/<namespace>.<model>/list.json` | the adapters of a Model as the registry told them last |
//! | `adapters/<namespace>.<model>/shown/` | what the pods of the Model see |
//! | `damaged/<key>` | the first damaged file of a checkout |
//! | `scrub` | where reading the store again is |
//! | `trash/` | what is being deleted |
//! | `tmp/` | what is being built; emptied at start |

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use hyprstream_contract::{VolumeAttributes, adapters::ModelName};
use hyprstream_git2db::{CommitId, Include};
use sha2::{Digest, Sha256};

use crate::error::Error;

const ADAPTERS: &str = "adapters";
const SHOWN: &str = "shown";
const DISK: &str = "disk";

/// Name of a checkout: its repository on the registry, and its commit with the included files.
///
/// The repository is part of it so that a volume never shows what its own repository does not
/// hold. Files are shared between checkouts nevertheless, by the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckoutKey {
    repository: String,
    name: String,
}

/// Name of a manifest layer: a checkout with source and reference as the volume tells them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerKey(String);

/// The paths below one state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl CheckoutKey {
    /// The checkout that a volume with these attributes shows.
    ///
    /// # Errors
    /// An included pattern cannot be read.
    pub fn of(attributes: &VolumeAttributes) -> Result<Self, Error> {
        let include = Include::new(&attributes.include)?;
        let commit: CommitId = attributes
            .commit
            .as_str()
            .parse()
            .expect("both crates mean the same by a commit");
        Ok(Self {
            repository: short_hash([attributes.repository.as_str()]),
            name: hyprstream_git2db::checkout::key(&commit, &include),
        })
    }

    /// The checkout `name` in the folder `repository`, as they were found on disk.
    pub fn found(repository: &str, name: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Its folder below `checkouts/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of its repository below `repositories/`.
    pub fn repository(&self) -> &str {
        &self.repository
    }
}

impl LayerKey {
    /// The layer of a volume with these attributes.
    pub fn of(checkout: &CheckoutKey, attributes: &VolumeAttributes) -> Self {
        let reference = attributes.reference.as_deref().unwrap_or("");
        Self(format!(
            "{checkout}-{}",
            short_hash([attributes.source.as_str(), reference])
        ))
    }

    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CheckoutKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.repository, self.name)
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Layout {
    /// The paths below `root`, which need not exist.
    ///
    /// # Errors
    /// `root` is not absolute, or holds a character that overlayfs reads as a separator.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        let text = root.to_str().unwrap_or("\\");
        if !root.is_absolute() || text.contains([':', ',', '\\', '\n']) {
            return Err(Error::StateDir { path: root });
        }
        Ok(Self { root })
    }

    /// Makes all folders and empties `tmp/`.
    pub fn create(&self) -> Result<(), Error> {
        let tmp = self.tmp();
        match std::fs::remove_dir_all(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("empty", &tmp, e));
            }
            _ => {}
        }
        for folder in [
            self.store(),
            self.repositories(),
            self.layers(),
            self.uses(),
            self.damaged(),
            self.volumes(),
            self.adapters(),
            self.journal(),
            self.trash(),
            tmp,
        ] {
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        }
        Ok(())
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that may still be written to the disk of the state directory.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        let disk = rustix::fs::statvfs(&self.root)
            .map_err(|e| Error::io("measure", &self.root, e.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Contents by SHA-256.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// All bare repositories.
    pub fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    /// Everything of one repository: its checkouts lie in `checkouts/` below.
    pub fn repository(&self, key: &CheckoutKey) -> PathBuf {
        self.repositories().join(&key.repository)
    }

    /// The bare repository that a checkout is made from.
    pub fn bare(&self, key: &CheckoutKey) -> PathBuf {
        self.repository(key).join("git")
    }

    /// The folder of a checkout.
    pub fn checkout(&self, key: &CheckoutKey) -> PathBuf {
        self.repository(key).join("checkouts").join(&key.name)
    }

    /// The checkout whose folder this is.
    pub fn checkout_key(&self, folder: &Path) -> Option<CheckoutKey> {
        let mut parts = folder.strip_prefix(self.repositories()).ok()?.iter();
        let repository = parts.next()?.to_str()?;
        (parts.next()? == "checkouts").then_some(())?;
        let name = parts.next()?.to_str()?;
        parts
            .next()
            .is_none()
            .then(|| CheckoutKey::found(repository, name))
    }

    /// Times of last use.
    pub fn uses(&self) -> PathBuf {
        self.root.join("uses")
    }

    /// The file whose time is that of the last use of a checkout.
    pub fn last_use(&self, key: &CheckoutKey) -> PathBuf {
        self.uses().join(key.to_string())
    }

    /// Marks of damaged checkouts.
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// The file that says that a checkout is damaged, and by which file.
    pub fn damage_mark(&self, key: &CheckoutKey) -> PathBuf {
        self.damaged().join(key.to_string())
    }

    /// The file that says where reading the store again is.
    pub fn scrub_position(&self) -> PathBuf {
        self.root.join("scrub")
    }

    /// All manifest layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The folder of a manifest layer.
    pub fn layer(&self, key: &LayerKey) -> PathBuf {
        self.layers().join(key.as_str())
    }

    /// All folders of read-write volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The folder of a read-write volume.
    pub fn volume(&self, handle: &str) -> PathBuf {
        self.volumes().join(handle_hash(handle))
    }

    /// The file that holds the disk of a read-write volume.
    pub fn disk_image(&self, handle: &str) -> PathBuf {
        self.volume(handle).join("image")
    }

    /// Where that disk is mounted.
    pub fn disk(&self, handle: &str) -> PathBuf {
        self.volume(handle).join(DISK)
    }

    /// What pods wrote to a read-write volume, while its disk is mounted.
    pub fn upper(&self, handle: &str) -> PathBuf {
        self.disk(handle).join("upper")
    }

    /// The folder of the read-write volume whose disk belongs at `path`.
    pub fn disk_owner(&self, path: &Path) -> Option<PathBuf> {
        let folder = path.parent()?;
        let is_disk = path.ends_with(DISK) && folder.parent() == Some(&self.volumes());
        is_disk.then(|| folder.to_owned())
    }

    /// The folders of all Models whose adapters were shown.
    pub fn adapters(&self) -> PathBuf {
        self.root.join(ADAPTERS)
    }

    /// The folder of the adapters of a Model; its time is that of the last use. A namespace has no
    /// dot, so no two Models share one.
    pub fn adapters_of(&self, model: &ModelName) -> PathBuf {
        let name = format!("{}.{}", model.namespace(), model.model());
        self.adapters().join(name)
    }

    /// The Model whose folder of adapters this is.
    pub fn adapters_owner(&self, folder: &Path) -> Option<ModelName> {
        let name = folder.strip_prefix(self.adapters()).ok()?.to_str()?;
        name.replacen('.', "/", 1).parse().ok()
    }

    /// The list of the adapters of a Model.
    pub fn adapters_list(&self, model: &ModelName) -> PathBuf {
        self.adapters_of(model).join("list.json")
    }

    /// What pods see of the adapters of a Model.
    pub fn adapters_shown(&self, model: &ModelName) -> PathBuf {
        self.adapters_of(model).join(SHOWN)
    }

    /// All journal entries.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// What is being deleted.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// What is being built.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

/// Whether this path below a state directory is that of a folder that pods see.
pub(crate) fn is_shown(below: &Path) -> bool {
    let parts: Vec<_> = below.iter().collect();
    matches!(parts[..], [adapters, _, shown] if adapters == ADAPTERS && shown == SHOWN)
}

/// The file name for a volume handle, which may be any string.
pub fn handle_hash(handle: &str) -> String {
    hex::encode(Sha256::digest(handle.as_bytes()))
}

fn short_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::volume::VolumeMode;

    use super::*;

    fn attributes(repository: &str, include: &[&str], reference: &str) -> VolumeAttributes {
        VolumeAttributes {
            repository: repository.into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "https://example.org/m".into(),
            reference: Some(reference.into()),
            include: include.iter().map(|&i| i.to_owned()).collect(),
            mode: VolumeMode::ReadOnly,
        }
    }

    #[test]
    fn a_checkout_is_named_by_commit_repository_and_files() {
        let key = |a: &VolumeAttributes| CheckoutKey::of(a).unwrap();
        let a = attributes("mirror/1", &[], "main");
        assert!(
            key(&a)
                .name()
                .starts_with("0123456789abcdef0123456789abcdef01234567-")
        );
        assert_ne!(key(&a), key(&attributes("mirror/2", &[], "main")));
        assert_ne!(key(&a), key(&attributes("mirror/1", &["*.json"], "main")));
        assert_eq!(
            key(&attributes("mirror/1", &["a", "b"], "main")),
            key(&attributes("mirror/1", &["b", "a", "b"], "main"))
        );
        let v1 = attributes("mirror/1", &[], "v1");
        assert_eq!(key(&a), key(&v1), "the branch does not matter");
        assert_ne!(LayerKey::of(&key(&a), &a), LayerKey::of(&key(&v1), &v1));
    }

    #[test]
    fn a_folder_tells_its_checkout() {
        let layout = Layout::new("/state").unwrap();
        let key = CheckoutKey::of(&attributes("mirror/1", &[], "main")).unwrap();
        assert_eq!(
            layout.checkout_key(&layout.checkout(&key)),
            Some(key.clone())
        );
        assert_eq!(layout.checkout_key(&layout.bare(&key)), None);
        assert_eq!(
            layout.checkout_key(&layout.checkout(&key).join("sub")),
            None
        );
    }

    #[test]
    fn a_folder_of_adapters_tells_its_model() {
        let layout = Layout::new("/state").unwrap();
        for name in ["default/chat", "a/m.v1.2", "a-b/c"] {
            let model: ModelName = name.parse().unwrap();
            let folder = layout.adapters_of(&model);
            assert_eq!(layout.adapters_owner(&folder), Some(model.clone()));
            let shown = layout.adapters_shown(&model);
            assert_eq!(layout.adapters_owner(&shown), None);
            assert!(is_shown(shown.strip_prefix(layout.root()).unwrap()));
            assert!(!is_shown(folder.strip_prefix(layout.root()).unwrap()));
        }
    }

    #[test]
    fn handles_never_leave_their_folder() {
        let layout = Layout::new("/state").unwrap();
        let path = layout.volume("../../etc");
        assert_eq!(path.parent(), Some(Path::new("/state/volumes")));
        assert!(!path.to_str().unwrap().contains(".."));
    }

    #[test]
    fn a_state_directory_that_overlayfs_would_split_is_refused() {
        for wrong in ["relative", "/a:b", "/a,b", "/a\\b"] {
            assert!(Layout::new(wrong).is_err(), "{wrong}");
        }
    }
}
