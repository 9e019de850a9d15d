//! Single files: as they are committed, and with their large content.

use std::{
    fs::{self, File},
    io::{self, Cursor, Read},
    path::{Component, Path},
};

use git2::{ErrorCode, FileMode, ObjectType, Oid};

use super::{HistoryError, diff};
use crate::{
    CommitId, RepositoryHandle, Worktree,
    lfs::{MAX_POINTER_BYTES, Pointer},
    store::Reader,
};

/// A file of a commit as git holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// What lies in git: for a large file its pointer, for a link its target.
    pub blob: Vec<u8>,
    /// The mode that git notes, such as `0o100644`.
    pub mode: u32,
    /// The content that the blob points to, if it is a pointer.
    pub pointer: Option<Pointer>,
}

/// The content of a file, of a large one out of the store. Read to its end, its bytes are known to
/// be those that were committed; see [`Reader`].
#[derive(Debug)]
pub struct FileReader {
    size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Bytes(Cursor<Vec<u8>>),
    File(File),
    Object(Reader),
}

impl FileReader {
    /// Bytes of the content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The object that is read, if the file is a large one that lies in the store.
    pub fn pointer(&self) -> Option<&Pointer> {
        match &self.source {
            Source::Object(reader) => Some(reader.pointer()),
            Source::Bytes(_) | Source::File(_) => None,
        }
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Bytes(bytes) => bytes.read(buffer),
            Source::File(file) => file.read(buffer),
            Source::Object(reader) => reader.read(buffer),
        }
    }
}

impl RepositoryHandle {
    /// A file at a commit, as `git show COMMIT:PATH`.
    pub fn show(&self, commit: &CommitId, path: &str) -> Result<FileContent, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        let (blob, mode) = self.entry(&repo, commit, path)?;
        let blob = repo.find_blob(blob).map_err(|e| self.history(e))?;
        let pointer = match mode {
            FileMode::Link => None,
            _ => Pointer::parse(blob.content()).ok(),
        };
        Ok(FileContent {
            blob: blob.content().to_vec(),
            mode: u32::from(mode),
            pointer,
        })
    }

    /// Opens a file of a commit: the content behind a pointer, where the blob is one.
    ///
    /// # Errors
    /// `MissingLFSObject` if the store lacks the object: download it and call again.
    pub fn load_file(&self, commit: &CommitId, path: &str) -> Result<FileReader, HistoryError> {
        let repo = self.repo().map_err(HistoryError::Repo)?;
        let (blob, mode) = self.entry(&repo, commit, path)?;
        if mode == FileMode::Link {
            return Err(not_a_file(path, commit.as_str(), "a symbolic link"));
        }
        let (size, pointer) = diff::size(&repo, blob, false).map_err(|e| self.history(e))?;
        let source = if let Some(pointer) = pointer {
            Source::Object(self.store().reader(&pointer).map_err(HistoryError::Store)?)
        } else {
            let blob = repo.find_blob(blob).map_err(|e| self.history(e))?;
            Source::Bytes(Cursor::new(blob.content().to_vec()))
        };
        Ok(FileReader { size, source })
    }

    fn entry(
        &self,
        repo: &git2::Repository,
        commit: &CommitId,
        path: &str,
    ) -> Result<(Oid, FileMode), HistoryError> {
        let tree = self
            .find(repo, commit)?
            .tree()
            .map_err(|e| self.history(e))?;
        let entry = match tree.get_path(Path::new(path)) {
            Ok(entry) => entry,
            Err(error) if error.code() == ErrorCode::NotFound => {
                return Err(HistoryError::NoPath {
                    path: path.to_owned(),
                    place: commit.to_string(),
                });
            }
            Err(error) => return Err(self.history(error)),
        };
        let mode = match entry.filemode() {
            0o100_755 => FileMode::BlobExecutable,
            0o120_000 => FileMode::Link,
            _ => FileMode::Blob,
        };
        match entry.kind() {
            Some(ObjectType::Blob) => Ok((entry.id(), mode)),
            Some(ObjectType::Commit) => Err(not_a_file(path, commit.as_str(), "a submodule")),
            _ => Err(not_a_file(path, commit.as_str(), "a folder")),
        }
    }
}

impl Worktree {
    /// Opens a file of the worktree: the content behind a pointer, where the file is one that was
    /// not filled in.
    ///
    /// # Errors
    /// As [`RepositoryHandle::load_file`]. Links are not followed.
    pub fn load_file(&self, path: &str) -> Result<FileReader, HistoryError> {
        let place = self.path().display().to_string();
        let read = |source| HistoryError::Read {
            path: path.to_owned(),
            source,
        };
        let missing = || HistoryError::NoPath {
            path: path.to_owned(),
            place: place.clone(),
        };
        let relative = Path::new(path);
        if relative
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(missing());
        }
        let mut at = self.path().to_owned();
        for part in relative {
            at.push(part);
            match fs::symlink_metadata(&at) {
                Ok(found) if found.is_symlink() => {
                    return Err(not_a_file(path, &place, "behind a symbolic link"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(error) => return Err(read(error)),
            }
        }
        let mut file = File::open(&at).map_err(read)?;
        let found = file.metadata().map_err(read)?;
        if !found.is_file() {
            return Err(not_a_file(path, &place, "a folder"));
        }
        let size = found.len();
        if size >= MAX_POINTER_BYTES as u64 {
            let source = Source::File(file);
            return Ok(FileReader { size, source });
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(read)?;
        match Pointer::parse(&content) {
            Ok(pointer) => {
                let store = self.repository().store();
                Ok(FileReader {
                    size: pointer.size,
                    source: Source::Object(store.reader(&pointer).map_err(HistoryError::Store)?),
                })
            }
            Err(_) => Ok(FileReader {
                size: content.len() as u64,
                source: Source::Bytes(Cursor::new(content)),
            }),
        }
    }
}

fn not_a_file(path: &str, place: &str, kind: &'static str) -> HistoryError {
    HistoryError::NotAFile {
        path: path.to_owned(),
        place: place.to_owned(),
        kind,
    }
}
