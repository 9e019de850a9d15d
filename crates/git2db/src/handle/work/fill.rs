//! Large files that are still pointers.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use super::{WorktreeError, io_error, large};
use crate::{
    Observer, Worktree,
    lfs::{LfsError, MAX_POINTER_BYTES, ObjectSource, Pointer, Transfer},
    store::{self, StoreError},
};

impl Worktree {
    /// Large files whose content was not put in place, because the store lacked it: path and
    /// content, ordered by path.
    pub fn unfilled(&self) -> Result<Vec<(String, Pointer)>, WorktreeError> {
        let (repo, index) = self.opened()?;
        let mut found = Vec::new();
        for entry in index.iter().filter(large::is_file) {
            let Ok(path) = std::str::from_utf8(&entry.path) else {
                continue;
            };
            let Some(pointer) = pointer_at(&self.place(path))? else {
                continue;
            };
            if large::is_lfs(&repo, path).map_err(|e| self.fail(e))? {
                found.push((path.to_owned(), pointer));
            }
        }
        Ok(found)
    }

    /// The objects that must be downloaded before [`fill`](Self::fill) can put every large file
    /// in place, each once.
    pub fn missing_objects(&self) -> Result<Vec<Pointer>, WorktreeError> {
        let store = self.repository().store();
        let mut missing: Vec<Pointer> = self
            .unfilled()?
            .into_iter()
            .map(|(_, pointer)| pointer)
            .filter(|pointer| !store.contains(&pointer.oid))
            .collect();
        missing.sort_by(|a, b| a.oid.cmp(&b.oid));
        missing.dedup();
        Ok(missing)
    }

    /// Puts large files in place whose content has come into the store since; the paths of those.
    /// A file is whole or still a pointer at any moment.
    pub fn fill(&self) -> Result<Vec<String>, WorktreeError> {
        let mut filled = Vec::new();
        for (path, pointer) in self.unfilled()? {
            match self.fill_one(&path, &pointer) {
                Ok(()) => filled.push(path),
                Err(WorktreeError::Store(StoreError::Missing { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        if !filled.is_empty() {
            // Notes how they look now.
            let (repo, mut index) = self.opened()?;
            self.refresh(&repo, &mut index)?;
            self.settle()?;
        }
        Ok(filled)
    }

    /// Downloads the objects that are missing from `source` and puts them in place.
    ///
    /// # Errors
    /// The inner error is that of the download, after which nothing was put in place.
    pub fn download(
        &self,
        source: &dyn ObjectSource,
        observer: &dyn Observer,
    ) -> Result<Result<Transfer, LfsError>, WorktreeError> {
        let missing = self.missing_objects()?;
        let transfer = match source.fetch(&missing, self.repository().store(), observer) {
            Ok(transfer) => transfer,
            Err(error) => return Ok(Err(error)),
        };
        self.fill()?;
        Ok(Ok(transfer))
    }

    fn fill_one(&self, path: &str, pointer: &Pointer) -> Result<(), WorktreeError> {
        let place = self.place(path);
        let mut reader = (self.repository().store())
            .reader(pointer)
            .map_err(WorktreeError::Store)?;
        let folder = place.parent().unwrap_or(self.path());
        let write = |e| io_error("write", &place, e);
        let mode = fs::metadata(&place).map_err(write)?.permissions();
        let mut file = tempfile::Builder::new()
            .prefix(".hyprstream-fill.")
            .tempfile_in(folder)
            .map_err(write)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match reader.next(&mut buffer).map_err(WorktreeError::Store)? {
                0 => break,
                read => io::Write::write_all(&mut file, &buffer[..read]).map_err(write)?,
            }
        }
        file.as_file()
            .set_permissions(mode)
            .and_then(|()| store::set_old(file.as_file()))
            .map_err(write)?;
        // Somebody may have written the file meanwhile.
        if pointer_at(&place)?.as_ref() == Some(pointer) {
            file.persist(&place).map_err(|e| write(e.error))?;
        }
        Ok(())
    }
}

/// The pointer that lies at a place instead of a content.
fn pointer_at(place: &Path) -> Result<Option<Pointer>, WorktreeError> {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_file() && found.len() < MAX_POINTER_BYTES as u64 => {}
        _ => return Ok(None),
    }
    let mut content = Vec::new();
    File::open(place)
        .and_then(|mut file| file.read_to_end(&mut content))
        .map_err(|e| io_error("read", place, e))?;
    Ok(Pointer::parse(&content).ok())
}
