//! Accepting connections, and ending.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{api, app::App, patience::Patient};

/// How a server ends.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// How long requests in flight may go on after the shutdown began.
    pub drain_timeout: Duration,
    /// How long at least new requests are answered with a 503 after it.
    pub drain_delay: Duration,
}

/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Longest time for the head of a request. It also runs while a connection is idle, so it must be
/// longer than clients keep theirs (our gateway 30 s, nginx 60 s): one that sends a request at the
/// moment of the close would see it fail.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Time without a word after which the kernel asks whether a peer is still there.
const SILENCE: Duration = Duration::from_secs(30);
/// After the last answer, for connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves `app` on `listener`. When `shutdown` ends, new requests get a 503 that names the
/// draining, those in flight go on until they are done or the time is up, and then it returns.
///
/// # Errors
/// The listener is broken.
pub async fn run(
    listener: TcpListener,
    app: Arc<App>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let router = api::router(Arc::clone(&app));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let drained = drain(&app, options, shutdown);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            accepted = accept(&listener, &slots) => {
                let (stream, slot) = accepted?;
                serve(stream, slot, router.clone(), &graceful, app.options.write_timeout);
            }
        }
    }
    drop(listener);
    if timeout(CLOSE_TIMEOUT, graceful.shutdown()).await.is_err() {
        debug!("connections were still open at the end");
    }
    Ok(())
}

async fn drain(app: &App, options: ServerOptions, shutdown: impl Future<Output = ()>) {
    shutdown.await;
    app.drain.begin();
    info!(in_flight = app.drain.in_flight(), "draining");
    let ((), idle) = tokio::join!(
        sleep(options.drain_delay),
        timeout(options.drain_timeout, app.drain.idle())
    );
    if idle.is_err() {
        warn!(in_flight = app.drain.in_flight(), "the time to drain is up");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, slot)),
            // The peer was gone before it was accepted; the listener is sound.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            // Out of descriptors, most likely: they come back as connections close.
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn serve(
    stream: TcpStream,
    slot: tokio::sync::OwnedSemaphorePermit,
    router: Router,
    graceful: &GracefulShutdown,
    write_timeout: Duration,
) {
    // Tokens are small and should not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY cannot be set");
    }
    if let Err(error) = notice_silence(&stream) {
        debug!(%error, "keep-alive cannot be set");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_concurrent_streams(1024);
    let service = TowerToHyperService::new(router);
    let connection = builder
        .serve_connection(TokioIo::new(Patient::new(stream, write_timeout)), service)
        .into_owned();
    let watched = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = watched.await {
            debug!(error, "a connection ended");
        }
        drop(slot);
    });
}

/// Lets the kernel find out about peers that are gone without a word (a cable, a NAT that forgot):
/// a request that waits for its answer is given up then.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;

    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
