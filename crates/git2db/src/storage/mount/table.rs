//! Reading `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

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
}

impl Mounted {
    /// Whether both show the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.device == other.device && self.root == other.root && self.deleted == other.deleted
    }
}

/// All mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// `/proc` cannot be read.
pub fn list() -> io::Result<Vec<Mounted>> {
    // Not always UTF-8: other programs choose the paths of their mounts.
    let bytes = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse_mountinfo(&String::from_utf8_lossy(&bytes)))
}

/// The topmost mount at `path`, if one is mounted right there.
///
/// # Errors
/// The path or `/proc` cannot be read.
pub fn mounted_at(path: &Path) -> io::Result<Option<Mounted>> {
    // Mountinfo shows paths without symbolic links.
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(list()?.into_iter().rfind(|mounted| mounted.path == path))
}

/// The mounts in the text of a `mountinfo` file; lines that cannot be read are passed over, for
/// they cannot be overlays.
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
        assert!(mounts[0].source == "hyprstream" && mounts[0].read_only);
        assert_eq!(
            mounts[0].folders,
            ["/s/layers/l", "/s/checkouts/c"].map(PathBuf::from)
        );
        assert!(mounts[1].kind == "ext4" && !mounts[1].read_only);
    }

    #[test]
    fn the_folders_of_the_older_form_are_read_too() {
        let line = "1 0 0:9 / /m ro - overlay hyprstream rw,lowerdir=/a:/b,upperdir=/u,workdir=/w";
        assert_eq!(
            parse_mountinfo(line)[0].folders,
            ["/a", "/b", "/u", "/w"].map(PathBuf::from)
        );
    }
}
