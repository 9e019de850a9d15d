//! What a pod tells while it trains.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyprstream_contract::{training, worker, worker_key};
use tracing::{info, warn};

use super::{PodArgs, board::Board, error::PodError, wait::Stop};
use crate::{serve::signals, server::ApiKeys};

/// What the routes share.
#[derive(Clone)]
struct Telling {
    board: Arc<Board>,
    keys: Arc<ApiKeys>,
}

/// Tells what `board` has on a thread of its own, which also waits for SIGTERM and SIGINT.
///
/// # Errors
/// There is no key, or the address is taken.
pub(super) fn start(args: &PodArgs, board: Arc<Board>, stop: Stop) -> Result<(), PodError> {
    let path = args.key_dir.join(worker_key::FILE);
    let keys = std::fs::read_to_string(&path).map_err(|source| PodError::File {
        path: path.clone(),
        source,
    })?;
    let keys = ApiKeys::new(keys.lines());
    // An empty secret must not open the door.
    if keys.is_empty() {
        let why = "the key is empty".to_owned();
        return Err(PodError::Form { path, why });
    }
    let address = SocketAddr::new(args.host, args.port);
    let listener = listen(address).map_err(|source| PodError::Server { address, source })?;
    let setup = |what| move |source| PodError::Setup { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(setup("the server"))?;
    let entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(setup("the server"))?;
    let signals = signals().map_err(|error| PodError::Setup {
        what: "signals",
        source: io::Error::other(error),
    })?;
    drop(entered);
    let router = router(Telling {
        board,
        keys: Arc::new(keys),
    });
    let served = thread::Builder::new()
        .name("telling".to_owned())
        .spawn(move || {
            runtime.spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    warn!(%error, "nobody is told any more how far the job is");
                }
            });
            runtime.block_on(signals);
            info!("ends as soon as it can, with a checkpoint");
            stop.tell();
            // Who asks is answered until the end.
            runtime.block_on(std::future::pending::<()>());
        });
    served.map(drop).map_err(setup("the server"))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

fn router(telling: Telling) -> Router {
    Router::new()
        .route(training::PROGRESS_PATH, get(progress))
        .route(training::METRICS_PATH, get(metrics))
        .route(worker::HEALTH_PATH, get(|| async { StatusCode::OK }))
        .with_state(telling)
}

async fn progress(State(telling): State<Telling>, headers: HeaderMap) -> Response {
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, key)| key.trim_ascii());
    if !key.is_some_and(|key| telling.keys.accept(key)) {
        let asks = [(header::WWW_AUTHENTICATE, "Bearer")];
        let why = "the key of this pod is needed, as a bearer token";
        return (StatusCode::UNAUTHORIZED, asks, why).into_response();
    }
    Json(telling.board.progress()).into_response()
}

async fn metrics(State(telling): State<Telling>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, telling.board.metrics.text()).into_response()
}
