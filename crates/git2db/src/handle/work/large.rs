//! Which large files of a worktree changed.
//!
//! libgit2 reads a file with a filter into memory to hash it, which for a large one fails or costs
//! what a model weighs. So large files are compared here, in pieces, before libgit2 looks at the
//! worktree: one that is as it was gets its new time into the index, as `git update-index
//! --refresh` does, and libgit2 takes it for unchanged; of one that is not, libgit2 is shown
//! another size than it has, so that it need not read it.
//!
//! Stock git reads a file again that is not older than the index, by whole seconds, and without
//! git-lfs it then finds that the bytes are not those of the pointer: the file looks modified. So
//! no call here leaves an index behind that is as young as a large file that it notes. What we
//! write ourselves is dated back ([`Worktree::date_back`]); for what somebody else has just
//! written, the index waits for the next second ([`Worktree::settle`]).

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use git2::{ErrorCode, Index, IndexEntry, IndexTime, ObjectType, Oid, Repository};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
use sha2::{Digest as _, Sha256};

use super::{WorktreeError, io_error};
use crate::{
    Digest, Worktree,
    lfs::{InvalidPointer, MAX_POINTER_BYTES, Pointer, is_lfs_in_worktree},
    store,
};

const CHUNK_BYTES: usize = 1 << 18;
/// Where an entry's flags say which version of a conflict it is.
const STAGES: u16 = 0x3000;
/// By how much the time of a file may lag behind the clock: a tick of the slowest kernels.
const TICK: Duration = Duration::from_millis(20);

impl Worktree {
    /// Large files whose content is another than in the index. Afterwards libgit2 can write the
    /// index without reading large files.
    pub(super) fn refresh(
        &self,
        repo: &Repository,
        index: &mut Index,
    ) -> Result<Vec<String>, WorktreeError> {
        let written = written_second(index);
        let mut changed = Vec::new();
        let mut is_fresher = false;
        let entries: Vec<IndexEntry> = index.iter().filter(is_file).collect();
        for mut entry in entries {
            let Ok(path) = std::str::from_utf8(&entry.path) else {
                continue;
            };
            let path = path.to_owned();
            let place = self.place(&path);
            let found = match fs::symlink_metadata(&place) {
                Ok(found) if found.is_file() => found,
                // It is gone, or a link or folder: nothing that libgit2 would read.
                _ => continue,
            };
            let is_racy = i64::from(entry.mtime.seconds()) >= written;
            let is_same = is_as_noted(&entry, &found);
            if (is_same && !is_racy) || !is_lfs(repo, &path).map_err(|e| self.fail(e))? {
                continue;
            }
            let noted = pointer_of(repo, entry.id).map_err(|e| self.fail(e))?;
            if self.clean_id(&place, &found, noted.as_ref())? == Some(entry.id) {
                note(&mut entry, &found);
                is_fresher = true;
            } else {
                if is_same {
                    // As git notes a file that changed in the moment in which it was staged.
                    entry.file_size = 0;
                }
                changed.push(path);
            }
            // What is put into the index anew is not read when the index is written.
            index.add(&entry).map_err(|e| self.fail(e))?;
        }
        if is_fresher {
            match index.write() {
                Ok(()) => {}
                // Somebody else writes it; the next call looks again.
                Err(error) if error.code() == ErrorCode::Locked => {}
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(changed)
    }

    /// Lets the index be younger than the large files that it notes: waits for the next second, less
    /// than one as a rule, if a file was written in the one in which the index was, and then looks
    /// at its content again. Called last by whatever wrote the index.
    ///
    /// A file that is dated in the future stays as it is; git reads it again until then.
    pub(super) fn settle(&self) -> Result<(), WorktreeError> {
        let (repo, mut index) = self.opened()?;
        let written = written_second(&index);
        let mut youngest = None;
        for entry in index.iter().filter(is_file) {
            let second = i64::from(entry.mtime.seconds());
            if second < written || youngest >= Some(second) {
                continue;
            }
            let Ok(path) = std::str::from_utf8(&entry.path) else {
                continue;
            };
            if is_lfs(&repo, path).map_err(|e| self.fail(e))? {
                youngest = Some(second);
            }
        }
        let now = SystemTime::now();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(over) = youngest
            .and_then(|second| u64::try_from(second + 1).ok())
            .map(|second| Duration::from_secs(second) + TICK)
            .filter(|over| *over < now + Duration::from_secs(2))
        else {
            return Ok(());
        };
        std::thread::sleep(over.saturating_sub(now));
        self.refresh(&repo, &mut index).map(drop)
    }

    /// Gives large files among `paths`, which were just written and noted here, an older time than
    /// the index will have. One that somebody wrote since stays as it is.
    pub(super) fn date_back(
        &self,
        repo: &Repository,
        index: &mut Index,
        paths: &[&str],
    ) -> Result<(), WorktreeError> {
        let mut is_noted = false;
        for path in paths {
            let Some(mut entry) = index.get_path(Path::new(path), 0).filter(is_file) else {
                continue;
            };
            let place = self.place(path);
            let look = || fs::symlink_metadata(&place).map_err(|e| io_error("read", &place, e));
            if !is_lfs(repo, path).map_err(|e| self.fail(e))? || !is_as_noted(&entry, &look()?) {
                continue;
            }
            set_past(&place).map_err(|e| io_error("set the time of", &place, e))?;
            note(&mut entry, &look()?);
            index.add(&entry).map_err(|e| self.fail(e))?;
            is_noted = true;
        }
        if is_noted {
            index.write().map_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    /// Shows libgit2 another size than `paths` have. The index must not be written afterwards.
    pub(super) fn disguise(
        &self,
        index: &mut Index,
        paths: &[String],
    ) -> Result<(), WorktreeError> {
        for path in paths {
            let Some(mut entry) = index.get_path(Path::new(path), 0) else {
                continue;
            };
            let size = fs::symlink_metadata(self.place(path)).map_or(0, |found| found.len() as u32);
            entry.file_size = size.checked_add(1).unwrap_or(1);
            index.add(&entry).map_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    /// The blob that cleaning the file would make; `None` if it is none that `noted` stands for
    /// and need not be read to know that.
    fn clean_id(
        &self,
        place: &Path,
        found: &Metadata,
        noted: Option<&Pointer>,
    ) -> Result<Option<Oid>, WorktreeError> {
        let read = |e| io_error("read", place, e);
        let hash =
            |bytes: &[u8]| Oid::hash_object(ObjectType::Blob, bytes).map_err(|e| self.fail(e));
        let mut file = File::open(place).map_err(read)?;
        if found.len() < MAX_POINTER_BYTES as u64 {
            let mut content = Vec::new();
            file.read_to_end(&mut content).map_err(read)?;
            let is_pointer = !matches!(Pointer::parse(&content), Err(InvalidPointer::NotAPointer));
            if content.is_empty() || is_pointer {
                return hash(&content).map(Some);
            }
            let pointer = Pointer {
                oid: Digest::of(&content),
                size: content.len() as u64,
            };
            return hash(pointer.to_string().as_bytes()).map(Some);
        }
        if noted.is_some_and(|noted| noted.size != found.len()) {
            return Ok(None);
        }
        let mut hasher = Sha256::new();
        let (mut buffer, mut size) = (vec![0; CHUNK_BYTES], 0);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    size += read as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error)),
            }
        }
        let oid = Digest::finish(hasher);
        hash(Pointer { oid, size }.to_string().as_bytes()).map(Some)
    }
}

/// The second in which the index was written; 0 if it never was.
fn written_second(index: &Index) -> i64 {
    let found = index.path().and_then(|path| fs::metadata(path).ok());
    found.map_or(0, |found| found.mtime())
}

fn set_past(path: &Path) -> std::io::Result<()> {
    let past = store::past().duration_since(UNIX_EPOCH).unwrap_or_default();
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: past.as_secs() as i64,
            tv_nsec: past.subsec_nanos().into(),
        },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Whether attributes of the worktree give the file to LFS.
pub(super) fn is_lfs(repo: &Repository, path: &str) -> Result<bool, git2::Error> {
    repo.workdir()
        .map_or(Ok(false), |root| is_lfs_in_worktree(root, path))
}

/// The pointer that a blob holds.
pub(in crate::handle) fn pointer_of(
    repo: &Repository,
    blob: Oid,
) -> Result<Option<Pointer>, git2::Error> {
    let (len, kind) = repo.odb()?.read_header(blob)?;
    if len >= MAX_POINTER_BYTES || kind != ObjectType::Blob {
        return Ok(None);
    }
    Ok(Pointer::parse(repo.find_blob(blob)?.content()).ok())
}

/// An ordinary file that is not in conflict.
pub(super) fn is_file(entry: &IndexEntry) -> bool {
    is_merged(entry) && entry.mode & 0o170_000 == 0o100_000
}

/// Whether the entry is no version of a conflict.
pub(super) fn is_merged(entry: &IndexEntry) -> bool {
    entry.flags & STAGES == 0
}

/// Whether the file looks as it did when it was noted, by what libgit2 compares.
fn is_as_noted(entry: &IndexEntry, found: &Metadata) -> bool {
    let time = |noted: IndexTime, seconds: i64, nanoseconds: i64| {
        i64::from(noted.seconds()) == seconds && i64::from(noted.nanoseconds()) == nanoseconds
    };
    entry.file_size == found.len() as u32
        && time(entry.mtime, found.mtime(), found.mtime_nsec())
        && time(entry.ctime, found.ctime(), found.ctime_nsec())
        && entry.ino == found.ino() as u32
        && entry.uid == found.uid()
        && entry.gid == found.gid()
}

/// Notes how the file looks now.
fn note(entry: &mut IndexEntry, found: &Metadata) {
    entry.file_size = found.len() as u32;
    entry.mtime = IndexTime::new(found.mtime() as i32, found.mtime_nsec() as u32);
    entry.ctime = IndexTime::new(found.ctime() as i32, found.ctime_nsec() as u32);
    entry.dev = found.dev() as u32;
    entry.ino = found.ino() as u32;
    entry.uid = found.uid();
    entry.gid = found.gid();
}
