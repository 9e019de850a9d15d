//! Names that are not UTF-8, which no path here can say: what would have to name one is refused.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use super::WorktreeError;

/// What stands in a text for bytes that are none.
const REPLACED: char = char::REPLACEMENT_CHARACTER;

/// The path as text.
pub(super) fn utf8(path: &[u8]) -> Result<&str, WorktreeError> {
    std::str::from_utf8(path).map_err(|_| WorktreeError::NotUtf8 {
        path: path.escape_ascii().to_string(),
    })
}

/// The path as far as it is text, to be shown or compared.
pub(super) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Refuses a path of a status that stands for another one, which is not UTF-8: nobody knows it by
/// this name.
pub(super) fn refuse_replaced(
    path: &str,
    is_known: impl FnOnce(&str) -> bool,
) -> Result<(), WorktreeError> {
    if path.contains(REPLACED) && !is_known(path) {
        let path = path.to_owned();
        return Err(WorktreeError::NotUtf8 { path });
    }
    Ok(())
}

/// The path that libgit2 takes.
pub(super) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
