//! What killed processes leave in a repository.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

/// No lock of git or libgit2 is held for so long: they are held while one small file is written.
const STALE_LOCK: Duration = Duration::from_mins(10);

/// Removes half packs of ours, and locks that are too old to be anybody's. The caller holds the
/// repository's lock, so that no fetch of ours is under way.
pub(super) fn remove(bare: &Path) -> io::Result<()> {
    for path in entries(&bare.join("objects/pack"))? {
        // The name that libgit2's indexer gives while a pack comes in; git's own is another.
        if name(&path).starts_with("pack_git2_") {
            remove_file(&path)?;
        }
    }
    for file in [
        "HEAD.lock",
        "shallow.lock",
        "packed-refs.lock",
        "config.lock",
    ] {
        remove_if_stale(&bare.join(file))?;
    }
    let mut folders = vec![bare.join("refs")];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "lock") {
                remove_if_stale(&path)?;
            }
        }
    }
    Ok(())
}

fn remove_if_stale(path: &Path) -> io::Result<()> {
    let modified = match fs::symlink_metadata(path).and_then(|found| found.modified()) {
        Ok(modified) => modified,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match SystemTime::now().duration_since(modified) {
        Ok(age) if age > STALE_LOCK => {
            tracing::warn!(?path, "removing the lock of a process that is gone");
            remove_file(path)
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(folder) {
        Ok(list) => list.map(|entry| entry.map(|e| e.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_packs_and_old_locks_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("objects/pack")).unwrap();
        fs::create_dir_all(at("refs/hyprstream/commits")).unwrap();
        let gone = [
            "objects/pack/pack_git2_x",
            "shallow.lock",
            "refs/hyprstream/commits/1.lock",
        ];
        let kept = [
            "objects/pack/pack-1.pack",
            "HEAD.lock",
            "refs/heads",
            "HEAD",
        ];
        for file in gone.iter().chain(&kept) {
            fs::write(at(file), "").unwrap();
        }
        let old = SystemTime::now() - STALE_LOCK * 2;
        for file in gone {
            fs::File::options()
                .write(true)
                .open(at(file))
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
        remove(dir.path()).unwrap();
        assert!(gone.iter().all(|file| !at(file).exists()));
        assert!(kept.iter().all(|file| at(file).exists()));
    }
}
