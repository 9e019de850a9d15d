//! Locks on files, which hold between threads and processes and end with the process.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

/// A file that this process holds locked until the value is dropped.
#[derive(Debug)]
pub(crate) struct FileLock(File);

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_millis(100);

impl FileLock {
    /// Waits for the lock on the folder at `path`, which others hold for a moment only.
    pub(crate) fn hold(path: &Path) -> io::Result<Self> {
        let folder = File::open(path)?;
        loop {
            match flock(&folder, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(folder)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the lock on the file at `path`, which is made if need be. `None` if `cancelled`
    /// says so first.
    pub(crate) fn acquire(path: &Path, cancelled: &dyn Fn() -> bool) -> io::Result<Option<Self>> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(Some(lock));
            }
            if cancelled() {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// The lock on the file at `path` if nobody has it.
    pub(crate) fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path)? => return Ok(Some(Self(file))),
                // The holder before us renamed or removed it: what lies there now is another.
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The locked file.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// The locked file, to read and write.
    pub(crate) fn file_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for FileLock {
    /// Closing would do unless a child has the file open, too, as each has from its fork to its
    /// exec.
    fn drop(&mut self) {
        // If it fails, closing is what is left.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok(held.ino() == there.ino() && held.dev() == there.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_next_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        assert!(FileLock::acquire(&path, &|| true).unwrap().is_none());
        drop(held);
        assert!(FileLock::acquire(&path, &|| true).unwrap().is_some());
    }

    #[test]
    fn a_lock_ends_although_another_descriptor_of_its_file_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        let _inherited = held.file().try_clone().unwrap();
        drop(held);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_that_was_renamed_away_is_not_taken_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        std::fs::rename(&path, dir.path().join("other")).unwrap();
        let next = FileLock::try_acquire(&path).unwrap();
        assert!(next.is_some() && path.exists());
        drop(held);
    }
}
