//! Objects of the store that nothing links to any more, and how much deleting would free.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use hyprstream_contract::manifest::ManifestFile;
use hyprstream_git2db::{Digest, store::ObjectStore};

use super::{Collected, Collector, children, remove_if_there, store_error};
use crate::{error::Error, fetch::Checkout, layout::Layout};

/// How long objects and parts stay that no fetch is known to want: after a restart the kubelet
/// asks for them within that time.
pub(super) const STRAY_AGE: Duration = Duration::from_mins(10);

impl Collector {
    /// Deletes objects and parts that nothing links to and no fetch wants, `min_age` after their
    /// last use.
    pub(super) fn collect_objects(
        &self,
        min_age: Duration,
        done: &mut Collected,
    ) -> Result<(), Error> {
        let checkouts = &self.volumes.checkouts;
        checkouts.collecting(|kept| self.collect_objects_but(&kept.wanted, min_age, done))
    }

    /// As [`Self::collect_objects`], whatever its age and also what failed fetches will want again.
    pub(super) fn collect_waiting_objects(&self, done: &mut Collected) -> Result<(), Error> {
        let checkouts = &self.volumes.checkouts;
        checkouts.collecting(|kept| self.collect_objects_but(&kept.running, Duration::ZERO, done))
    }

    fn collect_objects_but(
        &self,
        kept: &HashSet<Digest>,
        min_age: Duration,
        done: &mut Collected,
    ) -> Result<(), Error> {
        let store = ObjectStore::open(&self.volumes.layout.store()).map_err(store_error)?;
        let collected = store.gc(kept, min_age).map_err(store_error)?;
        done.objects += collected.files;
        done.object_bytes += collected.bytes;
        self.volumes.metrics.collected_bytes.inc_by(collected.bytes);
        Ok(())
    }

    /// Deletes those objects of a checkout that is gone to which nothing else links.
    pub(super) fn drop_objects(
        &self,
        files: &[ManifestFile],
        done: &mut Collected,
    ) -> Result<(), Error> {
        let store = ObjectStore::open(&self.volumes.layout.store()).map_err(store_error)?;
        self.volumes
            .checkouts
            .collecting(|kept| -> Result<_, Error> {
                let oids = files
                    .iter()
                    .filter_map(|file| file.sha256.parse::<Digest>().ok());
                for oid in oids {
                    if kept.wanted.contains(&oid) {
                        continue;
                    }
                    for path in names(&store, &oid) {
                        let Some(bytes) = unlinked_bytes(&path) else {
                            continue;
                        };
                        remove_if_there(&path)?;
                        done.objects += 1;
                        done.object_bytes += bytes;
                        self.volumes.metrics.collected_bytes.inc_by(bytes);
                    }
                }
                Ok(())
            })
    }
}

/// The object and its executable copy, whether or not they are there.
pub(super) fn names(store: &ObjectStore, oid: &Digest) -> [PathBuf; 2] {
    let path = store.path(oid);
    let executable = path.with_extension("x");
    [path, executable]
}

/// The size of a file that has no other link.
fn unlinked_bytes(path: &std::path::Path) -> Option<u64> {
    let found = std::fs::symlink_metadata(path).ok()?;
    (found.is_file() && found.nlink() == 1).then_some(found.len())
}

/// Bytes on the disk that deleting all of `checkouts` with their objects would free, but for
/// objects in `kept`. A file counts when the last checkout that links to it is among them.
pub(super) fn freed_bytes(checkouts: &[Checkout], kept: &HashSet<Digest>) -> u64 {
    let mut links: HashMap<(u64, u64), u64> = HashMap::new();
    let mut freed = 0;
    for checkout in checkouts {
        for file in &checkout.files {
            let Ok(found) = std::fs::symlink_metadata(checkout.path.join(&file.path)) else {
                continue;
            };
            if !found.is_file() || file.sha256.parse().is_ok_and(|oid| kept.contains(&oid)) {
                continue;
            }
            let left = links
                .entry((found.dev(), found.ino()))
                .or_insert(found.nlink());
            *left -= 1;
            // The last link but one: the last is the store's. A copy has none there.
            if *left == 1 || found.nlink() == 1 {
                freed += found.blocks() * 512;
            }
        }
    }
    freed
}

/// Bytes on the disk of objects that nothing links to, and of parts, but for those in `kept`.
pub(super) fn stray_bytes(layout: &Layout, kept: &HashSet<Digest>) -> Result<u64, Error> {
    let mut folders: Vec<PathBuf> = ["parts", "tmp", "quarantine"]
        .iter()
        .map(|name| layout.store().join(name))
        .filter(|folder| folder.is_dir())
        .collect();
    for outer in children(&layout.store().join("objects"))? {
        folders.extend(children(&outer)?);
    }
    let mut bytes = 0;
    for path in folders.iter().map(|folder| children(folder)) {
        for path in path? {
            let oid = path
                .file_stem()
                .and_then(|name| name.to_str()?.parse().ok());
            if oid.is_some_and(|oid| kept.contains(&oid)) {
                continue;
            }
            if let Ok(found) = std::fs::symlink_metadata(&path)
                && found.nlink() == 1
            {
                bytes += found.blocks() * 512;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_file_is_freed_with_the_last_checkout_that_links_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let content = vec![1; 8192];
        let oid = Digest::of(&content);
        std::fs::write(at("object"), &content).unwrap();
        let checkouts = ["a", "b"].map(|name| {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::hard_link(at("object"), at(name).join("f")).unwrap();
            let file = ManifestFile {
                path: "f".into(),
                size_bytes: 8192,
                sha256: oid.to_string(),
            };
            Checkout {
                path: at(name),
                files: vec![file],
            }
        });
        let none = HashSet::new();
        assert_eq!(freed_bytes(&checkouts[..1], &none), 0);
        assert_eq!(freed_bytes(&checkouts, &none), 8192);
        assert_eq!(freed_bytes(&checkouts, &HashSet::from([oid])), 0);
    }
}
