//! The mounts of the Linux kernel.

use std::{io, os::fd::AsRawFd, path::Path};

use hyprstream_git2db::storage::{disk, mount};
use rustix::fs::{Mode, OFlags};

use super::{DiskError, Mounted, Mounts, Overlay, SOURCE, StatePlace};

/// Mounts in the mount namespace of this process. Needs CAP_SYS_ADMIN.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    how: mount::How,
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
            how: mount::How::default(),
            state: Some(place),
        })
    }

    /// Mounts as kernels before 6.5 need it, on any kernel.
    pub fn old() -> Self {
        Self {
            how: mount::How {
                by_options: true,
                ..mount::How::default()
            },
            state: None,
        }
    }
}

impl Mounts for Kernel {
    fn list(&self) -> io::Result<Vec<Mounted>> {
        let mut mounts: Vec<Mounted> = mount::list()?.into_iter().map(Mounted::from).collect();
        if let Some(state) = &self.state {
            for mounted in &mut mounts {
                mounted.shown = state.shown(mounted);
            }
        }
        Ok(mounts)
    }

    fn overlay(&self, overlay: &Overlay, target: &Path) -> io::Result<()> {
        mount::overlay(overlay, target, SOURCE, self.how)
    }

    fn bind(&self, from: &Path, to: &Path) -> io::Result<()> {
        mount::bind(from, to)
    }

    fn set_read_only(&self, target: &Path, read_only: bool) -> io::Result<()> {
        mount::set_read_only(target, read_only)
    }

    fn make_disk(&self, image: &Path, bytes: u64) -> Result<(), DiskError> {
        disk::make(image, bytes)
    }

    fn disk(&self, image: &Path, target: &Path) -> Result<(), DiskError> {
        disk::mount(image, target)
    }

    fn unmount(&self, target: &Path, detach: bool) -> io::Result<()> {
        mount::unmount(target, detach)
    }
}

/// Writes what the kernel holds of the filesystem at `path` to its disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    Ok(rustix::fs::fsync(folder)?)
}
