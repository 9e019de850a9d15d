//! Staging and publishing volumes: what a call asks for, the journal and the mounts brought
//! together.
//!
//! Every operation may be killed between any two of its steps and called again: it first looks at
//! what is there. The order is always journal, folders, mount on the way up, and mount, folders,
//! journal on the way down.

mod adapters;
mod gone;
mod health;
mod lock;
mod publish;
mod reconcile;
mod request;
mod stage;
#[cfg(test)]
mod tests;
mod upper;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use gone::{Asking, IDLE_FOR};
pub(crate) use health::{DiskUse, add_disk_use, disk_use};
pub use health::{Health, Usage};
pub use lock::{Guard, Locks};
pub use reconcile::Reconciled;
pub use request::{Publish, Stage, absolute_path};
pub use upper::Held;

use crate::{
    adapters::Adapters,
    error::Error,
    fetch::{Checkouts, Key},
    journal::Journal,
    layout::Layout,
    metrics::Metrics,
    mount::{Mounted, Mounts, mounted_at},
    witness::Witness,
};

/// How long a call of the kubelet waits for a fetch. The kubelet gives up after two minutes, and
/// asks again after an answer as well as after that.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The volumes of this node.
pub struct Volumes {
    /// Paths of the state.
    pub layout: Layout,
    /// The kernel.
    pub mounts: Arc<dyn Mounts>,
    /// What was asked for.
    pub journal: Journal,
    /// The files of commits.
    pub checkouts: Arc<Checkouts>,
    /// The adapters of Models.
    pub adapters: Arc<Adapters>,
    /// Folder of the kubelet, `/var/lib/kubelet`.
    pub kubelet_dir: PathBuf,
    /// Knows which PersistentVolumes there are.
    pub witness: Arc<dyn Witness>,
    /// What is known of asking it.
    pub asking: parking_lot::Mutex<Asking>,
    /// Metrics.
    pub metrics: Metrics,
    /// How long a stage waits for a fetch; [`PATIENCE`] but in tests.
    pub patience: Duration,
    /// One call at a time per volume.
    pub locks: Locks,
    /// Told when the disk turned out to be full.
    pub disk_full: Arc<tokio::sync::Notify>,
    /// Told when a volume found no room: what is gone is to go.
    pub no_room: tokio::sync::Notify,
    /// Told when a checkout turned out to be damaged.
    pub damaged: Arc<tokio::sync::Notify>,
    /// Told when a volume came or went.
    pub changed: tokio::sync::Notify,
    /// Told when it is known by which name a PersistentVolume can be asked for.
    pub named: tokio::sync::Notify,
}

impl Volumes {
    /// Lets the Models be followed whose adapters are on the node.
    pub fn follow(&self) {
        let entries = self.journal.all();
        let mut models: HashMap<_, Vec<Key>> = HashMap::new();
        for (entry, model) in entries.iter().filter_map(|e| Some((e, e.adapters()?))) {
            let key = self.journal.word(&entry.handle).into();
            models.entry(model).or_default().push(key);
        }
        self.adapters.set_staged(models);
    }

    /// Our mount at `path`; `None` if nothing is mounted there.
    fn our_mount(&self, path: &Path) -> Result<Option<Mounted>, Error> {
        match mounted_at(&*self.mounts, path)
            .map_err(|e| Error::io("look for mounts at", path, e))?
        {
            Some(mounted) if !mounted.is_ours() => Err(Error::ForeignMount {
                path: path.to_owned(),
                kind: mounted.mount.kind,
            }),
            other => Ok(other),
        }
    }

    /// Unmounts all that we mounted at `path`. A kill at the wrong time may have left two mounts.
    fn unmount_all(&self, path: &Path, detach_if_busy: bool) -> Result<(), Error> {
        while self.our_mount(path)?.is_some() {
            match self.mounts.unmount(path, false) {
                Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy && detach_if_busy => {
                    tracing::warn!(path = %path.display(), "mount is busy and is detached");
                    self.mounts
                        .unmount(path, true)
                        .map_err(|e| Error::io("unmount", path, e))?;
                }
                other => other.map_err(|e| Error::io("unmount", path, e))?,
            }
        }
        Ok(())
    }
}

/// Runs `work` on a thread of its own, where it may block; it ends even if the caller gives up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::BrokenOff))
}
