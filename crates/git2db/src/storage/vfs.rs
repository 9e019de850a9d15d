//! Views without mounts: each file is a reflink, else a copy, of the checkout's.

use std::{
    ffi::OsString,
    fs::{self, File, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, syncfs, utimensat};

use super::{
    Driver, Kind, StorageError, View, check_free, io_error, make_folder, remove_empty,
    remove_folder,
};

/// Reflinks where the file system has them, which share bytes until they are written to; else
/// copies. A view that is only read is made of hard links, on any file system.
///
/// Works everywhere and needs no rights. Built aside, synced and renamed, so that no half of it is
/// seen.
#[derive(Clone, Copy, Debug)]
pub struct Vfs;

/// What is noted of a view in its private folder.
const MADE: &str = "made";

impl Driver for Vfs {
    fn kind(&self) -> Kind {
        Kind::Vfs
    }

    fn is_mount(&self) -> bool {
        false
    }

    fn create(&self, view: &View<'_>) -> Result<(), StorageError> {
        check_free(view.target)?;
        let aside = aside(view.target);
        // Of a maker that was killed.
        remove_folder(&aside)?;
        if let Some(above) = view.target.parent() {
            make_folder(above)?;
        }
        let mut copier = Copier {
            writable: view.writable,
            reflinks: true,
        };
        make_folder(view.private)?;
        let built = copier.folder(view.base, &aside, Some(view)).and_then(|()| {
            File::open(&aside)
                .and_then(|folder| Ok(syncfs(folder)?))
                .map_err(|e| io_error("sync", &aside, e))?;
            fs::rename(&aside, view.target).map_err(|e| io_error("rename to", view.target, e))
        });
        if built.is_err() {
            // The first error says what went wrong; `remove` tries again.
            let _ = remove_folder(&aside);
        }
        built
    }

    fn is_shown(&self, view: &View<'_>) -> Result<bool, StorageError> {
        Ok(view.target.is_dir())
    }

    fn show(&self, view: &View<'_>) -> Result<(), StorageError> {
        if self.is_shown(view)? {
            return Ok(());
        }
        Err(StorageError::Lost {
            target: view.target.to_owned(),
            missing: view.target.to_owned(),
        })
    }

    /// The files are the view: there is nothing to take away without losing it.
    fn hide(&self, _view: &View<'_>) -> Result<(), StorageError> {
        Ok(())
    }

    fn remove(&self, view: &View<'_>) -> Result<(), StorageError> {
        remove_folder(&aside(view.target))?;
        // What somebody else put there is not ours to remove.
        let removed = if is_made(view)? {
            remove_folder(view.target)
        } else {
            remove_empty(view.target)
        };
        if let Err(error) = &removed
            && !matches!(error, StorageError::Occupied { .. })
        {
            return removed;
        }
        remove_folder(view.private)?;
        removed
    }
}

/// Where a view is built: beside it, for a rename, and by a name that is found after a kill.
fn aside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".hyprstream-new");
    target.with_file_name(name)
}

/// Notes which folder is about to become the view, which is known by its inode after a kill.
fn note(view: &View<'_>, folder: &Path) -> io::Result<()> {
    let inode = fs::metadata(folder)?.ino();
    fs::write(view.private.join(MADE), inode.to_string())
}

/// Whether the folder at the target is the one that was noted.
fn is_made(view: &View<'_>) -> Result<bool, StorageError> {
    let path = view.private.join(MADE);
    let noted = match fs::read_to_string(&path) {
        Ok(noted) => noted,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_error("read", &path, error)),
    };
    Ok(fs::symlink_metadata(view.target).is_ok_and(|found| found.ino().to_string() == noted))
}

struct Copier {
    writable: bool,
    /// Until the file system says that it has none.
    reflinks: bool,
}

impl Copier {
    /// Copies a folder; the one that is to be `root`'s target is noted first.
    fn folder(
        &mut self,
        from: &Path,
        to: &Path,
        root: Option<&View<'_>>,
    ) -> Result<(), StorageError> {
        fs::create_dir(to).map_err(|e| io_error("create folder", to, e))?;
        if let Some(view) = root {
            note(view, to).map_err(|e| io_error("note", to, e))?;
        }
        let failed = |e| io_error("list", from, e);
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                self.folder(&source, &target, None)?;
            } else if kind.is_symlink() {
                link(&source, &target).map_err(|e| io_error("copy to", &target, e))?;
            } else if !self.writable && fs::hard_link(&source, &target).is_ok() {
                // Nobody writes to it, and the checkout's modes are those of reading.
            } else {
                self.file(&source, &target)
                    .map_err(|e| io_error("copy to", &target, e))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut source = File::open(from)?;
        let found = source.metadata()?;
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        if self.reflinks {
            self.reflinks = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        }
        if !self.reflinks {
            io::copy(&mut source, &mut target)?;
        }
        let writable = if self.writable { 0o200 } else { 0 };
        let mode = found.permissions().mode() & 0o777 | writable;
        target.set_permissions(Permissions::from_mode(mode))?;
        // git knows an unchanged file by its time; the checkout's is older than any change.
        target.set_times(FileTimes::new().set_modified(found.modified()?))
    }
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    symlink(fs::read_link(from)?, to)?;
    let found = fs::symlink_metadata(from)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: found.mtime(),
            tv_nsec: found.mtime_nsec(),
        },
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
