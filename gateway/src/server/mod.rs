//! Connections of clients: accepting, limits, drain.

mod guarded;
mod routes;

use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration,
};

use axum::body::Body;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use hyprstream_contract::WorkerKeys;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use self::guarded::{Busy, Guarded, Limits, Phase};
use crate::{
    Config, Metrics,
    fine_tuning::FineTuning,
    forward::{State, Visitor},
    table::Table,
};

/// Most headers of a request.
const MAX_HEADERS: usize = 128;
/// Idle time between requests while more than half of all connections are taken.
const CROWDED_IDLE: Duration = Duration::from_secs(5);
/// How often idle connections to workers are looked through.
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time before the end of a drain at which requests that still wait for a Model are
/// answered that the gateway ends, since an answer is better than a cut connection.
const LAST_CALL: Duration = Duration::from_secs(2);

/// The gateway: answers clients by the workers of a table that may change at any time.
#[derive(Clone, Debug)]
pub struct Gateway {
    state: Arc<State>,
    fine_tuning: Option<Arc<FineTuning>>,
}

impl Gateway {
    /// A gateway that routes by the latest table of `tables`.
    pub fn new(config: Config, tables: watch::Receiver<Arc<Table>>, metrics: Metrics) -> Self {
        Self {
            state: Arc::new(State::new(config, tables, metrics)),
            fine_tuning: None,
        }
    }

    /// The same with the fine-tuning API.
    #[must_use]
    pub fn with_fine_tuning(self, api: Arc<FineTuning>) -> Self {
        Self {
            fine_tuning: Some(api),
            ..self
        }
    }

    /// From now on workers are asked with the keys that these derive.
    pub fn set_worker_keys(&self, keys: WorkerKeys) {
        self.state.set_worker_keys(keys);
    }

    /// Ok when requests can be routed, else why not.
    pub fn ready(&self) -> Result<(), String> {
        self.state.ready()
    }

    /// Serves until `shutdown` ends, then closes the listener, ends the requests in flight within
    /// the drain timeout, and returns the number of connections that had to be cut off.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<usize> {
        let config = &self.state.config;
        let slots = Arc::new(Semaphore::new(config.max_connections));
        let router = routes::router(Arc::clone(&self.state), self.fine_tuning.clone());
        let graceful = GracefulShutdown::new();
        let cut = CancellationToken::new();
        // Dropped with this future, also when it is not run to its end.
        let _cut_at_last = cut.clone().drop_guard();
        let mut prune = interval(PRUNE_INTERVAL);
        let mut shutdown = std::pin::pin!(shutdown);
        info!(address = %listener.local_addr()?, "serving");
        loop {
            let next = async {
                let slot = Arc::clone(&slots)
                    .acquire_owned()
                    .await
                    .expect("it is never closed");
                (accept(&listener).await, slot)
            };
            let ((socket, peer), slot) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                _ = prune.tick() => {
                    self.prune();
                    continue;
                }
                next = next => next,
            };
            let crowded = slots.available_permits() < config.max_connections / 2;
            let idle = if crowded {
                CROWDED_IDLE
            } else {
                config.idle_timeout
            };
            let serving = self.serve(
                socket,
                peer,
                idle.min(config.idle_timeout),
                router.clone(),
                &graceful,
            );
            let (cut, connections) = (cut.clone(), self.state.metrics.connections.clone());
            tokio::spawn(async move {
                connections.inc();
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = serving => {}
                }
                connections.dec();
                drop(slot);
            });
        }
        drop(listener);
        self.state.shutdown.cancel();
        info!(connections = graceful.count(), "draining");
        // Requests that wait for a Model go on waiting: a worker that comes in time answers them.
        let last_call = LAST_CALL.min(config.drain_timeout / 4);
        let mut drained = std::pin::pin!(timeout(config.drain_timeout, graceful.shutdown()));
        let early = timeout(config.drain_timeout.saturating_sub(last_call), &mut drained).await;
        let drained = if let Ok(drained) = early {
            drained
        } else {
            self.state.last_call.cancel();
            drained.await
        };
        if drained.is_ok() {
            return Ok(0);
        }
        let left = config.max_connections - slots.available_permits();
        warn!(
            connections = left,
            "the drain timeout is over, cutting connections off"
        );
        Ok(left)
    }

    fn serve(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        idle: Duration,
        router: axum::Router,
        graceful: &GracefulShutdown,
    ) -> impl Future<Output = ()> + Send + use<> {
        let config = &self.state.config;
        let limits = Limits {
            header: config.header_timeout,
            idle,
            write: config.write_timeout,
        };
        let phase = Arc::new(Phase::default());
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%error, %peer, "set TCP_NODELAY");
        }
        let io = TokioIo::new(Guarded::new(socket, limits, Arc::clone(&phase)));
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = phase.busy();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Visitor(peer.ip()));
            let router = router.clone();
            async move {
                let response = router.oneshot(request).await?;
                Ok::<_, Infallible>(response.map(|body| Tracked { body, _busy: busy }))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The socket has it, more precisely.
            .header_read_timeout(None)
            .max_header_size(config.max_header_bytes.max(8192))
            .max_headers(MAX_HEADERS)
            .serve_connection(io, service);
        let connection = graceful.watch(connection);
        async move {
            if let Err(error) = connection.await {
                debug!(%error, %peer, "connection ended");
            }
        }
    }

    fn prune(&self) {
        let table = Arc::clone(&self.state.tables.borrow());
        let now = std::time::Instant::now();
        for endpoint in table.models().flat_map(|entry| &entry.endpoints) {
            endpoint.prune(now);
        }
    }
}

/// The next connection. Errors of a single connection are passed over; when files or memory run
/// out it waits for connections to end.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => debug!(%error, "accept"),
            Err(error) => {
                warn!(%error, "connections cannot be accepted for now");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// An answer's body that tells the connection when it is over.
struct Tracked {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Tracked {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
