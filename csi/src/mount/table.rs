//! Which mounts are this program's.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use hyprstream_git2db::storage::mount;

use super::SOURCE;
use crate::layout;

/// A mount as the kernel lists it, and what it shows of the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What the kernel lists.
    pub mount: mount::Mounted,
    /// The folder of adapters in the state directory that a bind mount shows.
    pub shown: Option<PathBuf>,
}

impl Deref for Mounted {
    type Target = mount::Mounted;

    fn deref(&self) -> &mount::Mounted {
        &self.mount
    }
}

impl Mounted {
    /// Whether this is an overlay or a bind mount of a folder of adapters that this program
    /// mounted, or a bind mount of one.
    pub fn is_ours(&self) -> bool {
        self.shown.is_some() || (self.kind == "overlay" && self.source == SOURCE)
    }
}

/// Where the state directory is on its filesystem, by which bind mounts of its folders are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePlace {
    folder: PathBuf,
    device: String,
    root: PathBuf,
}

impl StatePlace {
    /// The state directory `folder`, which lies in the mount `id` of `mounts`.
    pub fn find(folder: &Path, id: u64, mounts: &[Mounted]) -> Option<Self> {
        let mounted = mounts.iter().find(|mounted| mounted.id == id)?;
        let below = folder.strip_prefix(&mounted.path).ok()?;
        Some(Self {
            folder: folder.to_owned(),
            device: mounted.device.clone(),
            root: mounted.root.join(below),
        })
    }

    /// The folder of adapters that a mount shows, if it shows all of one.
    pub fn shown(&self, mounted: &Mounted) -> Option<PathBuf> {
        if mounted.device != self.device {
            return None;
        }
        let below = mounted.root.strip_prefix(&self.root).ok()?;
        layout::is_shown(below).then(|| self.folder.join(below))
    }
}

/// The mounts in the text of a `mountinfo` file.
pub fn parse_mountinfo(text: &str) -> Vec<Mounted> {
    let mounts = mount::parse_mountinfo(text).into_iter();
    mounts.map(Mounted::from).collect()
}

impl From<mount::Mounted> for Mounted {
    fn from(mount: mount::Mounted) -> Self {
        Self { mount, shown: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_ours_by_its_source() {
        let text = "36 35 0:52 / /var/lib/a\\040b rw,nosuid shared:3 master:1 - overlay hyprstream \
                    ro,lowerdir+=/s/layers/l,lowerdir+=/s/checkouts/c,index=off\n\
                    40 35 8:1 / /x rw - ext4 /dev/sda rw\n\
                    41 35 0:53 / /y rw - overlay hyprstream-worktree rw,lowerdir+=/s/c\n";
        let ours: Vec<bool> = parse_mountinfo(text).iter().map(Mounted::is_ours).collect();
        assert_eq!(ours, [true, false, false]);
    }

    #[test]
    fn a_bind_mount_of_a_folder_of_adapters_is_known_by_its_root() {
        let text = "36 35 8:1 /var/state /s rw - ext4 /dev/sda rw\n\
                    40 35 8:1 /var/state/adapters/a.m/shown /k/a\\040b ro - ext4 /dev/sda rw\n\
                    41 35 8:1 /var/state/adapters/a.m/shown//deleted /k/b ro - ext4 /dev/sda rw\n\
                    42 35 8:1 /var/state/adapters/a.m/shown/key /k/c ro - ext4 /dev/sda rw\n\
                    43 35 8:1 /var/state/adapters/a.m /k/d ro - ext4 /dev/sda rw\n\
                    44 35 8:1 /var/other/adapters/a.m/shown /k/e ro - ext4 /dev/sda rw\n\
                    45 35 8:2 /var/state/adapters/a.m/shown /k/f ro - ext4 /dev/sdb rw\n";
        let mounts = parse_mountinfo(text);
        let state = StatePlace::find(Path::new("/s"), 36, &mounts).unwrap();
        let folder = PathBuf::from("/s/adapters/a.m/shown");
        let shown: Vec<_> = mounts.iter().map(|mounted| state.shown(mounted)).collect();
        let ours = Some(folder.clone());
        assert_eq!(shown, [None, ours.clone(), ours, None, None, None, None]);
        // The state directory may be further down than its mount.
        let state = StatePlace::find(Path::new("/s/deep"), 36, &mounts).unwrap();
        assert_eq!(state.root, PathBuf::from("/var/state/deep"));
        assert_eq!(StatePlace::find(Path::new("/t"), 36, &mounts), None);
        let mut ours = mounts[1].clone();
        assert!(!ours.is_ours() && !ours.deleted && mounts[2].deleted);
        assert!(ours.is_same(&mounts[1]) && !ours.is_same(&mounts[2]));
        ours.shown = Some(folder);
        assert!(ours.is_ours());
    }
}
