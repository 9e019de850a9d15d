//! The HTTP server: routes, and connections with their limits.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State as AxumState},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, delete, get, head, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use hyprstream_tls::{Accepted, HandshakeError, Handshakes};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower_http::{catch_panic::CatchPanicLayer, decompression::RequestDecompressionLayer};

use crate::{
    access::Access,
    adapters, api, branches, commits, fork, git, keep, lfs, linger, merges, protection,
    refusal::{self, Refusal},
    remove,
    state::State,
    volumes,
};

/// For the headers of a request, and for the next request on a connection: longer than clients keep
/// idle connections (often 90 seconds), so that none sends one just as we close.
const HEADER_PATIENCE: Duration = Duration::from_secs(100);
/// The same for connections that are kept free for the API, so that none of them is held idle.
const KEPT_FREE_PATIENCE: Duration = Duration::from_secs(10);
/// A client whose machine is gone is given up after this time.
const PEER_PATIENCE: Duration = Duration::from_mins(2);
const MAX_HEADER_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// Below the 30 seconds that Kubernetes gives a pod to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(25);

/// All routes.
pub(crate) fn router(state: Arc<State>) -> Router {
    let api = Router::new()
        .route("/resolve", post(api::resolve))
        .route("/mirrors", post(api::mirror))
        .route("/events", get(api::events))
        .route("/adapters", get(adapters::models))
        .route("/adapters/changes", post(adapters::changes))
        .route(
            "/adapters/{namespace}/{model}",
            get(adapters::get)
                .put(adapters::put)
                .delete(adapters::remove),
        )
        .route("/persistentvolumes", post(volumes::known))
        .route("/forks", post(fork::fork))
        .route("/merges", post(merges::merge))
        .route("/keeps", post(keep::keep))
        .route(
            "/commits",
            post(commits::commit).layer(DefaultBodyLimit::max(commits::MAX_BODY_BYTES)),
        )
        .route(
            "/branches/{namespace}/{repository}",
            get(branches::list).delete(branches::delete),
        )
        .route(
            "/protection/{namespace}",
            get(protection::get).put(protection::put),
        )
        .route(
            "/protection/{namespace}/{name}",
            get(protection::get).put(protection::put),
        )
        .fallback(api::unknown)
        .layer(DefaultBodyLimit::max(api::MAX_BODY_BYTES));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .nest("/api/v1", api)
        .nest("/git/{namespace}", repositories())
        .nest("/mirror", repositories())
        .fallback(any(|| async {
            Refusal::not_found("there is nothing here")
        }))
        .layer(CatchPanicLayer::new())
        .layer(middleware::from_fn(api_only))
        .layer(middleware::from_fn(linger::linger))
        .layer(middleware::from_fn(refusal::render))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), observe))
        .with_state(state)
}

fn repositories() -> Router<Arc<State>> {
    // Git compresses long requests.
    let packs = Router::new()
        .route("/{repository}/git-upload-pack", post(git::upload_pack))
        .route("/{repository}/git-receive-pack", post(git::receive_pack))
        .layer(RequestDecompressionLayer::new());
    Router::new()
        .route("/{repository}/info/refs", get(git::info_refs))
        .merge(packs)
        .route("/{repository}/info/lfs/objects/batch", post(lfs::batch))
        .route("/{repository}/info/lfs/objects/verify", post(lfs::verify))
        .route(
            "/{repository}/info/lfs/objects/{oid}",
            get(lfs::download)
                .put(lfs::upload)
                .layer(DefaultBodyLimit::disable()),
        )
        .route(
            "/{repository}/info/lfs/uploads/{oid}",
            head(lfs::offset)
                .patch(lfs::append)
                .layer(DefaultBodyLimit::disable()),
        )
        .route("/{repository}/info/lfs/locks", any(lfs::locks))
        .route("/{repository}/info/lfs/locks/{*rest}", any(lfs::locks))
        .route("/{repository}", delete(remove::remove).fallback(nothing))
        .route("/{repository}/{*rest}", any(nothing))
        .layer(DefaultBodyLimit::max(lfs::MAX_JSON_BYTES))
}

/// On the connections that are kept free for the API, nothing else is served.
async fn api_only(request: Request, next: Next) -> Response {
    let kept_free = request.extensions().get::<KeptFree>().is_some();
    let path = request.uri().path();
    if !kept_free || path.starts_with("/api/") || path == "/healthz" {
        return next.run(request).await;
    }
    let refusal = Refusal::busy("too many connections at once; try again");
    let mut response = refusal.into_response();
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Marks requests on a connection that is kept free for the API.
#[derive(Clone, Copy)]
struct KeptFree;

async fn nothing(_: Access) -> Refusal {
    Refusal::not_found("only git's smart HTTP protocol and LFS are served")
}

/// Counts requests and logs those that fail.
async fn observe(
    AxumState(state): AxumState<Arc<State>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let protocol = match &path {
        path if path.starts_with("/api/") => "api",
        path if path.contains("/info/lfs/") => "lfs",
        path if path.starts_with("/git/") || path.starts_with("/mirror/") => "git",
        _ => "other",
    };
    let response = next.run(request).await;
    let status = response.status();
    state
        .metrics
        .requests
        .with_label_values(&[protocol, status.as_str()])
        .inc();
    let elapsed = started.elapsed();
    if status.is_server_error() {
        tracing::warn!(%method, path, status = status.as_u16(), ?elapsed, "request");
    } else {
        tracing::debug!(%method, path, status = status.as_u16(), ?elapsed, "request");
    }
    response
}

/// What serves a connection.
struct Door {
    plain: TowerToHyperService<Router>,
    /// The same for connections with TLS.
    encrypted: TowerToHyperService<Router>,
    builder: auto::Builder<TokioExecutor>,
}

impl Door {
    fn new(router: Router, header_patience: Duration) -> Self {
        let encrypted = router.clone().layer(middleware::from_fn(came_encrypted));
        Self {
            plain: TowerToHyperService::new(router),
            encrypted: TowerToHyperService::new(encrypted),
            builder: builder(header_patience),
        }
    }
}

/// What came by TLS came by https, unless a proxy says how its own client came.
async fn came_encrypted(mut request: Request, next: Next) -> Response {
    let https = HeaderValue::from_static("https");
    let headers = request.headers_mut();
    headers.entry("x-forwarded-proto").or_insert(https);
    next.run(request).await
}

fn builder(header_patience: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_patience)
        .max_buf_size(512 << 10)
        .max_headers(MAX_HEADERS)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    builder
}

/// Counts a connection without a request.
fn refused(state: &State, error: &HandshakeError) {
    let reason = match error {
        HandshakeError::TooSlow(_) => "TooSlow",
        HandshakeError::Failed(_) => "Failed",
        HandshakeError::Plain => "PlainHTTP",
    };
    state.metrics.handshakes.with_label_values(&[reason]).inc();
    tracing::debug!(
        error = refusal::chain(error),
        "a connection came to nothing"
    );
}

/// Options of a connection. It works without any of them.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, PEER_PATIENCE);
    let _ = sockopt::set_tcp_user_timeout(stream, PEER_PATIENCE.as_millis() as u32);
}

/// Serves until `shutdown` ends, by TLS if there are `handshakes`, then lets requests end for up to
/// 25 seconds.
pub(crate) async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    handshakes: Option<Handshakes>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(state.limits.max_connections));
    let kept_free = Arc::new(Semaphore::new(state.limits.api_connections));
    // `TraceLayer` and the like are left out: every layer costs each chunk of a large object.
    let router = router(Arc::clone(&state));
    let for_all = Arc::new(Door::new(router.clone(), HEADER_PATIENCE));
    let for_api = Arc::new(Door::new(
        router.layer(Extension(KeptFree)),
        KEPT_FREE_PATIENCE,
    ));
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let (place, door) = tokio::select! {
                    biased;
                    place = Arc::clone(&places).acquire_owned() => (place, &for_all),
                    place = Arc::clone(&kept_free).acquire_owned() => (place, &for_api),
                };
                (place, door, listener.accept().await)
            } => accepted,
            () = &mut shutdown => break,
        };
        let (place, door, stream) = match accepted {
            (place, door, Ok((stream, _))) => (place, door, stream),
            (_, _, Err(error)) => {
                // Too many open files, or the client is gone already: others go on.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        prepare(&stream);
        let (watcher, door) = (graceful.watcher(), Arc::clone(door));
        let (handshakes, state) = (handshakes.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let _place = place;
            let (stream, service) = match &handshakes {
                None => (Accepted::Plain(stream), &door.plain),
                Some(handshakes) => match handshakes.accept(stream).await {
                    Ok(stream @ Accepted::Tls(_)) => (stream, &door.encrypted),
                    Ok(stream @ Accepted::Plain(_)) => (stream, &door.plain),
                    Err(error) => return refused(&state, &error),
                },
            };
            let connection = door
                .builder
                .serve_connection(TokioIo::new(stream), service.clone());
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(error, "a connection ended early");
            }
        });
    }
    drop(listener);
    state.shutdown.cancel();
    let ended = async {
        graceful.shutdown().await;
        state.git.finished().await;
    };
    if tokio::time::timeout(SHUTDOWN_PATIENCE, ended)
        .await
        .is_err()
    {
        tracing::warn!("requests were still under way at the end");
    }
    Ok(())
}
