//! What the kernel notes in an upper about what lies below.

use std::{
    fs::Metadata, io, os::unix::fs::FileTypeExt as _, os::unix::fs::MetadataExt as _, path::Path,
};

use rustix::{
    fs::{lgetxattr, lremovexattr},
    io::Errno,
};

use super::Upper;
use crate::commit::CommitError;

/// Longer than any path that the kernel writes down.
const LONGEST_BYTES: usize = 4096;
/// An attribute that nothing has.
const NOTHING: &str = "trusted.hyprstream.nothing";

/// Whether a file says that there is none of its name.
pub(super) fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

/// Whether a folder hides the one below it.
pub(super) fn is_opaque(upper: &Upper<'_>, path: &Path) -> io::Result<bool> {
    Ok(note(upper, path, "opaque")?.as_deref() == Some(b"y"))
}

/// Whether the content of a file lies below.
pub(super) fn is_without_content(upper: &Upper<'_>, path: &Path) -> io::Result<bool> {
    Ok(note(upper, path, "metacopy")?.is_some())
}

/// Where something was before it was moved: from the root, if that begins with a slash, or else in
/// the folder below its own.
pub(super) fn moved_from(upper: &Upper<'_>, path: &Path) -> io::Result<Option<String>> {
    let Some(bytes) = note(upper, path, "redirect")? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| io::Error::other("the name that it was moved from is not UTF-8"))
}

fn note(upper: &Upper<'_>, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let namespace = if upper.user_attributes {
        "user"
    } else {
        "trusted"
    };
    let mut value = vec![0; LONGEST_BYTES];
    match lgetxattr(path, format!("{namespace}.overlay.{name}"), &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        // Files that are no files and no folders have no attributes of users.
        Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Without the right to see the notes the kernel says that there are none.
pub(super) fn check_rights(upper: &Upper<'_>) -> Result<(), CommitError> {
    if upper.user_attributes {
        return Ok(());
    }
    // Of all that asks for the right, taking away what is not there changes nothing.
    match lremovexattr(upper.folder, NOTHING) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(Errno::PERM) => Err(CommitError::Rights {
            upper: upper.folder.to_owned(),
        }),
        Err(error) => Err(CommitError::Read {
            path: String::new(),
            source: error.into(),
        }),
    }
}
