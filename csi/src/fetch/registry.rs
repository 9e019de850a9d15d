//! Checkouts out of the cluster's registry, by git and LFS.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use hyprstream_contract::{VolumeAttributes, manifest::ManifestFile};
use hyprstream_git2db::{
    CommitId, Credentials, Include, Observer, Reference, RemoteError, RemoteUrl,
    checkout::{self, FileMode},
    lfs::{self, ObjectSource},
    repo,
    store::ObjectStore,
    tree::{self, EntryKind},
};

use super::{Access, Checkout, FetchError, Key, Missing, Plan, Progress, Source, error::disk_full};
use crate::{
    error::{Error, is_full},
    layout::{CheckoutKey, Layout},
    metrics::Metrics,
};

/// Files take the disk in multiples of this.
const DISK_BLOCK_BYTES: u64 = 4 << 10;

/// The registry of the cluster.
pub struct Registry {
    /// Its URL, without a path.
    pub url: String,
    /// File with the token of the nodes, read anew for every fetch of a volume without a word; none
    /// asks without one.
    pub token_file: Option<PathBuf>,
    /// Where everything goes.
    pub layout: Layout,
    /// Where fetched bytes are counted.
    pub metrics: Metrics,
}

impl Registry {
    /// Removes what a killed process left half done. Call it at start, before any fetch.
    pub fn clean(&self) -> Result<(), Error> {
        let folder = self.layout.repositories();
        let roots = std::fs::read_dir(&folder).map_err(|e| Error::io("read", &folder, e))?;
        for root in roots.flatten() {
            checkout::clean(&root.path())
                .map_err(|e| Error::Fetch(Arc::new(FetchError::from(e))))?;
        }
        Ok(())
    }

    /// What `act` returns by one of the keys: the newest that the registry takes.
    fn opened<T>(
        &self,
        access: &Access,
        act: impl Fn(&Credentials) -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut tried: Vec<Key> = Vec::new();
        let mut denied = String::new();
        loop {
            // Anew each time: somebody may have brought another meanwhile.
            let untried = access.keys().into_iter().find(|key| !tried.contains(key));
            let Some(key) = untried else {
                return Err(FetchError::Denied {
                    why: format!("{denied}; {}", advice(&tried)),
                });
            };
            match act(&self.credentials(&key)?) {
                Err(FetchError::Denied { why }) => {
                    access.refused(&key);
                    denied = why;
                    tried.push(key);
                }
                done => return done,
            }
        }
    }

    fn credentials(&self, key: &Key) -> Result<Credentials, FetchError> {
        if let Key::Word(word) = key {
            return Ok(Credentials::Token(word.expose().to_owned()));
        }
        let Some(path) = &self.token_file else {
            return Ok(Credentials::None);
        };
        let token = std::fs::read_to_string(path).map_err(|e| FetchError::Unreachable {
            why: format!(
                "the token for it cannot be read from {}: {e}",
                path.display()
            ),
        })?;
        Ok(Credentials::Token(token.trim().to_owned()))
    }

    fn remote(&self, repository: &str) -> Result<RemoteUrl, FetchError> {
        let url = format!("{}/{repository}.git", self.url.trim_end_matches('/'));
        RemoteUrl::parse(&url).map_err(|e| FetchError::Refused { why: e.to_string() })
    }

    fn store(&self) -> Result<ObjectStore, FetchError> {
        Ok(ObjectStore::open(&self.layout.store())?)
    }
}

impl Source for Registry {
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
        let found = checkout::open(&self.layout.repository(key), key.name())?;
        Ok(found.map(|found| ours(&found)))
    }

    fn plan(
        &self,
        key: &CheckoutKey,
        volume: &VolumeAttributes,
        progress: &Progress,
    ) -> Result<Plan, FetchError> {
        let url = self.remote(&volume.repository)?;
        let (commit, include) = content(volume)?;
        let root = self.layout.repository(key);
        std::fs::create_dir_all(&root).map_err(|e| {
            if is_full(&e) {
                return disk_full(root.clone());
            }
            FetchError::Internal {
                why: format!("{} cannot be made: {e}", root.display()),
            }
        })?;
        let bare = self.layout.bare(key);
        repo::init_bare(&bare)?;
        self.opened(&progress.access, |credentials| {
            repo::fetch_commit(
                &bare,
                &repo::Fetch {
                    url: &url,
                    reference: &Reference::Commit(commit.clone()),
                    commit: &commit,
                    credentials,
                    history: repo::History::None,
                },
                &Watch { progress },
            )
            .map_err(|error| match error {
                RemoteError::DiskFull { .. } => disk_full(bare.clone()),
                other => other.into(),
            })
        })?;
        let entries = tree::walk(&bare, &commit, &include, &tree::Limits::default())?;
        let pointers = tree::pointers(&entries);
        let blob_bytes = entries.iter().map(|entry| match &entry.kind {
            EntryKind::Blob { size, .. } => size.next_multiple_of(DISK_BLOCK_BYTES),
            EntryKind::Lfs { .. } | EntryKind::Symlink { .. } => 0,
        });
        let plan = Plan {
            objects: Arc::new(pointers.iter().map(|p| p.oid.clone()).collect()),
            blob_bytes: blob_bytes.sum(),
            pointers,
        };
        // Never 0: that would mean that it is not known.
        let total = plan.bytes().max(1);
        progress.bytes_total.store(total, Ordering::Relaxed);
        Ok(plan)
    }

    fn missing(&self, plan: &Plan) -> Result<Missing, FetchError> {
        let store = self.store()?;
        let mut missing = Missing::default();
        for pointer in &plan.pointers {
            let present = match store.size(&pointer.oid)? {
                Some(size) if size == pointer.size => size,
                _ => store.part_len(pointer).min(pointer.size),
            };
            missing.present_bytes += present;
            missing.needed_bytes += pointer.size - present;
        }
        missing.needed_bytes += plan.blob_bytes;
        Ok(missing)
    }

    fn bring(
        &self,
        volume: &VolumeAttributes,
        plan: &Plan,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        // Invariant: a checkout holds only what the registry offers for its own repository. The
        // node's store knows no owners, and a pointer to the object of another is easily written.
        let (url, store) = (self.remote(&volume.repository)?, self.store()?);
        let transfer = self.opened(&progress.access, |credentials| {
            let options = lfs::Options {
                shared_store: true,
                ..lfs::Options::default()
            };
            let client = lfs::Client::new(&url, credentials, options)?;
            Ok(client.fetch(&plan.pointers, &store, &Watch { progress })?)
        })?;
        self.metrics.fetched_bytes.inc_by(transfer.bytes_moved);
        tracing::info!(
            repository = volume.repository,
            commit = volume.commit.as_str(),
            objects_present = transfer.objects_present,
            objects_fetched = transfer.objects_moved,
            bytes_fetched = transfer.bytes_moved,
            "objects fetched"
        );
        Ok(())
    }

    fn build(&self, key: &CheckoutKey, volume: &VolumeAttributes) -> Result<Checkout, FetchError> {
        let (commit, include) = content(volume)?;
        let made = checkout::materialise(
            &checkout::Source {
                bare: &self.layout.bare(key),
                commit: &commit,
                include: &include,
                limits: tree::Limits::default(),
                store: &self.store()?,
            },
            &self.layout.repository(key),
        )?;
        tracing::info!(
            repository = volume.repository,
            commit = volume.commit.as_str(),
            files = made.files.len(),
            "checkout complete"
        );
        Ok(ours(&made))
    }
}

/// What helps where the registry takes none of these keys.
fn advice(tried: &[Key]) -> &'static str {
    if tried.iter().all(|key| *key == Key::Node) {
        "the volume has no word of its own, as those that an earlier release made: have its pods made \
         anew, or start the registry with --node-token-reads-all"
    } else {
        "the registry does not know the volume's word, or it opens something else: while the \
         PersistentVolume is there, the operator puts that right within a minute"
    }
}

/// The commit of a volume, and which of its files.
fn content(volume: &VolumeAttributes) -> Result<(CommitId, Include), FetchError> {
    let commit = volume.commit.as_str();
    let commit = commit
        .parse()
        .expect("both crates mean the same by a commit");
    let include =
        Include::new(&volume.include).map_err(|e| FetchError::Refused { why: e.to_string() })?;
    Ok((commit, include))
}

/// Passes the progress of files on, and the wish to end.
struct Watch<'a> {
    progress: &'a Progress,
}

impl Observer for Watch<'_> {
    fn progress(&self, progress: hyprstream_git2db::Progress) {
        if let hyprstream_git2db::Progress::Objects { bytes_done, .. } = progress {
            self.progress
                .bytes_done
                .store(bytes_done, Ordering::Relaxed);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.progress.cancelled.load(Ordering::Relaxed)
    }
}

/// What of a checkout a volume's manifest tells. A link to a file of the checkout stands there as
/// that file, for so it reads; other links have no content of their own.
fn ours(found: &checkout::Checkout) -> Checkout {
    let root = found
        .path
        .canonicalize()
        .unwrap_or_else(|_| found.path.clone());
    let real: std::collections::HashMap<PathBuf, &checkout::CheckoutFile> = found
        .files
        .iter()
        .filter(|file| file.mode != FileMode::Symlink)
        .map(|file| (root.join(&file.path), file))
        .collect();
    let files = found
        .files
        .iter()
        .filter_map(|file| {
            let content = match file.mode {
                FileMode::File | FileMode::Executable => file,
                FileMode::Symlink => {
                    let target = root.join(&file.path).canonicalize().ok()?;
                    real.get(&target)?
                }
            };
            Some(ManifestFile {
                path: file.path.clone(),
                size_bytes: content.size_bytes,
                sha256: content.sha256.to_string(),
            })
        })
        .collect();
    Checkout {
        path: found.path.clone(),
        files,
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::grants::Word;

    use super::*;

    fn registry(folder: &std::path::Path) -> Registry {
        let token_file = folder.join("token");
        std::fs::write(&token_file, "node-token\n").unwrap();
        Registry {
            url: "http://registry".to_owned(),
            token_file: Some(token_file),
            layout: Layout::new(folder).unwrap(),
            metrics: Metrics::new().unwrap(),
        }
    }

    fn denied<T>() -> Result<T, FetchError> {
        let why = "401".to_owned();
        Err(FetchError::Denied { why })
    }

    #[test]
    fn a_fetch_outlives_the_right_of_the_volume_that_began_it() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        let word = |byte| Word::from_bytes([byte; 32]);
        let token = |byte: u8| Credentials::Token(word(byte).expose().to_owned());
        let access = Access::of(Key::Word(word(1)));
        // Another volume joins while the first one's word is refused.
        let by = registry.opened(&access, |credentials| {
            access.hold(Key::Word(word(2)));
            if *credentials == token(1) {
                return denied();
            }
            Ok(credentials.clone())
        });
        assert!(by == Ok(token(2)));
        // Another failure is no reason to try another key.
        let tries = std::sync::atomic::AtomicUsize::new(0);
        let failed: Result<(), _> = registry.opened(&access, |_| {
            tries.fetch_add(1, Ordering::Relaxed);
            let why = "down".to_owned();
            Err(FetchError::Unreachable { why })
        });
        assert!(matches!(failed, Err(FetchError::Unreachable { .. })));
        assert_eq!(tries.into_inner(), 1);
    }

    #[test]
    fn a_volume_without_a_word_is_read_by_the_token_of_the_node_and_no_other_is() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        let by = registry.opened(&Access::default(), |credentials| Ok(credentials.clone()));
        assert!(by == Ok(Credentials::Token("node-token".into())));
        let refused: Result<(), _> = registry.opened(&Access::of(Key::Node), |_| denied());
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("no word of its own")
        );
        let word = Key::Word(Word::from_bytes([1; 32]));
        let refused: Result<(), _> = registry.opened(&Access::of(word), |credentials| {
            assert!(*credentials != Credentials::Token("node-token".into()));
            denied()
        });
        let told = refused.unwrap_err().to_string();
        assert!(
            told.contains("does not know the volume's word") && !told.contains("hsv_"),
            "{told}"
        );
    }
}
