//! The store with folders and files as they are, and an engine that computes nothing.

#![allow(clippy::float_cmp, reason = "scales are copied, not computed")]

mod follow;
mod real;
mod repository;
mod request;
mod residency;
mod robust;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use hyprstream_contract::{
    adapters::{AdapterFolder, AdapterState, BaseCommitPolicy, FOLDER_FILE, FolderEntry},
    worker_adapters::{LoadState, Origin, WorkerAdapter},
};
use hyprstream_engine::{
    Engine, EngineConfig, EngineHandle, NoObserver, Request, SamplingParams, StopRules,
    fake::{self, FakeBackend, FakeOptions},
};

use super::{
    Adapters, Limits, Options, TakeError, Taken, Timing, Wanted,
    fake::{FakePacker, adapter_of},
};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A store over a folder of its own.
pub(super) struct Rig {
    pub(super) adapters: Adapters,
    pub(super) packer: Arc<FakePacker>,
    pub(super) engine: EngineHandle,
    /// How many the backend has.
    attached: Arc<AtomicUsize>,
    root: tempfile::TempDir,
}

impl Rig {
    /// One that follows the folder `followed`.
    pub(super) fn following() -> Self {
        Self::new(
            |_| {},
            |root, options| options.follow = Some(root.join("followed")),
        )
    }

    /// One over what `prepare` puts into its folder, with what `options` changes.
    pub(super) fn new(
        prepare: impl FnOnce(&Path),
        options: impl FnOnce(&Path, &mut Options),
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("followed")).unwrap();
        prepare(root.path());
        let attached = Arc::default();
        let fake = FakeOptions {
            attached: Arc::clone(&attached),
            ..FakeOptions::default()
        };
        let engine = engine(fake);
        let mut all = Options {
            commit: Some(COMMIT.to_owned()),
            timing: Timing {
                look: Duration::from_millis(1),
                patience: Duration::from_secs(10),
                min_retry: Duration::from_millis(5),
                max_retry: Duration::from_millis(20),
                hindered: Duration::from_mins(10),
            },
            ..Options::default()
        };
        options(root.path(), &mut all);
        let packer = Arc::new(FakePacker::default());
        Self {
            adapters: Adapters::new(engine.clone(), Arc::clone(&packer) as _, all),
            packer,
            engine,
            attached,
            root,
        }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Writes an adapter of this content into `followed/FOLDER`.
    pub(super) fn files(&self, folder: &str, content: &str) {
        write_adapter(&self.path("followed").join(folder), content, "{}");
    }

    /// Lists these adapters, as a node does.
    pub(super) fn list(&self, revision: &str, adapters: Vec<FolderEntry>) {
        let list = AdapterFolder {
            revision: revision.to_owned(),
            adapters,
        };
        self.list_text(&serde_json::to_string(&list).unwrap());
    }

    pub(super) fn list_text(&self, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path("followed").join(FOLDER_FILE)).unwrap();
    }

    /// What is told of the adapter of this name that has the name.
    pub(super) fn told(&self, name: &str) -> Option<WorkerAdapter> {
        let list = self.adapters.list().data;
        list.into_iter().find(|adapter| adapter.name == name)
    }

    /// What is told of the adapter of this name and origin.
    pub(super) fn told_of(&self, name: &str, origin: Origin) -> Option<WorkerAdapter> {
        let list = self.adapters.list().data;
        let mut list = list.into_iter();
        list.find(|adapter| adapter.name == name && adapter.origin == origin)
    }

    /// Waits until the adapter of this name has this state and is served as this content.
    #[track_caller]
    pub(super) fn becomes(
        &self,
        name: &str,
        state: &str,
        serving: Option<&str>,
    ) -> impl Future<Output = WorkerAdapter> {
        let what = format!("{name} is {state} and serves {serving:?}");
        async move {
            let expected = serving.map(digest);
            until(&what, || {
                let told = self.told(name)?;
                let digest = told.serving.as_ref().map(|serving| serving.digest.clone());
                (reason(&told) == state && digest == expected).then_some(told)
            })
            .await
        }
    }

    pub(super) async fn ready(&self) {
        until("it is ready", || self.adapters.ready().ok()).await;
    }

    pub(super) async fn take(&self, name: &str) -> Result<Taken, TakeError> {
        self.take_all(&[name])
            .await
            .map(|mut taken| taken.remove(0))
    }

    pub(super) async fn take_all(&self, names: &[&str]) -> Result<Vec<Taken>, TakeError> {
        let wanted: Vec<Wanted> = names
            .iter()
            .map(|name| Wanted {
                name: (*name).to_owned(),
                scale: None,
            })
            .collect();
        self.adapters.take(&wanted).await
    }

    /// Whether what was taken answers as an adapter of this content.
    pub(super) async fn answers(&self, taken: &Taken, content: &str) -> bool {
        let prompt = vec![70, 80, 90];
        let request = Request {
            prompt: prompt.clone(),
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            stop: StopRules {
                max_tokens: Some(8),
                ..StopRules::default()
            },
            adapters: vec![(taken.adapter.clone(), taken.scale)],
            ..Request::default()
        };
        let mut stream = self.engine.submit(request).unwrap();
        let mut tokens = Vec::new();
        while let Some(piece) = stream.next().await {
            tokens.extend(piece.unwrap().tokens);
        }
        let adapter = adapter_of(content.as_bytes());
        tokens == fake::greedy_with(&[(adapter, taken.scale)], &prompt, 8)
    }

    /// Waits until the backend has so many adapters.
    pub(super) async fn attached(&self, count: usize) {
        until(&format!("{count} are attached"), || {
            (self.attached.load(Ordering::Acquire) == count).then_some(())
        })
        .await;
    }
}

/// An engine that computes nothing, as `fake` says.
pub(super) fn engine(fake: FakeOptions) -> EngineHandle {
    Engine::start(
        Box::new(FakeBackend::new(256, 1024, fake)),
        Arc::new(fake::tokenizer()),
        EngineConfig::default(),
        Arc::new(NoObserver),
    )
    .unwrap()
}

/// Writes an adapter into a folder.
pub(super) fn write_adapter(folder: &Path, content: &str, config: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), content).unwrap();
    fs::write(folder.join("adapter_config.json"), config).unwrap();
}

/// An entry whose files are there.
pub(super) fn entry(name: &str, folder: &str) -> FolderEntry {
    FolderEntry {
        name: name.to_owned(),
        scale: 1.0,
        folder: folder.to_owned(),
        source: format!("https://example.org/{name}"),
        commit: COMMIT.parse().unwrap(),
        base_commit: BaseCommitPolicy::Warn,
        state: AdapterState::Ready,
    }
}

pub(super) fn pending(name: &str, folder: &str) -> FolderEntry {
    FolderEntry {
        state: AdapterState::Pending,
        ..entry(name, folder)
    }
}

/// An entry that the node could not have.
pub(super) fn lacking(name: &str, folder: &str, reason: &str, transient: bool) -> FolderEntry {
    FolderEntry {
        state: AdapterState::Failed {
            reason: reason.to_owned(),
            message: "m".to_owned(),
            transient,
        },
        ..entry(name, folder)
    }
}

/// `Loading`, `Loaded`, or why it failed.
pub(super) fn reason(told: &WorkerAdapter) -> &str {
    match &told.state {
        LoadState::Loading => "Loading",
        LoadState::Loaded => "Loaded",
        LoadState::Failed { reason, .. } => reason,
    }
}

pub(super) fn digest(content: &str) -> String {
    use sha2::Digest as _;
    let digest: [u8; 32] = sha2::Sha256::digest(content).into();
    hyprstream_models::adapter::AdapterDigest::from(digest).to_string()
}

/// Waits until there is something.
pub(super) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..10_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came: {what}")
}

pub(super) fn limits(memory_bytes: u64, resident: usize) -> Limits {
    Limits {
        memory_bytes,
        resident,
        ..Limits::default()
    }
}
