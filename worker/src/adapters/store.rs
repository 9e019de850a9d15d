//! The store itself: what all clones of [`super::Adapters`] and its tasks share.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use hyprstream_contract::worker_adapters::Origin;
use hyprstream_engine::{AttachError, EngineHandle};
use hyprstream_models::adapter::{AdapterDigest, AdapterFiles, AdapterLimits};
use prometheus::{Histogram, HistogramOpts};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    Options,
    entry::{Record, Residence, Resident},
    packer::{PackError, PackLimits, Packer, Unpacked, aside, read_files},
    room::{Amount, Ledger, Room, Tally, lock},
    state::State,
};
use crate::clock::now;

/// How many adapters are read at once: one for what folders list, and one for whoever waits.
const READERS: usize = 2;

/// See the module.
pub(super) struct Store {
    pub(super) engine: EngineHandle,
    packer: Arc<dyn Packer>,
    pub(super) options: Options,
    state: Mutex<State>,
    pub(super) ledger: Arc<Ledger>,
    readers: Semaphore,
    /// Told when something is to be loaded, and at the end.
    pub(super) work: Arc<Notify>,
    pub(super) running: Arc<Tally>,
    pub(super) waiting: Arc<Tally>,
    pub(super) load_seconds: Histogram,
}

impl Store {
    pub(super) fn new(engine: EngineHandle, packer: Arc<dyn Packer>, options: Options) -> Self {
        let mut unseen = BTreeSet::new();
        unseen.extend(options.follow.as_ref().map(|_| Origin::Followed));
        unseen.extend(options.repository.as_ref().map(|_| Origin::Repository));
        let state = State::new(&options.model, options.commit.as_deref(), unseen);
        Self {
            engine,
            packer,
            state: Mutex::new(state),
            ledger: Arc::new(Ledger::new(options.limits)),
            readers: Semaphore::new(READERS),
            work: Arc::default(),
            running: Arc::default(),
            waiting: Arc::default(),
            load_seconds: load_seconds(&options.model),
            options,
        }
    }

    /// What is known. Never kept over an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes what is known, and lets whoever loads look at it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        state.settle();
        drop(state);
        self.work.notify_one();
        changed
    }

    /// Reads and packs `files` beside the engine's work, when it is its turn.
    ///
    /// # Errors
    /// [`PackError`].
    pub(super) async fn read(&self, files: AdapterFiles) -> Result<Unpacked, PackError> {
        let turn = self.readers.acquire().await;
        let _turn = turn.expect("the semaphore is never closed");
        let packer = Arc::clone(&self.packer);
        let limits = self.limits();
        aside(move || read_files(&*packer, &files, limits)).await?
    }

    fn limits(&self) -> PackLimits {
        let bytes = self.options.limits.memory_bytes;
        let default = AdapterLimits::default();
        PackLimits {
            files: AdapterLimits {
                max_rank: self.options.limits.rank,
                // What was saved in f32 takes half as much in bf16.
                max_bytes: default.max_bytes.min(bytes.saturating_mul(2)),
            },
            bytes,
        }
    }

    /// Attaches what was read, in `room`.
    ///
    /// # Errors
    /// The engine does not take it.
    pub(super) async fn attach(
        &self,
        unpacked: Unpacked,
        room: Room,
    ) -> Result<Arc<Resident>, PackError> {
        let packed = unpacked.packed;
        let digest = *packed.digest.as_bytes();
        let attached = self.engine.attach(digest, packed.content).await;
        let adapter = attached.map_err(|error| {
            let is_final = matches!(error, AttachError::Refused(_));
            let reason = if is_final { "Refused" } else { "EngineDied" };
            PackError::new(reason, error.to_string(), is_final)
        })?;
        Ok(Arc::new(Resident {
            adapter,
            _room: room,
        }))
    }

    /// Makes a record of what was read: ready to compute with if there is room, be it that of
    /// others which no request has, or that of what it replaces, `credit`.
    ///
    /// # Errors
    /// The engine does not take it.
    pub(super) async fn place(
        &self,
        unpacked: Unpacked,
        from: From,
        credit: Amount,
        keep: &BTreeSet<u64>,
    ) -> Result<Record, PackError> {
        let bytes = unpacked.packed.content.bytes();
        let room = self
            .state()
            .make_room(&self.ledger, &[bytes], keep, credit)
            .and_then(|mut rooms| rooms.pop());
        let mut record = Record {
            id: 0,
            files: from.files,
            folder: from.folder,
            digest: unpacked.packed.digest,
            rank: unpacked.packed.rank,
            sha256: unpacked.sha256.clone(),
            size: unpacked.size,
            loaded_at: now(),
            bytes,
            revision: unpacked.packed.revision.clone(),
            scale: from.scale,
            residence: Residence::Files,
            used: 0,
        };
        if let Some(room) = room {
            record.residence = Residence::Here(self.attach(unpacked, room).await?);
        }
        let mut state = self.state();
        record.id = state.tick();
        record.used = record.id;
        Ok(record)
    }

    /// A load that began at `start` is over.
    pub(super) fn loaded(&self, name: &str, digest: &AdapterDigest, start: Instant) {
        let took: Duration = start.elapsed();
        self.load_seconds.observe(took.as_secs_f64());
        tracing::info!(adapter = name, %digest, seconds = took.as_secs_f64(), "adapter loaded");
    }
}

/// Where a record is from.
#[derive(Clone, Debug)]
pub(super) struct From {
    pub(super) files: AdapterFiles,
    pub(super) folder: Option<String>,
    pub(super) scale: f32,
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever waits for work finds that there is no store any more.
        self.work.notify_one();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn load_seconds(model: &str) -> Histogram {
    let buckets = [
        0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    ];
    let options = HistogramOpts::new(
        "vllm:lora_adapter_load_seconds",
        "Time from an adapter's files until requests can be answered with it, in seconds.",
    )
    .const_label("model_name", model)
    .buckets(buckets.to_vec());
    Histogram::with_opts(options).expect("name, label and buckets are constant and right")
}
