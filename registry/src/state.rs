//! What all requests share.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

use hyprstream_git2db::{Digest, lfs::Guard};
use hyprstream_slots::Slots;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::Lists,
    audit::{Audit, Entry},
    auth::Auth,
    events::Events,
    git::GitRunner,
    grants::Grants,
    layout::Layout,
    let_go::Promised,
    lfs::parts::Uploads,
    limits::Limits,
    metrics::Metrics,
    mirrors::Mirrors,
    names::Repository,
    refusal::{Refusal, is_disk_full},
    upstreams::Upstreams,
};

/// What all requests share.
pub(crate) struct State {
    pub(crate) layout: Layout,
    pub(crate) auth: Auth,
    /// Who changed what.
    pub(crate) audit: Audit,
    pub(crate) git: GitRunner,
    pub(crate) events: Events,
    pub(crate) mirrors: Mirrors,
    /// Which adapters workers have.
    pub(crate) adapters: Lists,
    /// What the volumes of nodes open.
    pub(crate) grants: Arc<Grants>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    /// LFS uploads that are under way.
    pub(crate) uploads: Uploads,
    /// Places for commits that are made over the API.
    pub(crate) commits: Slots,
    /// Objects that were read again and found good, with inode and size.
    pub(crate) found_good: Mutex<HashMap<Digest, (u64, u64)>>,
    /// When repositories were read again because something was missing in them.
    pub(crate) read_again: Mutex<HashMap<Repository, Instant>>,
    /// Held while git reads a repository again.
    pub(crate) reading: Mutex<()>,
    /// Held by who sets a bad object aside.
    pub(crate) setting_aside: Mutex<()>,
    /// Objects of which clients were told that they need not be sent.
    pub(crate) promised: Promised,
    /// Which machines are fetched from.
    pub(crate) upstreams: Arc<Upstreams>,
    /// Set when the registry is to end.
    pub(crate) shutdown: CancellationToken,
}

impl State {
    /// The fence around upstreams as LFS clients take it.
    pub(crate) fn fence(&self) -> Guard {
        let upstreams = Arc::clone(&self.upstreams);
        Arc::new(move |host, address| upstreams.allows(host, address))
    }

    /// Refuses if less than `bytes` and the reserve are free.
    pub(crate) fn require_space(&self, bytes: u64) -> Result<(), Refusal> {
        let free = self
            .layout
            .store()
            .available_bytes()
            .map_err(|error| Refusal::internal("looking at the free space", &error))?;
        if free >= bytes.saturating_add(self.limits.min_free_bytes) {
            return Ok(());
        }
        Err(Refusal::disk_full(format!(
            "no space is left on the registry: {bytes} bytes are to be written, {free} are free, \
             {} of them are kept in reserve; enlarge its volume or remove repositories",
            self.limits.min_free_bytes
        )))
    }

    /// Makes the repository if it is not there. Returns its path.
    pub(crate) async fn create(
        self: &Arc<Self>,
        repository: &Repository,
    ) -> Result<PathBuf, Refusal> {
        if self.layout.exists(repository) {
            return Ok(self.layout.repository(repository));
        }
        let (state, repository) = (Arc::clone(self), repository.clone());
        let made = blocking(move || state.layout.create(&repository)).await?;
        made.map_err(|error| Refusal::internal("making the repository", &error))
    }

    /// Tells who follows a repository that was pushed what was done to it, as the audit log has it.
    pub(crate) fn announce(&self, repository: &Repository, done: &[Entry]) {
        let Repository::Pushed { namespace, name } = repository else {
            return;
        };
        let head = std::fs::read_to_string(self.layout.repository(repository).join("HEAD")).ok();
        let head = head.as_deref().and_then(|text| text.strip_prefix("ref: "));
        let head = head.map(str::trim);
        let changes = done.iter().map(|entry| entry.change(head)).collect();
        self.events.push(namespace.as_str(), name.as_str(), changes);
    }

    /// Notes that a mirror is in use, for the sake of the collector.
    pub(crate) fn touch(&self, repository: &Repository) {
        if matches!(repository, Repository::Mirror(_)) {
            let path = self.layout.repository(repository).join("hyprstream/used");
            if let Err(error) = std::fs::write(&path, b"") {
                tracing::debug!(%error, ?path, "the use of a mirror could not be noted");
            }
        }
    }

    /// An IO error of the disk as an answer.
    pub(crate) fn io_refusal(act: &'static str, error: &std::io::Error) -> Refusal {
        if is_disk_full(error) {
            Refusal::disk_full("no space is left on the registry")
        } else {
            Refusal::internal(act, error)
        }
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::internal("work in the background", &error))
}
