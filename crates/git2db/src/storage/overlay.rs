//! Views by the kernel's overlay: the checkout below, a private folder above.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    Driver, Kind, StorageError, View, check_free, io_error, make_folder,
    mount::{self, How, Mounted, Overlay, Upper, mounted_at},
    remove_empty, remove_folder,
};

/// Mounts of the kernel's overlay. Needs CAP_SYS_ADMIN, if only in a user namespace.
///
/// Nothing is copied when a view is made; a file is when it is first written to. In a user
/// namespace (`unshare --user --map-root-user --mount`) a view is seen by the processes of that
/// namespace alone and ends with the last of them; what was written stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overlay2 {
    how: How,
}

/// What mountinfo shows of who mounted a view. Another name than the node plugin's, which unmounts
/// what it does not know.
const SOURCE: &str = "hyprstream-worktree";

impl Overlay2 {
    /// Mounts in that way, if not by the first that works.
    pub fn new(how: How) -> Self {
        Self { how }
    }

    fn mount(self, view: &View<'_>) -> io::Result<()> {
        let asked = overlay(view);
        let mount = |how| mount::overlay(&asked, view.target, SOURCE, how);
        match mount(self.how) {
            // The trusted attributes are not ours to write in a user namespace.
            Err(error)
                if !self.how.user_attributes && error.kind() == io::ErrorKind::PermissionDenied =>
            {
                let how = How {
                    user_attributes: true,
                    ..self.how
                };
                mount(how).map_err(|_| error)
            }
            other => other,
        }
    }
}

impl Driver for Overlay2 {
    fn kind(&self) -> Kind {
        Kind::Overlay2
    }

    fn is_mount(&self) -> bool {
        true
    }

    fn create(&self, view: &View<'_>) -> Result<(), StorageError> {
        prepare(view)?;
        self.show(view)
    }

    fn is_shown(&self, view: &View<'_>) -> Result<bool, StorageError> {
        Ok(own_mount(view, |found| {
            found.kind == "overlay" && found.source == SOURCE
        })?
        .is_some())
    }

    fn show(&self, view: &View<'_>) -> Result<(), StorageError> {
        if self.is_shown(view)? {
            return Ok(());
        }
        check_kept(view)?;
        self.mount(view).map_err(|source| StorageError::Mount {
            kind: Kind::Overlay2,
            target: view.target.to_owned(),
            source,
        })
    }

    fn hide(&self, view: &View<'_>) -> Result<(), StorageError> {
        while self.is_shown(view)? {
            mount::unmount(view.target, false).map_err(|e| unmount_error(view.target, e))?;
        }
        Ok(())
    }

    fn remove(&self, view: &View<'_>) -> Result<(), StorageError> {
        self.hide(view)?;
        remove_folder(view.private)?;
        remove_empty(view.target)
    }
}

/// What is mounted for the view. Without an upper the kernel wants two lowers.
fn overlay(view: &View<'_>) -> Overlay {
    let [upper, work] = folders(view);
    let (lowers, upper) = if view.writable {
        (vec![view.base.to_owned()], Some(Upper { upper, work }))
    } else {
        (vec![upper, view.base.to_owned()], None)
    };
    Overlay {
        lowers,
        upper,
        context: None,
    }
}

/// Where the written files of a view lie, and the scratch folder beside them.
pub(super) fn folders(view: &View<'_>) -> [PathBuf; 2] {
    [view.private.join("upper"), view.private.join("work")]
}

/// Makes the folders that a mount needs.
pub(super) fn prepare(view: &View<'_>) -> Result<(), StorageError> {
    check_free(view.target)?;
    for folder in &folders(view) {
        check_free(folder)?;
        make_folder(folder)?;
    }
    make_folder(view.target)
}

/// Whether what was written is still there. Where it is mounted is made again.
pub(super) fn check_kept(view: &View<'_>) -> Result<(), StorageError> {
    let [upper, work] = folders(view);
    for needed in [view.base, &upper] {
        if !needed.is_dir() {
            return Err(StorageError::Lost {
                target: view.target.to_owned(),
                missing: needed.to_owned(),
            });
        }
    }
    // What somebody put there while nothing was mounted would be hidden.
    check_free(view.target)?;
    make_folder(&work)?;
    make_folder(view.target)
}

/// The mount at the view's target that `is_ours`; an error if there is another.
pub(super) fn own_mount(
    view: &View<'_>,
    is_ours: impl FnOnce(&Mounted) -> bool,
) -> Result<Option<Mounted>, StorageError> {
    let found =
        mounted_at(view.target).map_err(|e| io_error("find the mount at", view.target, e))?;
    match found {
        Some(found) if !is_ours(&found) => Err(StorageError::ForeignMount {
            target: view.target.to_owned(),
            found: found.kind,
        }),
        other => Ok(other),
    }
}

pub(super) fn unmount_error(target: &Path, source: io::Error) -> StorageError {
    if source.kind() == io::ErrorKind::ResourceBusy {
        let target = target.to_owned();
        return StorageError::Busy { target };
    }
    io_error("unmount", target, source)
}
