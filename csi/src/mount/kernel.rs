//! The mounts of the Linux kernel.

use std::{io, os::fd::AsRawFd, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
        mount_bind, mount_remount, move_mount, unmount,
    },
};

use super::{Mounted, Mounts, Overlay, SOURCE, StatePlace, parse_mountinfo};

/// Mounts in the mount namespace of this process. Needs CAP_SYS_ADMIN.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    by_options: bool,
    state: Option<StatePlace>,
}

impl Kernel {
    /// Knows bind mounts of folders of that state directory, which exists and has no link in its
    /// path.
    ///
    /// # Errors
    /// The mount that the folder lies in cannot be told.
    pub fn of(state: &Path) -> io::Result<Self> {
        let folder = std::fs::File::open(state)?;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()))?;
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        let mounts = Self::default().list()?;
        let place = id.and_then(|id| StatePlace::find(state, id, &mounts));
        let place = place.ok_or_else(|| io::Error::other("its mount is not in mountinfo"))?;
        Ok(Self {
            by_options: false,
            state: Some(place),
        })
    }

    /// Mounts as kernels before 6.5 need it, on any kernel.
    pub fn old() -> Self {
        Self {
            by_options: true,
            state: None,
        }
    }
}

impl Mounts for Kernel {
    fn list(&self) -> io::Result<Vec<Mounted>> {
        // Not always UTF-8: other programs choose the paths of their mounts.
        let bytes = std::fs::read("/proc/self/mountinfo")?;
        let mut mounts = parse_mountinfo(&String::from_utf8_lossy(&bytes));
        if let Some(state) = &self.state {
            for mounted in &mut mounts {
                mounted.shown = state.shown(mounted);
            }
        }
        Ok(mounts)
    }

    fn overlay(&self, overlay: &Overlay, target: &Path) -> io::Result<()> {
        if self.by_options {
            return Ok(mount_by_options(overlay, target)?);
        }
        match mount_by_file_descriptor(overlay, target) {
            // Kernels before 6.5 take no `lowerdir+`, and before 5.2 have no fsopen at all.
            Err(Errno::INVAL | Errno::NOSYS) => mount_by_options(overlay, target)?,
            other => other?,
        }
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(mount_bind(from, to)?)
    }

    fn set_read_only(&self, target: &Path, read_only: bool) -> io::Result<()> {
        let mut flags =
            MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        flags.set(MountFlags::RDONLY, read_only);
        Ok(mount_remount(target, flags, "")?)
    }

    fn unmount(&self, target: &Path, detach: bool) -> io::Result<()> {
        let mut flags = UnmountFlags::NOFOLLOW;
        flags.set(UnmountFlags::DETACH, detach);
        Ok(unmount(target, flags)?)
    }
}

/// The options beside the folders. With `index=on` a second mount of an upper, after a crash of
/// the node, would be refused for good. `metacopy` keeps a chmod or chown of a weight file from
/// copying it, and needs `redirect_dir`; neither means anything without an upper.
fn options(overlay: &Overlay) -> Vec<(&'static str, &str)> {
    let mut options = vec![("index", "off")];
    if let Some(upper) = &overlay.upper {
        options.push(("redirect_dir", "on"));
        options.push(("metacopy", "on"));
        // Checked by Layout::new: our paths are UTF-8.
        options.push(("upperdir", upper.upper.to_str().unwrap_or_default()));
        options.push(("workdir", upper.work.to_str().unwrap_or_default()));
    }
    if let Some(context) = &overlay.context {
        options.push(("context", context));
    }
    options
}

fn mount_by_file_descriptor(overlay: &Overlay, target: &Path) -> Result<(), Errno> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", SOURCE)?;
    for lower in &overlay.lowers {
        fsconfig_set_string(&filesystem, "lowerdir+", lower)?;
    }
    for (name, value) in options(overlay) {
        fsconfig_set_string(&filesystem, name, value)?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    if overlay.upper.is_none() {
        fsconfig_set_flag(&filesystem, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&filesystem)?;
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(
        &mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn mount_by_options(overlay: &Overlay, target: &Path) -> Result<(), Errno> {
    let lowers: Vec<&str> = overlay
        .lowers
        .iter()
        .filter_map(|lower| lower.to_str())
        .collect();
    let mut data = format!("lowerdir={}", lowers.join(":"));
    for (name, value) in options(overlay) {
        // A label may hold commas.
        let quote = if name == "context" { "\"" } else { "" };
        data.extend([",", name, "=", quote, value, quote]);
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, overlay.upper.is_none());
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    mount(SOURCE, target, "overlay", flags, data.as_c_str())
}

/// Writes what the kernel holds of the filesystem at `path` to its disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    Ok(rustix::fs::fsync(folder)?)
}
