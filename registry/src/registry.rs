//! The registry as a program runs it.

use std::{
    fs::{self, File, TryLockError},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyprstream_slots::Slots;
use hyprstream_telemetry::Probe;
use hyprstream_tls::{Handshakes, ServerIdentity, TlsError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::Lists,
    audit::Audit,
    auth::{Auth, KubernetesTokens, SecretsError, TokenFiles},
    collect, commits,
    events::Events,
    git::{GitRunner, repair},
    layout::{Layout, LayoutError},
    let_go::Promised,
    lfs::parts::{self, Uploads},
    limits::Limits,
    metrics::Metrics,
    mirrors::Mirrors,
    pins, scrub, server,
    state::State,
    upstreams::{AllowedUpstream, Upstreams},
};

/// What a registry is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of everything that is kept.
    pub root: PathBuf,
    /// Where the secrets lie.
    pub tokens: TokenFiles,
    /// How tokens of the cluster's API server are checked; `None` if they are not taken.
    pub kubernetes: Option<KubernetesTokens>,
    /// By what TLS is served; `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// How much clients may ask for.
    pub limits: Limits,
    /// Upstreams that are fetched from although their addresses are not public.
    pub allowed_upstreams: Vec<AllowedUpstream>,
    /// Mirrors that nobody used for this long are removed, with the objects that belong to no
    /// other repository. `None` keeps everything.
    pub keep: Option<Duration>,
}

/// By what TLS is served.
#[derive(Clone, Debug)]
pub struct Tls {
    /// File with the certificate (PEM). Read again when it changes.
    pub certificate: PathBuf,
    /// File with its key (PEM). Read again when it changes.
    pub key: PathBuf,
    /// Whether plain HTTP is served on the same port.
    pub accepts_plain: bool,
}

/// An open registry.
pub struct Registry {
    state: Arc<State>,
    handshakes: Option<Handshakes>,
    keep: Option<Duration>,
    _lock: File,
}

/// The registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The root cannot be made or locked.
    #[error("cannot use {path}")]
    Root {
        /// The root or a file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the root.
    #[error("another registry uses {path}")]
    InUse {
        /// The root.
        path: PathBuf,
    },
    /// The folders in the root cannot be made.
    #[error("cannot lay out the root")]
    Layout(#[source] LayoutError),
    /// The secrets cannot be read.
    #[error("cannot read the secrets")]
    Secrets(#[source] SecretsError),
    /// The certificate cannot be served with.
    #[error("cannot serve TLS")]
    Tls(#[source] TlsError),
    /// The metrics cannot be set up.
    #[error("cannot set up the metrics")]
    Metrics(#[source] prometheus::Error),
    /// There is no usable git.
    #[error("git cannot be run: install git 2.39 or later")]
    Git(#[source] io::Error),
}

/// A git process that outlived a kill of the registry ends with its pipe, well within this time.
const ORPHAN_AGE: Duration = Duration::from_secs(5);
/// Handshakes of TLS that are worked on at the same time.
const HANDSHAKES: usize = 256;
/// Longest that one may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
const STALE_LOCK_AGE: Duration = Duration::from_hours(1);
const SECRETS_INTERVAL: Duration = Duration::from_secs(10);
const UPKEEP_INTERVAL: Duration = Duration::from_mins(10);
const PLAN_INTERVAL: Duration = Duration::from_mins(1);

impl Registry {
    /// Opens the root, and cleans up what a killed process left in it. Blocks.
    pub fn open(settings: Settings) -> Result<Self, OpenError> {
        let Settings {
            root,
            tokens,
            kubernetes,
            tls,
            limits,
            allowed_upstreams,
            keep,
        } = settings;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Root { path, source }
        };
        fs::create_dir_all(&root).map_err(failed(&root))?;
        let root = root.canonicalize().map_err(failed(&root))?;
        let path = root.join("lock");
        let lock = File::create(&path).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: root }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Root { path, source }),
        }
        std::process::Command::new("git")
            .arg("--version")
            .output()
            .map_err(OpenError::Git)?;
        let auth = Auth::open(tokens, kubernetes).map_err(OpenError::Secrets)?;
        let handshakes = tls
            .map(|tls| {
                let identity = ServerIdentity::open(tls.certificate, tls.key)?;
                let handshakes = Handshakes::new(&identity, HANDSHAKES, HANDSHAKE_PATIENCE);
                Ok(handshakes.accepting_plain(tls.accepts_plain))
            })
            .transpose()
            .map_err(OpenError::Tls)?;
        let metrics = Metrics::new().map_err(OpenError::Metrics)?;
        let layout = Layout::open(&root).map_err(OpenError::Layout)?;
        collect::clear(&layout);
        for repository in collect::repositories(&layout) {
            let removed = repair(&layout.repository(&repository), ORPHAN_AGE);
            if removed > 0 {
                tracing::info!(%repository, removed, "removed what a killed push left behind");
            }
        }
        let git = GitRunner::new(limits.git, &root, metrics.git_processes.clone());
        let adapters = Lists::open(&root, layout.tmp()).map_err(failed(&root.join("adapters")))?;
        let audit = Audit::open(&root).map_err(failed(&root.join("audit")))?;
        let state = State {
            audit,
            adapters,
            mirrors: Mirrors::new(limits.max_fetches),
            layout,
            auth,
            git,
            events: Events::new(),
            metrics,
            limits,
            found_good: parking_lot::Mutex::default(),
            read_again: parking_lot::Mutex::default(),
            reading: parking_lot::Mutex::default(),
            setting_aside: parking_lot::Mutex::default(),
            uploads: Uploads::new(limits.max_uploads),
            commits: Slots::new(commits::PLACES),
            promised: Promised::default(),
            upstreams: Arc::new(Upstreams::new(allowed_upstreams)),
            shutdown: CancellationToken::new(),
        };
        Ok(Self {
            state: Arc::new(state),
            handshakes,
            keep,
            _lock: lock,
        })
    }

    /// The metrics, for the admin server.
    pub fn metrics(&self) -> prometheus::Registry {
        self.state.metrics.registry.clone()
    }

    /// Says whether requests can be served.
    pub fn ready(&self) -> Probe {
        let state = Arc::clone(&self.state);
        Arc::new(move || {
            if state.shutdown.is_cancelled() {
                return Err("the registry is ending".to_owned());
            }
            // A full disk is no reason to stop serving what is there.
            state
                .layout
                .store()
                .available_bytes()
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }

    /// Serves until `shutdown` ends, then lets requests end for up to 25 seconds.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let upkeep = tokio::spawn(upkeep(Arc::clone(&self.state), self.keep));
        let secrets = tokio::spawn(follow_secrets(Arc::clone(&self.state)));
        let plans = tokio::spawn(keep_plans(Arc::clone(&self.state)));
        let rate = self.state.limits.scrub_bytes_per_second;
        let scrub = tokio::spawn(scrub::forever(Arc::clone(&self.state), rate));
        let state = Arc::clone(&self.state);
        let served = server::serve(listener, state, self.handshakes, shutdown).await;
        self.state.mirrors.cancel.cancel();
        upkeep.abort();
        secrets.abort();
        plans.abort();
        scrub.abort();
        served
    }
}

async fn follow_secrets(state: Arc<State>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(SECRETS_INTERVAL).await;
        let reloading = Arc::clone(&state);
        let result = tokio::task::spawn_blocking(move || reloading.auth.reload()).await;
        match result {
            Ok(Err(error)) if !failing => {
                let error = crate::refusal::chain(&error);
                tracing::error!(
                    error,
                    "the secrets could not be read again; the old ones stay"
                );
                failing = true;
            }
            Ok(Ok(())) => failing = false,
            _ => {}
        }
        for (name, count) in state.mirrors.count() {
            state
                .metrics
                .mirrors
                .with_label_values(&[name])
                .set(count as i64);
        }
        if let Ok(free) = state.layout.store().available_bytes() {
            state
                .metrics
                .free_bytes
                .set(free.try_into().unwrap_or(i64::MAX));
        }
    }
}

async fn keep_plans(state: Arc<State>) {
    loop {
        let planning = Arc::clone(&state);
        let _ = tokio::task::spawn_blocking(move || collect::keep_plan(&planning)).await;
        tokio::time::sleep(PLAN_INTERVAL).await;
    }
}

async fn upkeep(state: Arc<State>, keep: Option<Duration>) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        for repository in collect::repositories(&state.layout) {
            if let Some(keep) = keep {
                pins::let_go(&state, &repository, keep).await;
            }
            let path = state.layout.repository(&repository);
            let repaired = path.clone();
            let _ = tokio::task::spawn_blocking(move || repair(&repaired, STALE_LOCK_AGE)).await;
            if !collect::changed_within(&path, UPKEEP_INTERVAL * 2) {
                continue;
            }
            // Every push and every fetch leaves a pack; git decides when to join them. Not while
            // somebody pushes: what a refused push leaves is told by its packs being new.
            let Some(_alone) = state.git.try_alone(&path) else {
                continue;
            };
            if let Err(error) = state.git.run(&path, &["gc", "--auto", "--quiet"]).await {
                tracing::warn!(%repository, %error, "git gc failed");
            }
        }
        let tidying = Arc::clone(&state);
        let _ = tokio::task::spawn_blocking(move || parts::tidy(&tidying, None)).await;
        if let Some(keep) = keep {
            let collecting = Arc::clone(&state);
            let _ = tokio::task::spawn_blocking(move || collect::collect(&collecting, keep)).await;
        }
    }
}
