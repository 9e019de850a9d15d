//! The program: state, servers and chores, until told to end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyprstream_git2db::trust_server;
use hyprstream_telemetry::AdminServer;
use hyprstream_tls::{TlsError, Trust};
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    adapters::{Adapters, Following, RegistryLists, Timing},
    args::Args,
    error::Error,
    fetch::{Checkouts, Registry, Room},
    gc::{Collector, Scrub},
    journal::Journal,
    layout::Layout,
    metrics::Metrics,
    mount::{Kernel, Mounts},
    proto::{
        csi::{identity_server::IdentityServer, node_server::NodeServer},
        registration::registration_server::RegistrationServer,
    },
    server::{
        IdentityService, NodeService, Outcome, RegistrationService, bind, socket_name, unlink,
    },
    volumes::{Asking, IDLE_FOR, Locks, PATIENCE, Volumes, blocking},
    witness::RegistryWitness,
};

/// How often mounts are compared with what the kubelet knows, and figures are taken.
const RECONCILE_EVERY: Duration = Duration::from_mins(1);
/// How often unused data is looked for.
const COLLECT_EVERY: Duration = Duration::from_mins(5);
/// Figures are taken at most so often after volumes come or go.
const MEASURE_PAUSE: Duration = Duration::from_secs(2);

/// Names of PersistentVolumes are collected so long before they are asked for.
const NAMES_PAUSE: Duration = Duration::from_secs(1);
/// At most so often is asked which are gone because a volume found no room.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// The pause after reading files again failed.
const SCRUB_PAUSE: Duration = Duration::from_mins(10);

/// How long the calls under way have for their answers at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The program could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The flags contradict each other.
    #[error("{0}")]
    Flags(String),
    /// The state directory or a socket.
    #[error(transparent)]
    State(#[from] Error),
    /// The registry cannot be asked.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// Nobody knows whom to believe.
    #[error("the registry cannot be trusted")]
    Trust(#[from] TlsError),
    /// A metric is there twice.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The admin port.
    #[error("could not listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A server ended.
    #[error("the {name} server ended: {why}")]
    Server {
        /// Which.
        name: &'static str,
        /// Why.
        why: String,
    },
    /// The kubelet does not want this plugin. Ending makes it be asked again.
    #[error("the kubelet refused to register the plugin: {0}")]
    Refused(String),
}

/// Serves until `shutdown` ends. Mounts stay.
pub async fn run(
    args: Args,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let policy = args.policy().map_err(RunError::Flags)?;
    let scrub = args.scrub();
    let metrics = Metrics::new()?;
    let volumes = open(&args, &metrics).await?;
    let collector = Arc::new(Collector {
        volumes: Arc::clone(&volumes),
        policy,
    });
    let room: Weak<dyn Room> = Arc::<Collector>::downgrade(&collector);
    volumes.checkouts.set_room(room);

    let (stop, stopped) = watch::channel(false);
    let until_stopped = move || {
        let mut stopped = stopped.clone();
        async move {
            // An error means that the sender is gone, which is an end as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };

    let registration_socket = args.registration_dir.join(socket_name());
    let csi = UnixListenerStream::new(bind(&args.endpoint)?);
    let node = NodeService {
        volumes: Arc::clone(&volumes),
        node_name: args.node_name,
    };
    let mut csi_server = tokio::spawn(
        Server::builder()
            .add_service(IdentityServer::new(IdentityService))
            .add_service(NodeServer::new(node))
            .serve_with_incoming_shutdown(csi, until_stopped()),
    );

    // The kubelet calls the CSI socket as soon as it sees this one: it comes second.
    let (outcome, mut outcomes) = watch::channel(Outcome::Pending);
    let registration = RegistrationService {
        host_endpoint: args.host_endpoint,
        outcome,
    };
    let listener = UnixListenerStream::new(bind(&registration_socket)?);
    let mut registration_server = tokio::spawn(
        Server::builder()
            .add_service(RegistrationServer::new(registration))
            .serve_with_incoming_shutdown(listener, until_stopped()),
    );

    let address = args.admin_listen;
    let admin_listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })?;
    let registered = outcomes.clone();
    let admin = AdminServer {
        metrics: metrics.registry.clone(),
        health: Arc::new(|| Ok(())),
        ready: Arc::new(move || match &*registered.borrow() {
            Outcome::Registered => Ok(()),
            Outcome::Pending => Err("the kubelet has not registered the plugin yet".to_owned()),
            Outcome::Refused(why) => Err(format!("the kubelet refused the plugin: {why}")),
        }),
    };
    let mut admin_server = tokio::spawn(admin.run(admin_listener, until_stopped()));
    let ended = Arc::new(AtomicBool::new(false));
    if let Some(scrub) = scrub {
        tokio::spawn(scrub_for_ever(
            Arc::clone(&collector),
            scrub,
            Arc::clone(&ended),
        ));
    }
    let follow = tokio::spawn(Arc::clone(&volumes.adapters).follow());
    let let_go = tokio::spawn(let_go_for_ever(Arc::clone(&volumes)));
    let chores = tokio::spawn(chores(collector));

    let end = tokio::select! {
        () = shutdown => Ok(()),
        refused = refusal(&mut outcomes) => Err(RunError::Refused(refused)),
        ended = &mut csi_server => Err(server_ended("CSI", ended)),
        ended = &mut registration_server => Err(server_ended("registration", ended)),
        ended = &mut admin_server => Err(server_ended("admin", ended)),
    };
    chores.abort();
    let_go.abort();
    follow.abort();
    ended.store(true, Ordering::Relaxed);
    // First this one, so that the kubelet forgets us before the other is gone.
    unlink(&registration_socket)?;
    unlink(&args.endpoint)?;
    stop.send_replace(true);
    // Calls under way get their answers, above all the one that brought the refusal. One that
    // waits for a fetch does not: the kubelet asks the next process.
    let answered = async {
        for server in [csi_server, registration_server] {
            if !server.is_finished() {
                let _ = server.await;
            }
        }
    };
    if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
        tracing::info!("calls under way are left to the next process");
    }
    end
}

/// By what the registry is trusted, over git and LFS too.
fn trust(args: &Args) -> Result<Trust, RunError> {
    let trust = Trust::of_url(&args.registry_url, args.registry_ca_file.clone())?;
    // A URL that is none is told of where it is used.
    let _ = trust_server(&args.registry_url, trust.clone());
    Ok(trust)
}

/// Reads the state and brings it in line with what is mounted.
async fn open(args: &Args, metrics: &Metrics) -> Result<Arc<Volumes>, RunError> {
    let layout = Layout::new(&args.state_dir)?;
    let trust = trust(args)?;
    let token_file = || args.registry_token_file.clone();
    let lists = RegistryLists::new(&args.registry_url, token_file(), &trust)?;
    let witness = RegistryWitness::new(&args.registry_url, token_file(), &trust)?;
    let (kubelet_dir, url, token_file, metrics) = (
        args.kubelet_dir.clone(),
        args.registry_url.clone(),
        args.registry_token_file.clone(),
        metrics.clone(),
    );
    let volumes = blocking(move || {
        layout.create()?;
        // Mountinfo and the checkouts' paths must agree, also where a symbolic link led here.
        let layout = Layout::new(canonical(layout.root()))?;
        let kernel = Kernel::of(layout.root())
            .map_err(|e| Error::io("find the mount of", layout.root(), e))?;
        let mounts: Arc<dyn Mounts> = Arc::new(kernel);
        let source = Arc::new(Registry {
            url,
            token_file,
            layout: layout.clone(),
            metrics: metrics.clone(),
        });
        source.clean()?;
        let checkouts = Checkouts::new(source, layout.clone());
        let (disk_full, damaged) = <(Arc<Notify>, Arc<Notify>)>::default();
        let adapters = Adapters {
            layout: layout.clone(),
            checkouts: Arc::clone(&checkouts),
            lists: Arc::new(lists),
            metrics: metrics.clone(),
            timing: Timing::default(),
            disk_full: Arc::clone(&disk_full),
            damaged: Arc::clone(&damaged),
            followed: Following::default(),
        };
        let volumes = Volumes {
            journal: Journal::open(&layout)?,
            checkouts,
            adapters: Arc::new(adapters),
            layout,
            mounts,
            kubelet_dir: canonical(&kubelet_dir),
            witness: Arc::new(witness),
            asking: parking_lot::Mutex::new(Asking::default()),
            metrics,
            patience: PATIENCE,
            locks: Locks::default(),
            disk_full,
            no_room: Notify::new(),
            damaged,
            changed: Notify::new(),
            named: Notify::new(),
        };
        let done = volumes.reconcile()?;
        tracing::info!(
            volumes = volumes.journal.all().len(),
            unmounted = done.unmounted,
            forgotten = done.forgotten,
            "state read"
        );
        Ok(volumes)
    })
    .await?;
    Ok(Arc::new(volumes))
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// What is done beside the calls of the kubelet. A failure is logged and tried again in its turn.
async fn chores(collector: Arc<Collector>) {
    let mut reconcile = tokio::time::interval(RECONCILE_EVERY);
    let mut collect = tokio::time::interval(COLLECT_EVERY);
    loop {
        let volumes = &collector.volumes;
        let done = tokio::select! {
            // What somebody waits for comes before figures.
            biased;
            _ = reconcile.tick() => {
                let collector = Arc::clone(&collector);
                blocking(move || {
                    collector.volumes.reconcile()?;
                    collector.measure()
                })
                .await
            }
            _ = collect.tick() => {
                let collector = Arc::clone(&collector);
                blocking(move || collector.collect().map(|_| ())).await
            }
            () = volumes.damaged.notified() => {
                let collector = Arc::clone(&collector);
                blocking(move || collector.collect_damaged().map(|_| ())).await
            }
            () = volumes.disk_full.notified() => {
                let collector = Arc::clone(&collector);
                blocking(move || collector.make_some_room().map(|_| ())).await
            }
            () = volumes.changed.notified() => {
                tokio::time::sleep(MEASURE_PAUSE).await;
                let collector = Arc::clone(&collector);
                blocking(move || collector.measure()).await
            }
        };
        if let Err(error) = done {
            tracing::warn!(%error, "chore failed");
        }
    }
}

/// Lets go what was written to volumes whose PersistentVolume is gone, until the program ends.
async fn let_go_for_ever(volumes: Arc<Volumes>) {
    let mut due = tokio::time::interval(IDLE_FOR);
    loop {
        let idle_for = tokio::select! {
            _ = due.tick() => IDLE_FOR,
            () = volumes.named.notified() => {
                tokio::time::sleep(NAMES_PAUSE).await;
                IDLE_FOR
            }
            () = volumes.no_room.notified() => Duration::ZERO,
        };
        if let Err(error) = volumes.let_go(idle_for).await {
            tracing::warn!(%error, "what was written to volumes that are gone is still there");
        }
        if idle_for.is_zero() {
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
    }
}

/// Reads the store again and again, until the program ends.
async fn scrub_for_ever(collector: Arc<Collector>, scrub: Scrub, ended: Arc<AtomicBool>) {
    loop {
        let (collector, ended) = (Arc::clone(&collector), Arc::clone(&ended));
        let done =
            blocking(move || collector.scrub(&scrub, &|| ended.load(Ordering::Relaxed))).await;
        let pause = done.unwrap_or_else(|error| {
            tracing::warn!(%error, "files could not be read again");
            SCRUB_PAUSE
        });
        tokio::time::sleep(pause).await;
    }
}

async fn refusal(outcomes: &mut watch::Receiver<Outcome>) -> String {
    let refused = outcomes
        .wait_for(|outcome| matches!(outcome, Outcome::Refused(_)))
        .await;
    match refused.as_deref() {
        Ok(Outcome::Refused(why)) => why.clone(),
        // The sender lives in the registration server, whose end is seen elsewhere.
        _ => std::future::pending().await,
    }
}

fn server_ended<E: std::fmt::Display>(
    name: &'static str,
    ended: Result<Result<(), E>, tokio::task::JoinError>,
) -> RunError {
    let why = match ended {
        Ok(Ok(())) => "its socket was closed".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    RunError::Server { name, why }
}
