//! The index of a new worktree, so that git need not read a file to know that it is unchanged.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use git2::{Index, IndexEntry, IndexTime, Tree};

use super::{WorktreesError, io_error};
use crate::Include;

/// Of an entry: its file is left out on purpose (`skip-worktree`).
pub(super) const SKIP_WORKTREE: u16 = 1 << 14;

/// Writes the index of a worktree at `target` with the files of `tree` that `include` wants.
///
/// Each has the stat data that its file has now: for an LFS file the pointer's blob with the
/// content's size, as git keeps it once its filter ran. The others are marked `skip-worktree`.
pub(super) fn write(
    path: &Path,
    tree: &Tree<'_>,
    target: &Path,
    include: &Include,
) -> Result<(), WorktreesError> {
    let failed = |source| WorktreesError::Index {
        path: path.to_owned(),
        source,
    };
    let mut wanted = Index::new().map_err(failed)?;
    wanted.read_tree(tree).map_err(failed)?;
    let mut index = Index::open(path).map_err(failed)?;
    for mut entry in wanted.iter() {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        if include.matches(&name) {
            let file = target.join(&name);
            let found = fs::symlink_metadata(&file).map_err(|e| io_error("read", &file, e))?;
            fill(&mut entry, &found);
        } else {
            entry.flags_extended |= SKIP_WORKTREE;
        }
        index.add(&entry).map_err(failed)?;
    }
    index.write().map_err(failed)
}

fn fill(entry: &mut IndexEntry, found: &fs::Metadata) {
    entry.ctime = IndexTime::new(found.ctime() as i32, found.ctime_nsec() as u32);
    entry.mtime = IndexTime::new(found.mtime() as i32, found.mtime_nsec() as u32);
    entry.dev = found.dev() as u32;
    entry.ino = found.ino() as u32;
    entry.uid = found.uid();
    entry.gid = found.gid();
    entry.file_size = size(found.len());
}

/// git's 32 bits; 0 would make it read what is not empty.
fn size(bytes: u64) -> u32 {
    match bytes as u32 {
        0 if bytes > 0 => 1 << 31,
        low => low,
    }
}

/// Where the index that all mounts of a checkout begin with lies. git replaces an index by a
/// rename and never writes into it, so that it can be shared by hard links.
pub(super) fn shared(home: &Path, key: &str, checkout: &Path) -> Result<PathBuf, WorktreesError> {
    let found = fs::metadata(checkout).map_err(|e| io_error("read", checkout, e))?;
    // A checkout that was made again has other inodes.
    let made = format!(
        "{key}.{}.{}.{}",
        found.ino(),
        found.mtime(),
        found.mtime_nsec()
    );
    Ok(home.join("indexes").join(made))
}

/// Links the index into `admin`; whether it is there and has links left.
pub(super) fn link(shared: &Path, admin: &Path) -> Result<bool, WorktreesError> {
    let target = admin.join("index");
    match fs::hard_link(shared, &target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
            let copied = fs::copy(shared, &target);
            copied
                .map(|_| true)
                .map_err(|e| io_error("write", &target, e))
        }
        Err(error) => Err(io_error("link", &target, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn only_an_empty_file_has_size_zero() {
        assert_eq!([0, 7, 1 << 32, (1 << 32) + 7].map(size), [0, 7, 1 << 31, 7]);
    }
}
