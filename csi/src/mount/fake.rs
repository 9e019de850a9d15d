//! Mounts in memory, for tests of what decides about mounts.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyprstream_git2db::storage::mount;
use parking_lot::Mutex;

use super::{DiskError, Mounted, Mounts, Overlay, SOURCE};

/// A kernel whose mounts outlive the processes that made them. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct FakeMounts {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    mounts: Vec<Mounted>,
    devices: u32,
    /// How many more changes succeed; every later call fails as if the process had been killed.
    changes_left: Option<u32>,
    busy: Vec<PathBuf>,
}

impl FakeMounts {
    /// Lets every call fail after `changes` changes, or none.
    pub(crate) fn kill_after(&self, changes: Option<u32>) {
        self.state.lock().changes_left = changes;
    }

    /// The node was restarted.
    pub(crate) fn reboot(&self) {
        self.state.lock().mounts.clear();
    }

    /// Lets unmounting at `path` fail unless it is detached.
    pub(crate) fn set_busy(&self, path: &Path) {
        self.state.lock().busy.push(path.to_owned());
    }

    fn change(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        match &mut state.changes_left {
            Some(0) => return Err(io::Error::other("killed")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

impl Mounts for FakeMounts {
    fn list(&self) -> io::Result<Vec<Mounted>> {
        let state = self.state.lock();
        if state.changes_left == Some(0) {
            return Err(io::Error::other("killed"));
        }
        Ok(state.mounts.clone())
    }

    fn overlay(&self, overlay: &Overlay, target: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        let upper = overlay.upper.clone();
        let in_use = |path: &PathBuf| state.mounts.iter().any(|m| m.folders.contains(path));
        if upper.as_ref().is_some_and(|upper| in_use(&upper.upper)) {
            return Err(io::Error::other("the upper is mounted twice"));
        }
        state.devices += 1;
        let mut folders = overlay.lowers.clone();
        folders.extend(
            upper
                .into_iter()
                .flat_map(|upper| [upper.upper, upper.work]),
        );
        let mounted = Mounted::from(mount::Mounted {
            id: 0,
            path: target.canonicalize()?,
            device: format!("0:{}", state.devices),
            root: "/".into(),
            kind: "overlay".into(),
            source: SOURCE.into(),
            read_only: overlay.upper.is_none(),
            deleted: false,
            folders,
        });
        state.mounts.push(mounted);
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.canonicalize()?, to.canonicalize()?);
        let mut state = self.change()?;
        let found = state
            .mounts
            .iter()
            .rfind(|mounted| mounted.path == from)
            .cloned();
        let folder = || Mounted {
            mount: mount::Mounted {
                id: 0,
                path: to.clone(),
                device: "8:1".into(),
                root: from.clone(),
                kind: "ext4".into(),
                source: "/dev/sda".into(),
                read_only: false,
                deleted: false,
                folders: vec![],
            },
            shown: Some(from.clone()),
        };
        let mut found = found.unwrap_or_else(folder);
        found.mount.path = to;
        state.mounts.push(found);
        Ok(())
    }

    fn set_read_only(&self, target: &Path, read_only: bool) -> io::Result<()> {
        let target = target.canonicalize()?;
        let mut state = self.change()?;
        let found = state
            .mounts
            .iter_mut()
            .rfind(|mounted| mounted.path == target);
        found.ok_or(io::ErrorKind::InvalidInput)?.mount.read_only = read_only;
        Ok(())
    }

    fn make_disk(&self, image: &Path, _: u64) -> Result<(), DiskError> {
        let act = || {
            let _state = self.change()?;
            std::fs::File::options()
                .append(true)
                .create(true)
                .open(image)
        };
        act().map(|_| ()).map_err(|source| DiskError::File {
            act: "write",
            path: image.to_owned(),
            source,
        })
    }

    fn disk(&self, image: &Path, target: &Path) -> Result<(), DiskError> {
        let act = || {
            let path = target.canonicalize()?;
            let mut state = self.change()?;
            state.devices += 1;
            let mounted = Mounted::from(mount::Mounted {
                id: 0,
                path,
                device: format!("7:{}", state.devices),
                root: "/".into(),
                kind: "ext4".into(),
                source: "/dev/loop".into(),
                read_only: false,
                deleted: false,
                folders: vec![],
            });
            state.mounts.push(mounted);
            Ok(())
        };
        act().map_err(|source| DiskError::Mount {
            path: image.to_owned(),
            source,
        })
    }

    fn unmount(&self, target: &Path, detach: bool) -> io::Result<()> {
        let target = target.canonicalize()?;
        let mut state = self.change()?;
        if !detach && state.busy.contains(&target) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let at = state
            .mounts
            .iter()
            .rposition(|mounted| mounted.path == target);
        state.mounts.remove(at.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}
