//! Adapters that an engine's backend has.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use super::shared::Shared;
use crate::{AdapterId, BackendError, PackedAdapter, cache::AdapterKey};

/// SHA-256 of what an adapter computes: of its tensors, and of its configuration as far as that
/// matters.
pub type AdapterDigest = [u8; 32];

/// An attached adapter. It stays attached as long as somebody has a clone of this; a request that
/// runs with it has one.
#[derive(Clone)]
pub struct Adapter {
    held: Arc<Held>,
}

/// What all clones of an [`Adapter`] share.
pub(crate) struct Held {
    id: AdapterId,
    digest: AdapterDigest,
    /// Of the engine that has it.
    home: Arc<Shared>,
    /// Weak, so that an adapter does not keep the engine running.
    thread: mpsc::WeakSender<Command>,
}

/// What the engine's thread is told between two steps.
pub(crate) enum Command {
    /// Take an adapter, and say how that went.
    Attach {
        packed: PackedAdapter,
        held: Weak<Held>,
        id: AdapterId,
        told: oneshot::Sender<Result<(), BackendError>>,
    },
    /// Look which adapters nobody has any more.
    Look,
}

/// An adapter was not attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The backend does not take it.
    #[error("the adapter cannot be attached: {0}")]
    Refused(String),
    /// The engine is no more.
    #[error("the engine has stopped")]
    Stopped,
}

impl Adapter {
    /// A new name for an adapter of the engine `home`, which is told through `thread`.
    pub(crate) fn new(
        digest: AdapterDigest,
        home: Arc<Shared>,
        thread: mpsc::WeakSender<Command>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = AdapterId::new(NEXT.fetch_add(1, Ordering::Relaxed));
        Self {
            held: Arc::new(Held {
                id,
                digest,
                home,
                thread,
            }),
        }
    }

    /// Its digest.
    pub fn digest(&self) -> &AdapterDigest {
        &self.held.digest
    }

    pub(crate) fn id(&self) -> AdapterId {
        self.held.id
    }

    /// Whether the engine of `shared` has it.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.held.home, shared)
    }

    pub(crate) fn downgrade(&self) -> Weak<Held> {
        Arc::downgrade(&self.held)
    }

    /// What cached keys and values depend on, at this scale.
    pub(crate) fn key(&self, scale: f32) -> AdapterKey {
        AdapterKey {
            digest: self.held.digest,
            scale: scale.to_bits(),
        }
    }
}

/// One attachment is equal to itself alone.
impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.held, &other.held)
    }
}

impl Eq for Adapter {}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adapter").field(&self.held.id).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The thread may sleep. If there is no room for the message it does not, and looks anyway.
        if let Some(thread) = self.thread.upgrade() {
            let _ = thread.try_send(Command::Look);
        }
    }
}

/// The adapters that a backend has, on the engine's thread.
#[derive(Default)]
pub(crate) struct Attached {
    all: Vec<(AdapterId, Weak<Held>)>,
}

impl Attached {
    pub(crate) fn add(&mut self, id: AdapterId, held: Weak<Held>) {
        self.all.push((id, held));
    }

    /// Calls `detach` for each that nobody has any more, and forgets it.
    pub(crate) fn forget_unheld(&mut self, mut detach: impl FnMut(AdapterId)) {
        self.all.retain(|(id, held)| {
            let lives = held.strong_count() > 0;
            if !lives {
                detach(*id);
            }
            lives
        });
    }
}
