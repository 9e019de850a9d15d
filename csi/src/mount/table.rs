//! Reading `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::SOURCE;
use crate::layout;

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What the kernel calls it, while it lives.
    pub id: u64,
    /// Where it is.
    pub path: PathBuf,
    /// `major:minor` of its filesystem; mounts of one filesystem share it.
    pub device: String,
    /// Which folder of its filesystem it shows.
    pub root: PathBuf,
    /// Kind of the filesystem.
    pub kind: String,
    /// What was mounted, as whoever mounted it named it.
    pub source: String,
    /// Whether this mount is read-only, or its filesystem is.
    pub read_only: bool,
    /// Whether the folder that it shows was removed.
    pub deleted: bool,
    /// The folders that an overlay shows or writes to.
    pub folders: Vec<PathBuf>,
    /// The folder of adapters in the state directory that a bind mount shows.
    pub shown: Option<PathBuf>,
}

impl Mounted {
    /// Whether this is an overlay or a bind mount of a folder of adapters that this program
    /// mounted, or a bind mount of one.
    pub fn is_ours(&self) -> bool {
        self.shown.is_some() || (self.kind == "overlay" && self.source == SOURCE)
    }

    /// Whether both show the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.device == other.device && self.root == other.root && self.deleted == other.deleted
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

/// The mounts in the text of a `mountinfo` file; lines that cannot be read are passed over, for
/// they cannot be ours.
pub fn parse_mountinfo(text: &str) -> Vec<Mounted> {
    text.lines().filter_map(parse_line).collect()
}

// proc_pid_mountinfo(5):
// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let id = left.next()?.parse().ok()?;
    let _parent = left.next()?;
    let device = left.next()?.to_owned();
    let root = left.next()?;
    let removed = root.strip_suffix("//deleted");
    let (deleted, root) = (removed.is_some(), unescape(removed.unwrap_or(root)));
    let path = unescape(left.next()?);
    let options = left.next()?;
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let source = right.next()?.to_owned();
    let filesystem = right.next().unwrap_or("");
    let read_only = [options, filesystem]
        .iter()
        .any(|o| o.split(',').any(|o| o == "ro"));
    let folders = if kind == "overlay" {
        overlay_folders(filesystem)
    } else {
        Vec::new()
    };
    Some(Mounted {
        id,
        path,
        device,
        root,
        kind,
        source,
        read_only,
        deleted,
        folders,
        shown: None,
    })
}

fn overlay_folders(options: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for option in options.split(',') {
        let Some((name, value)) = option.split_once('=') else {
            continue;
        };
        match name {
            "lowerdir" => folders.extend(value.split(':').filter(|v| !v.is_empty()).map(unescape)),
            "lowerdir+" | "upperdir" | "workdir" => folders.push(unescape(value)),
            _ => {}
        }
    }
    folders
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let (byte, length) = octal.map_or((bytes[at], 1), |byte| (byte, 4));
        out.push(byte);
        at += length;
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_optional_fields_and_escapes() {
        let text = "36 35 0:52 / /var/lib/a\\040b rw,nosuid shared:3 master:1 - overlay hyprstream \
                    ro,lowerdir+=/s/layers/l,lowerdir+=/s/checkouts/c,index=off\n\
                    nonsense\n\
                    40 35 8:1 / /x rw - ext4 /dev/sda rw\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].path, PathBuf::from("/var/lib/a b"));
        assert_eq!(mounts[0].device, "0:52");
        assert!(mounts[0].is_ours() && mounts[0].read_only);
        assert_eq!(
            mounts[0].folders,
            ["/s/layers/l", "/s/checkouts/c"].map(PathBuf::from)
        );
        assert!(!mounts[1].is_ours() && !mounts[1].read_only);
    }

    #[test]
    fn the_folders_of_the_older_form_are_read_too() {
        let line = "1 0 0:9 / /m ro - overlay hyprstream rw,lowerdir=/a:/b,upperdir=/u,workdir=/w";
        assert_eq!(
            parse_mountinfo(line)[0].folders,
            ["/a", "/b", "/u", "/w"].map(PathBuf::from)
        );
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
