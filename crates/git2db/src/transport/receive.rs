//! Taking a pack from a source that is not trusted.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, Write},
    path::Path,
};

use git2::{ObjectType, Oid, Repository};

use super::{GitSource, Want};
use crate::{CommitId, Limits, Observer, Progress, RemoteError, RemoteUrl, durable, libgit};

/// Brings what is wanted from `source` into `repo`, and notes where its history is cut. No ref is
/// changed. `url` is for errors. The caller holds the repository's lock.
pub(crate) fn receive(
    repo: &Repository,
    source: &dyn GitSource,
    want: &Want,
    url: &RemoteUrl,
    limits: &Limits,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    libgit::allow_objects(limits.max_blob_bytes);
    let error = |e: git2::Error| libgit::remote_error(url, &e);
    let refused = |detail: String| RemoteError::Refused {
        url: url.clone(),
        detail,
    };
    let odb = repo.odb().map_err(error)?;
    let mut writer = odb.packwriter().map_err(error)?;
    writer.progress(|stats| {
        observer.progress(Progress::Git {
            bytes_done: stats.received_bytes() as u64,
            objects_done: stats.received_objects() as u64,
            objects_total: stats.total_objects() as u64,
        });
        !observer.is_cancelled() && stats.total_objects() <= limits.max_pack_objects
    });
    let mut sink = Sink {
        writer: &mut writer,
        disk: repo.path(),
        limits,
        observer,
        bytes: 0,
        checked: 0,
        verdict: None,
    };
    let sent = source.pack(want, &mut sink, observer);
    let verdict = sink.verdict.take();
    let boundary = match (sent, verdict) {
        (_, Some(Verdict::Cancelled)) => return Err(RemoteError::Cancelled),
        (_, Some(Verdict::DiskFull)) => {
            let detail = repo.path().display().to_string();
            return Err(RemoteError::DiskFull { detail });
        }
        (_, Some(Verdict::TooLarge(detail))) => return Err(refused(detail)),
        (_, Some(Verdict::Git(e))) => return Err(error(e)),
        (Err(e), None) => return Err(e),
        (Ok(boundary), None) => boundary,
    };
    writer.commit().map_err(error)?;
    drop(writer);
    odb.refresh().map_err(error)?;
    verify(repo, want, &boundary, url, observer)?;
    note_shallow(repo, &boundary).map_err(|e| RemoteError::Local {
        detail: format!(
            "{} cannot be written: {e}",
            repo.path().join("shallow").display()
        ),
    })
}

enum Verdict {
    Cancelled,
    DiskFull,
    TooLarge(String),
    Git(git2::Error),
}

/// What a source writes its pack into.
struct Sink<'a, 'repo> {
    writer: &'a mut git2::OdbPackwriter<'repo>,
    disk: &'a Path,
    limits: &'a Limits,
    observer: &'a dyn Observer,
    bytes: u64,
    checked: u64,
    verdict: Option<Verdict>,
}

/// Bytes after which the free space is looked at again.
const SPACE_CHECK_BYTES: u64 = 256 << 10;

impl Sink<'_, '_> {
    fn refuse(&mut self, verdict: Verdict) -> io::Error {
        self.verdict.get_or_insert(verdict);
        io::Error::other("the pack is not taken any further")
    }
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.observer.is_cancelled() {
            return Err(self.refuse(Verdict::Cancelled));
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > self.limits.max_pack_bytes {
            let most = self.limits.max_pack_bytes;
            return Err(self.refuse(Verdict::TooLarge(format!(
                "its git objects have more than {most} bytes, which is the limit: large files \
                 belong into LFS"
            ))));
        }
        if self.bytes == bytes.len() as u64 || self.bytes - self.checked >= SPACE_CHECK_BYTES {
            self.checked = self.bytes;
            let free =
                rustix::fs::statvfs(self.disk).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
            if free.is_ok_and(|free| free < self.limits.min_free_bytes) {
                return Err(self.refuse(Verdict::DiskFull));
            }
        }
        match self.writer.write_all(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) if self.observer.is_cancelled() => {
                drop(error);
                Err(self.refuse(Verdict::Cancelled))
            }
            Err(error) => {
                // git2 hides libgit2's error behind one of `io`, and keeps its text.
                let error = git2::Error::new(
                    git2::ErrorCode::GenericError,
                    git2::ErrorClass::Indexer,
                    error.to_string(),
                );
                Err(self.refuse(Verdict::Git(error)))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether everything is there that the wanted names lead to, down to what was here before or to
/// the boundary.
fn verify(
    repo: &Repository,
    want: &Want,
    boundary: &[CommitId],
    url: &RemoteUrl,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    let missing = |what: String| RemoteError::Upstream {
        url: url.clone(),
        detail: format!("it did not send {what}"),
    };
    let error = |e: git2::Error| libgit::remote_error(url, &e);
    let odb = repo.odb().map_err(error)?;
    let cut = boundary.iter().chain(&want.shallow);
    let boundary: HashSet<Oid> = cut.map(CommitId::oid).collect();
    let have: HashSet<Oid> = want.have.iter().map(CommitId::oid).collect();
    let mut pending: Vec<Oid> = want.commits.iter().map(CommitId::oid).collect();
    let mut seen = HashSet::new();
    while let Some(id) = pending.pop() {
        if observer.is_cancelled() {
            return Err(RemoteError::Cancelled);
        }
        // What was here before is complete, by this very check.
        if have.contains(&id) && want.depth.is_none() || !seen.insert(id) {
            continue;
        }
        let object = repo
            .find_object(id, None)
            .map_err(|_| missing(format!("object {id}")))?;
        match object.kind() {
            Some(ObjectType::Commit) => {
                let commit = repo.find_commit(id).map_err(error)?;
                pending.push(commit.tree_id());
                if !boundary.contains(&id) {
                    pending.extend(parents(&odb, id).map_err(error)?);
                }
            }
            Some(ObjectType::Tag) => pending.push(repo.find_tag(id).map_err(error)?.target_id()),
            Some(ObjectType::Tree) => {
                for entry in &repo.find_tree(id).map_err(error)? {
                    match entry.kind() {
                        Some(ObjectType::Tree) => pending.push(entry.id()),
                        Some(ObjectType::Commit) => {}
                        _ if odb.exists(entry.id()) => {}
                        _ => return Err(missing(format!("file {}", entry.id()))),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The parents that a commit names. libgit2 hides those of what is shallow.
fn parents(odb: &git2::Odb<'_>, id: Oid) -> Result<Vec<Oid>, git2::Error> {
    let raw = odb.read(id)?;
    String::from_utf8_lossy(raw.data())
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("parent "))
        .map(Oid::from_str)
        .collect()
}

/// Says what is missing of all that the commits lead to, down to where the history is cut.
pub(crate) fn ensure_whole(
    repo: &Repository,
    commits: &[CommitId],
    url: &RemoteUrl,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    let want = Want {
        commits: commits.to_vec(),
        ..Want::default()
    };
    let cut: Vec<_> = shallow(repo).into_iter().map(CommitId::from_oid).collect();
    verify(repo, &want, &cut, url, observer)
}

/// The commits whose parents are not here on purpose.
pub(crate) fn shallow(repo: &Repository) -> Vec<Oid> {
    let text = fs::read_to_string(repo.commondir().join("shallow")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Oid::from_str(line.trim()).ok())
        .collect()
}

/// Writes git's `shallow` file anew: what is cut now, and what was cut before and still is.
fn note_shallow(repo: &Repository, boundary: &[CommitId]) -> io::Result<()> {
    let path = repo.commondir().join("shallow");
    let odb = repo.odb().map_err(io::Error::other)?;
    let mut cut = BTreeSet::new();
    for id in boundary.iter().map(CommitId::oid).chain(shallow(repo)) {
        let parents = parents(&odb, id).map_err(io::Error::other)?;
        if parents.into_iter().any(|parent| !odb.exists(parent)) {
            cut.insert(id.to_string());
        }
    }
    if cut.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let text: String = cut.into_iter().map(|id| id + "\n").collect();
    let folder = repo.commondir();
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    aside.write_all(text.as_bytes())?;
    aside.as_file().sync_all()?;
    aside.persist(&path).map_err(|e| e.error)?;
    durable::sync_dir(folder)
}

/// Asks for what is new of `commits`: what led to the tips of all refs is here, and a history that
/// is cut stays so.
pub(crate) fn want_new(repo: &Repository, commits: Vec<CommitId>) -> Result<Want, git2::Error> {
    let mut have: Vec<_> = repo
        .references()?
        .filter_map(|found| found.ok()?.peel_to_commit().ok())
        .map(|commit| CommitId::from_oid(commit.id()))
        .collect();
    have.sort();
    have.dedup();
    Ok(Want {
        commits,
        have,
        shallow: shallow(repo).into_iter().map(CommitId::from_oid).collect(),
        depth: None,
    })
}
