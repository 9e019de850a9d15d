//! LFS objects in the folder of a repository on this machine.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::LocalSource;
use crate::{
    Observer, Progress,
    lfs::{LfsError, ObjectSource, Pointer, Transfer},
    store::{ObjectStore, StoreError},
};

/// A folder of LFS objects as git-lfs keeps it, `ab/cd/<sha256>`.
#[derive(Clone, Debug)]
pub struct LocalObjects {
    pub(super) folder: PathBuf,
}

impl LocalObjects {
    fn path(&self, object: &Pointer) -> PathBuf {
        let hex = object.oid.as_str();
        self.folder.join(&hex[..2]).join(&hex[2..4]).join(hex)
    }
}

impl ObjectSource for LocalObjects {
    fn fetch(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let mut transfer = Transfer::default();
        let bytes_total = objects.iter().map(|object| object.size).sum();
        let mut bytes_done = 0;
        for object in objects {
            if observer.is_cancelled() {
                return Err(LfsError::Cancelled);
            }
            if store.size(&object.oid).map_err(LfsError::Store)? == Some(object.size) {
                store.mark_used(&object.oid);
                transfer.objects_present += 1;
            } else {
                let path = self.path(object);
                let mut file = File::open(&path).map_err(|e| LfsError::MissingObject {
                    oid: object.oid.clone(),
                    detail: format!("{}: {e}", path.display()),
                })?;
                store
                    .insert_verified(&mut file, object)
                    .map_err(LfsError::Store)?;
                transfer.objects_moved += 1;
                transfer.bytes_moved += object.size;
            }
            bytes_done += object.size;
            observer.progress(Progress::Objects {
                bytes_done,
                bytes_total,
            });
        }
        Ok(transfer)
    }
}

/// Puts objects of `store` where git-lfs looks for them in the bare repository at `bare`.
pub(crate) fn store_objects(
    objects: &[Pointer],
    store: &ObjectStore,
    target: &LocalSource,
    observer: &dyn Observer,
) -> Result<Transfer, LfsError> {
    let mut transfer = Transfer::default();
    let target = target.objects();
    for object in objects {
        if observer.is_cancelled() {
            return Err(LfsError::Cancelled);
        }
        let path = target.path(object);
        if path
            .metadata()
            .is_ok_and(|found| found.len() == object.size)
        {
            transfer.objects_present += 1;
            continue;
        }
        if store.size(&object.oid).map_err(LfsError::Store)? != Some(object.size) {
            return Err(LfsError::NotInStore {
                oid: object.oid.clone(),
            });
        }
        copy(&store.path(&object.oid), &path).map_err(|source| {
            LfsError::Store(StoreError::Io {
                act: "write",
                path: path.clone(),
                source,
            })
        })?;
        transfer.objects_moved += 1;
        transfer.bytes_moved += object.size;
    }
    Ok(transfer)
}

/// A copy that is there whole or not at all. Not a link: others may write to theirs.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let folder = to.parent().unwrap_or(to);
    crate::durable::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(&mut File::open(from)?, file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(to).map_err(|e| e.error)?;
    crate::durable::sync_dir(folder)
}
