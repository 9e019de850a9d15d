//! What came of uploads that broke off: kept, so that the next attempt goes on there.
//!
//! `<repository>.git/hyprstream/parts/<sha256>`. A part belongs to one repository, and goes with
//! it: whoever continued what another repository's pusher began would get an object of which it
//! never had all the bytes. One upload at a time writes a part; this process alone uses the
//! volume, so that memory knows which. Nothing in a part is believed before the SHA-256 of the
//! whole is found right.

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use hyprstream_git2db::{Digest, lfs::Pointer};
use hyprstream_slots::Slots;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    collect,
    layout::{Layout, make_folder},
    names::{Namespace, Repository},
    state::State,
};

/// An upload of which nothing comes for so long, when another attempt is made, is taken for dead:
/// the machine of its client may be gone without a word.
const STILL: Duration = Duration::from_secs(3);
/// For an upload that moves, before another sends everything beside it. Below the patience of
/// clients, which hear nothing meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);

/// Places for uploads, and which of them write parts.
pub(crate) struct Uploads {
    pub(crate) places: Slots,
    active: Arc<Mutex<HashMap<Key, Arc<Active>>>>,
}

/// An object on its way into a repository.
pub(super) type Key = (Repository, Digest);

/// An upload that writes a part.
#[derive(Default)]
pub(super) struct Active {
    /// Ends it.
    pub(super) cancel: CancellationToken,
    /// Bytes that came.
    pub(super) moved: AtomicU64,
    /// All bytes came and are right: what is left is the disk's work.
    pub(super) is_verified: AtomicBool,
    ended: CancellationToken,
}

/// The right to write a part, alone.
pub(super) struct Held {
    all: Arc<Mutex<HashMap<Key, Arc<Active>>>>,
    key: Key,
    pub(super) active: Arc<Active>,
}

/// Whether another upload may write the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Free,
    /// The one before gets on: another sends everything beside it.
    Moving,
    /// The one before has sent everything, and waits for the disk.
    Settling,
}

impl Uploads {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            places: Slots::new(places),
            active: Arc::default(),
        }
    }

    /// Takes the part if nobody has it.
    pub(super) fn hold(&self, key: &Key) -> Option<Held> {
        let mut all = self.active.lock();
        if all.contains_key(key) {
            return None;
        }
        let active = Arc::new(Active::default());
        all.insert(key.clone(), Arc::clone(&active));
        Some(Held {
            all: Arc::clone(&self.active),
            key: key.clone(),
            active,
        })
    }

    /// Whether the part may be taken. An upload whose client has gone, or sends nothing, is ended
    /// for it; one that moves is waited for, since it may be what a client that has gone left on
    /// the way, and nothing need be sent once it is complete.
    pub(super) async fn standing(&self, key: &Key) -> Standing {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(active) = self.active.lock().get(key).cloned() else {
                return Standing::Free;
            };
            let moved = active.moved.load(Ordering::Relaxed);
            let ended = active.ended.cancelled();
            if tokio::time::timeout(STILL, ended).await.is_ok() {
                continue;
            }
            let is_verified = active.is_verified.load(Ordering::Relaxed);
            if !is_verified && active.moved.load(Ordering::Relaxed) == moved {
                active.cancel.cancel();
            }
            if Instant::now() >= until {
                return if is_verified {
                    Standing::Settling
                } else {
                    Standing::Moving
                };
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
        self.active.ended.cancel();
    }
}

/// Where the part of an object lies, whether or not it is there.
pub(super) fn path(layout: &Layout, key: &Key) -> PathBuf {
    let (repository, oid) = key;
    let folder = layout.repository(repository).join("hyprstream/parts");
    folder.join(oid.as_str())
}

/// How many bytes of the object need not be sent again. At least one always is, so that there is
/// an answer in which the whole is judged.
pub(super) fn offset(layout: &Layout, repository: &Repository, pointer: &Pointer) -> u64 {
    let path = path(layout, &(repository.clone(), pointer.oid.clone()));
    let length = fs::metadata(path).map_or(0, |found| found.len());
    // One of another size was made for another pointer, of which one is wrong.
    if length > pointer.size {
        return 0;
    }
    length.min(pointer.size.saturating_sub(1))
}

/// Makes a part end at `offset`, where the upload goes on. The repository is there.
pub(super) fn prepare(layout: &Layout, key: &Key, offset: u64) -> io::Result<PathBuf> {
    let path = path(layout, key);
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    if path.exists() {
        // One that was whole may have been made read-only just before a kill.
        let writable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
        fs::set_permissions(&path, writable)?;
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len(offset)?;
    }
    Ok(path)
}

/// Removes parts that are too old, and of each namespace, or the one that is named, the oldest
/// ones beyond its share. Those that are just written stay. Blocks.
pub(crate) fn tidy(state: &State, only: Option<&Namespace>) {
    let mut by_namespace: HashMap<Namespace, Vec<Part>> = HashMap::new();
    for repository in collect::repositories(&state.layout) {
        let Repository::Pushed { namespace, .. } = &repository else {
            continue;
        };
        if only.is_none_or(|only| only == namespace) {
            let parts = by_namespace.entry(namespace.clone()).or_default();
            parts.extend(of(&state.layout, &repository));
        }
    }
    for parts in by_namespace.values_mut() {
        parts.sort_by_key(|part| part.age);
        let mut bytes = 0;
        for part in parts {
            bytes += part.bytes;
            if part.age <= state.limits.keep_unfinished
                && bytes <= state.limits.max_unfinished_bytes
            {
                continue;
            }
            let Some(_held) = state.uploads.hold(&part.key) else {
                continue;
            };
            bytes -= part.bytes;
            match fs::remove_file(path(&state.layout, &part.key)) {
                Ok(()) => tracing::info!(
                    repository = %part.key.0, oid = %part.key.1, bytes = part.bytes,
                    "removed what came of an upload that broke off"
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, "a part could not be removed"),
            }
        }
    }
}

struct Part {
    key: Key,
    bytes: u64,
    age: Duration,
}

fn of(layout: &Layout, repository: &Repository) -> Vec<Part> {
    let folder = layout.repository(repository).join("hyprstream/parts");
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let part = |entry: fs::DirEntry| {
        let oid = entry.file_name().to_str()?.parse().ok()?;
        let found = entry.metadata().ok()?;
        let modified = found.modified().ok()?;
        let age = SystemTime::now().duration_since(modified);
        Some(Part {
            key: (repository.clone(), oid),
            bytes: found.len(),
            // A time in the future is no age; the file then counts as new.
            age: age.unwrap_or_default(),
        })
    };
    entries.flatten().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        let repository = "a/m".parse().unwrap();
        (repository, Digest::of(b"weights"))
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_of_which_nothing_comes_gives_way_and_one_that_moves_does_not() {
        let uploads = Arc::new(Uploads::new(4));
        assert_eq!(uploads.standing(&key()).await, Standing::Free);
        let held = uploads.hold(&key()).unwrap();
        assert!(uploads.hold(&key()).is_none());
        // It ends as soon as it is told to.
        let ending = tokio::spawn(async move {
            held.active.cancel.cancelled().await;
            drop(held);
        });
        assert_eq!(uploads.standing(&key()).await, Standing::Free);
        ending.await.unwrap();
        let held = uploads.hold(&key()).unwrap();
        let active = Arc::clone(&held.active);
        let moving = tokio::spawn(async move {
            loop {
                active.moved.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert_eq!(uploads.standing(&key()).await, Standing::Moving);
        moving.abort();
        held.active.is_verified.store(true, Ordering::Relaxed);
        assert_eq!(uploads.standing(&key()).await, Standing::Settling);
        assert!(!held.active.cancel.is_cancelled());
    }
}
