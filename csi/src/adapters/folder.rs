//! The folder of one Model's adapters on the disk.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyprstream_contract::adapters::{
    AdapterEntry, AdapterFolder, AdapterList, CONFIG_FILE, FOLDER_FILE, ModelName, WEIGHTS_FILE,
};
use rustix::io::Errno;

use super::failure::Failure;
use crate::{
    error::Error,
    fetch::Checkout,
    gc,
    journal::{write_durably, write_durably_by},
    layout::Layout,
    mount::sync_folder,
};

/// Where the adapters of a Model lie.
pub(super) struct Folder {
    root: PathBuf,
    shown: PathBuf,
    list: PathBuf,
}

impl Folder {
    pub(super) fn new(layout: &Layout, model: &ModelName) -> Self {
        Self {
            root: layout.adapters_of(model),
            shown: layout.adapters_shown(model),
            list: layout.adapters_list(model),
        }
    }

    /// The list that the registry said last, if it is there and sound.
    pub(super) fn read_list(&self) -> Option<AdapterList> {
        let text = match fs::read(&self.list) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(list = ?self.list, %error, "list cannot be read");
                }
                return None;
            }
        };
        let list = serde_json::from_slice::<AdapterList>(&text).map_err(|e| e.to_string());
        let list = list.and_then(|list| list.check().map(|()| list).map_err(|e| e.to_string()));
        list.inspect_err(|error| tracing::error!(list = ?self.list, error, "not a list of ours"))
            .ok()
    }

    /// Keeps the list, and makes the folder if need be. Nothing to do if it is there already.
    pub(super) fn keep_list(&self, list: &AdapterList) -> Result<(), Error> {
        self.make(&self.shown)?;
        let text = serde_json::to_vec(list).expect("a list is JSON");
        if fs::read(&self.list).is_ok_and(|there| there == text) {
            return Ok(());
        }
        write_durably(&self.list, &text)
    }

    /// Says what is in the folder, unless it says just that.
    pub(super) fn tell(&self, content: &AdapterFolder) -> Result<(), Error> {
        let path = self.shown.join(FOLDER_FILE);
        let mut text = serde_json::to_vec_pretty(content).expect("a folder is JSON");
        text.push(b'\n');
        if fs::read(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // Pods never see the new file before it is whole.
        write_durably_by(&self.root.join("adapters.new"), &path, &text)
    }

    /// Whether both files of the adapter are there.
    pub(super) fn has(&self, folder: &str) -> bool {
        let folder = self.shown.join(folder);
        [WEIGHTS_FILE, CONFIG_FILE]
            .iter()
            .all(|name| folder.join(name).is_file())
    }

    /// Shows the two files of an adapter, which are in the checkout.
    pub(super) fn link(&self, entry: &AdapterEntry, checkout: &Checkout) -> Result<(), Failure> {
        let files = [(&entry.weights, WEIGHTS_FILE), (&entry.config, CONFIG_FILE)];
        let mut found = Vec::new();
        for (path, name) in files {
            let file = find(checkout, path).ok_or_else(|| Failure::no_file(path))?;
            found.push((file, name));
        }
        self.link_files(&entry.folder(), &found)
            .map_err(|error| Failure::from(&error))
    }

    fn link_files(&self, folder: &str, files: &[(PathBuf, &str)]) -> Result<(), Error> {
        let folder = self.shown.join(folder);
        self.make(&folder)?;
        for (from, name) in files {
            let to = folder.join(name);
            place(from, &to, &self.root.join("file.new")).map_err(|e| Error::io("link", &to, e))?;
        }
        sync_folder(&folder).map_err(|e| Error::io("sync", &folder, e))
    }

    /// Removes what no list has named for `linger`; `unnamed` remembers since when.
    pub(super) fn sweep(
        &self,
        named: &HashSet<String>,
        unnamed: &mut HashMap<String, Instant>,
        linger: Duration,
    ) -> Result<(), Error> {
        unnamed.retain(|folder, _| !named.contains(folder));
        for path in gc::children(&self.shown)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !path.is_dir() || named.contains(&*name) {
                continue;
            }
            let since = *unnamed
                .entry(name.clone().into_owned())
                .or_insert_with(Instant::now);
            if since.elapsed() < linger {
                continue;
            }
            fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
            unnamed.remove(&*name);
        }
        Ok(())
    }

    /// Takes away the files with one of these inodes. Returns how many.
    pub(super) fn unlink(&self, inodes: &HashSet<(u64, u64)>) -> Result<usize, Error> {
        let mut removed = 0;
        let folders = match gc::children(&self.shown) {
            Ok(folders) => folders,
            Err(_) if !self.shown.exists() => return Ok(0),
            Err(error) => return Err(error),
        };
        for folder in folders {
            for name in [WEIGHTS_FILE, CONFIG_FILE] {
                let path = folder.join(name);
                if inode(&path).is_some_and(|inode| inodes.contains(&inode)) {
                    fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Makes a folder that pods may enter, and those above it.
    fn make(&self, path: &Path) -> Result<(), Error> {
        if path.is_dir() {
            return Ok(());
        }
        let make = || -> io::Result<()> {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
            path.parent().map_or(Ok(()), sync_folder)
        };
        make().map_err(|e| Error::io("create", path, e))?;
        sync_folder(&self.root).map_err(|e| Error::io("sync", &self.root, e))
    }
}

/// Device and inode of what is at `path`.
pub(super) fn inode(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// The file that the checkout has at `path`, which may be a link to another of its files.
fn find(checkout: &Checkout, path: &str) -> Option<PathBuf> {
    let root = checkout.path.canonicalize().ok()?;
    let file = root.join(path).canonicalize().ok()?;
    (file.starts_with(&root) && file.is_file()).then_some(file)
}

/// Puts the file `from` at `to` as well, in place of what is there; by way of `new`.
fn place(from: &Path, to: &Path, new: &Path) -> io::Result<()> {
    if inode(to).is_some_and(|there| inode(from) == Some(there)) {
        return Ok(());
    }
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(from, new) {
        Ok(()) => {}
        // Another filesystem, or no links left: ext4 has 65,000 per file.
        Err(error) if needs_copy(&error) => copy(from, new).inspect_err(|_| {
            let _ = fs::remove_file(new);
        })?,
        Err(error) => return Err(error),
    }
    fs::rename(new, to)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut source, &mut target)?;
    }
    target.set_permissions(Permissions::from_mode(0o444))?;
    target.sync_all()
}

fn needs_copy(error: &io::Error) -> bool {
    let codes = [Errno::XDEV, Errno::MLINK, Errno::PERM, Errno::OPNOTSUPP];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_linked_or_copied_in_place_of_what_is_there() {
        let here = tempfile::tempdir().unwrap();
        let at = |name: &str| here.path().join(name);
        fs::write(at("from"), "new").unwrap();
        fs::write(at("to"), "old").unwrap();
        // Left by a kill.
        fs::write(at("file.new"), "half").unwrap();
        let open = File::open(at("to")).unwrap();
        for _ in 0..2 {
            place(&at("from"), &at("to"), &at("file.new")).unwrap();
            assert_eq!(inode(&at("from")), inode(&at("to")));
            assert!(!at("file.new").exists());
        }
        assert_eq!(
            open.metadata().unwrap().nlink(),
            0,
            "who has the old one open keeps it"
        );

        let Ok(there) = tempfile::tempdir_in("/dev/shm") else {
            return;
        };
        let other = there.path().join("from");
        fs::write(&other, "copy").unwrap();
        place(&other, &at("to"), &at("file.new")).unwrap();
        assert_eq!(fs::read_to_string(at("to")).unwrap(), "copy");
        assert_eq!(fs::read_to_string(at("from")).unwrap(), "new");
        assert!(!at("file.new").exists());
    }

    #[test]
    fn a_link_that_leads_out_of_the_checkout_is_no_file_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("checkout/sub")).unwrap();
        fs::write(at("secret"), "x").unwrap();
        fs::write(at("checkout/sub/real"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", at("checkout/out")).unwrap();
        std::os::unix::fs::symlink("sub/real", at("checkout/in")).unwrap();
        let checkout = Checkout {
            path: at("checkout"),
            files: vec![],
        };
        for absent in ["out", "sub", "absent", "../secret"] {
            assert_eq!(find(&checkout, absent), None, "{absent}");
        }
        for there in ["in", "sub/real"] {
            let found = find(&checkout, there).unwrap();
            assert!(found.ends_with("checkout/sub/real"), "{found:?}");
        }
    }
}
