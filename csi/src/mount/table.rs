//! Reading `/proc/self/mountinfo`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use super::SOURCE;

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub path: PathBuf,
    /// `major:minor` of its filesystem; mounts of one filesystem share it.
    pub device: String,
    /// Kind of the filesystem.
    pub kind: String,
    /// What was mounted, as whoever mounted it named it.
    pub source: String,
    /// Whether this mount is read-only, or its filesystem is.
    pub read_only: bool,
    /// The folders that an overlay shows or writes to.
    pub folders: Vec<PathBuf>,
}

impl Mounted {
    /// Whether this is an overlay that this program mounted, or a bind mount of one.
    pub fn is_ours(&self) -> bool {
        self.kind == "overlay" && self.source == SOURCE
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
    let mut left = left.split(' ').skip(2);
    let device = left.next()?.to_owned();
    let _root = left.next()?;
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
        path,
        device,
        kind,
        source,
        read_only,
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
}
