//! Workers that say which adapters they have: those of their Model's list, as a test wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use hyprstream_contract::{
    WorkerKeys,
    worker_adapters::{
        LoadState, Origin, Serving, WORKER_ADAPTERS_PATH, WorkerAdapter, WorkerAdapters,
    },
};
use hyprstream_tls::Issued;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{MASTER_KEY, registry::FakeRegistry};

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// What workers do with a commit of an adapter. Who has no verdict is loaded.
#[derive(Clone, Debug)]
pub enum Verdict {
    Loads,
    Loading,
    Fails(&'static str),
}

#[derive(Clone)]
pub struct Workers {
    registry: FakeRegistry,
    /// The port of all of them.
    pub port: u16,
    /// That of those who speak TLS.
    pub tls_port: u16,
    /// Each has an address of its own, in a network of the world's own.
    network: u8,
    state: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    count: u32,
    verdicts: BTreeMap<String, Verdict>,
    silent: BTreeSet<String>,
    /// How many questions each pod does not answer, and how many it was asked since that was said.
    ignored: u32,
    questions: BTreeMap<String, u32>,
    /// What pods answer with by a name.
    serving: BTreeMap<(String, String), String>,
    asked: usize,
    refused: usize,
}

#[derive(Clone)]
struct Worker {
    all: Workers,
    pod: String,
    model: String,
}

impl Workers {
    pub fn new(registry: FakeRegistry) -> Self {
        let number = std::process::id() + WORLDS.fetch_add(1, Ordering::Relaxed);
        let network = u8::try_from(number % 250).unwrap() + 2;
        let first = TcpListener::bind((Ipv4Addr::new(127, network, 255, 1), 0)).unwrap();
        let second = TcpListener::bind((Ipv4Addr::new(127, network, 255, 1), 0)).unwrap();
        Self {
            registry,
            port: first.local_addr().unwrap().port(),
            tls_port: second.local_addr().unwrap().port(),
            network,
            state: Arc::default(),
        }
    }

    /// Starts the worker of a pod of a Model, which speaks TLS if it has something to show; its
    /// address.
    pub fn start(
        &self,
        pod: &str,
        namespace: &str,
        model: &str,
        shown: Option<&Issued>,
    ) -> Option<String> {
        let number = {
            let mut state = self.state.lock().unwrap();
            state.count += 1;
            state.count
        };
        let last = |n: u32| u8::try_from(n % 250).unwrap();
        let address = Ipv4Addr::new(127, self.network, last(number / 250), last(number) + 1);
        let port = shown.map_or(self.port, |_| self.tls_port);
        let listener = TcpListener::bind(SocketAddr::from((address, port))).ok()?;
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let worker = Worker {
            all: self.clone(),
            pod: pod.to_owned(),
            model: format!("{namespace}/{model}"),
        };
        let app = Router::new()
            .route(WORKER_ADAPTERS_PATH, get(answer))
            .with_state(worker);
        match shown.map(acceptor) {
            None => {
                tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
            }
            Some(acceptor) => {
                let listener = Secure { listener, acceptor };
                tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
            }
        }
        Some(address.to_string())
    }

    /// What becomes of a commit, or of an adapter by its served name.
    pub fn judge(&self, what: &str, verdict: Verdict) {
        let mut state = self.state.lock().unwrap();
        state.verdicts.insert(what.to_owned(), verdict);
    }

    /// The worker of that pod does not answer any more, or does.
    pub fn silence(&self, pod: &str, is_silent: bool) {
        let mut state = self.state.lock().unwrap();
        if is_silent {
            state.silent.insert(pod.to_owned());
        } else {
            state.silent.remove(pod);
        }
    }

    /// From now on each pod leaves its first questions unanswered.
    pub fn ignore_first(&self, questions: u32) {
        let mut state = self.state.lock().unwrap();
        state.ignored = questions;
        state.questions.clear();
    }

    /// How often the pod was asked since [`Self::ignore_first`].
    pub fn questions(&self, pod: &str) -> u32 {
        let state = self.state.lock().unwrap();
        state.questions.get(pod).copied().unwrap_or_default()
    }

    /// How often any of them was asked.
    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    /// How often without the key of their Model.
    pub fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }
}

fn acceptor(shown: &Issued) -> TlsAcceptor {
    let chain = hyprstream_tls::certificates(shown.certificate.as_bytes(), "a worker").unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// Takes connections whose client believes what is shown.
struct Secure {
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Secure {
    type Io = TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn answer(State(worker): State<Worker>, headers: HeaderMap) -> Response {
    let (namespace, model) = worker.model.split_once('/').unwrap();
    let key = WorkerKeys::new(MASTER_KEY).unwrap().of(namespace, model);
    let shown = headers.get("authorization").and_then(|v| v.to_str().ok());
    let is_silent = {
        let mut state = worker.all.state.lock().unwrap();
        state.asked += 1;
        if shown != Some(&format!("Bearer {key}")) {
            state.refused += 1;
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let questions = state.questions.entry(worker.pod.clone()).or_default();
        *questions += 1;
        let number = *questions;
        number <= state.ignored || state.silent.contains(&worker.pod)
    };
    if is_silent {
        std::future::pending::<()>().await;
    }
    let list = worker.all.registry.list(&worker.model).unwrap_or_default();
    let mut state = worker.all.state.lock().unwrap();
    let mut data = Vec::new();
    for entry in &list.adapters {
        let verdict = state
            .verdicts
            .get(entry.commit.as_str())
            .or_else(|| state.verdicts.get(&entry.name))
            .cloned()
            .unwrap_or(Verdict::Loads);
        let place = (worker.pod.clone(), entry.name.clone());
        let load = match verdict {
            Verdict::Loads => {
                state.serving.insert(place.clone(), entry.folder());
                LoadState::Loaded
            }
            Verdict::Loading => LoadState::Loading,
            Verdict::Fails(reason) => LoadState::Failed {
                reason: reason.to_owned(),
                message: "it does not fit".to_owned(),
            },
        };
        data.push(WorkerAdapter {
            name: entry.name.clone(),
            origin: Origin::Followed,
            scale: entry.scale,
            source: entry.source.clone(),
            commit: Some(entry.commit.clone()),
            folder: Some(entry.folder()),
            state: load,
            serving: state.serving.get(&place).map(|folder| Serving {
                digest: format!("digest of {folder}"),
                rank: 8,
                sha256: format!("hash of {folder}"),
                size: 7,
                loaded_at: 8,
                // Changes all the time, and is of no interest.
                bytes: state.asked as u64,
                resident: state.asked.is_multiple_of(2),
            }),
            warning: None,
        });
    }
    Json(WorkerAdapters {
        object: "list".to_owned(),
        revision: Some(list.revision()),
        data,
    })
    .into_response()
}
