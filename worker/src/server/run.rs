//! Accepting connections, and ending.

use std::{
    fmt,
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{api, app::App, patience::Patient, tls::Tls};

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

/// Where a server is reached.
#[derive(Debug)]
pub struct Listeners {
    /// Where it speaks HTTP.
    pub plain: Option<TcpListener>,
    /// Where it speaks it over TLS, and how.
    pub tls: Option<(TcpListener, Tls)>,
}

impl From<TcpListener> for Listeners {
    /// Plain HTTP alone.
    fn from(listener: TcpListener) -> Self {
        Self {
            plain: Some(listener),
            tls: None,
        }
    }
}

/// Serves `app` on `listeners`. When `shutdown` ends, new requests get a 503 that names the
/// draining, those in flight go on until they are done or the time is up, and then it returns.
///
/// # Errors
/// A listener is broken.
pub async fn run(
    listeners: impl Into<Listeners>,
    app: Arc<App>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let door = Door {
        router: api::router(Arc::clone(&app)),
        graceful: GracefulShutdown::new(),
        write_timeout: app.options.write_timeout,
    };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let drained = drain(&app, options, shutdown);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            accepted = listeners.accept(&slots) => {
                let (stream, tls, slot) = accepted?;
                door.serve(stream, tls, slot);
            }
        }
    }
    drop(listeners);
    if timeout(CLOSE_TIMEOUT, door.graceful.shutdown())
        .await
        .is_err()
    {
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

/// Where a server is reached, once it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where it speaks HTTP.
    pub plain: Option<SocketAddr>,
    /// Where it speaks it over TLS.
    pub tls: Option<SocketAddr>,
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.plain, self.tls) {
            (Some(plain), None) => write!(f, "{plain}"),
            (Some(plain), Some(tls)) => write!(f, "{plain}, with TLS {tls}"),
            (None, Some(tls)) => write!(f, "with TLS {tls}"),
            (None, None) => f.write_str("nowhere"),
        }
    }
}

impl Listeners {
    /// Where they listen.
    ///
    /// # Errors
    /// A listener is broken.
    pub fn places(&self) -> io::Result<Places> {
        let plain = self.plain.as_ref().map(TcpListener::local_addr);
        let tls = self.tls.as_ref().map(|(listener, _)| listener.local_addr());
        Ok(Places {
            plain: plain.transpose()?,
            tls: tls.transpose()?,
        })
    }

    /// The next connection, how it is to begin where it is to speak TLS, and its slot, without
    /// which none is accepted.
    async fn accept(
        &self,
        slots: &Arc<Semaphore>,
    ) -> io::Result<(TcpStream, Option<Tls>, OwnedSemaphorePermit)> {
        let slot = Arc::clone(slots)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let plain = async {
            match &self.plain {
                Some(listener) => accept(listener).await,
                None => pending().await,
            }
        };
        let secured = async {
            match &self.tls {
                Some((listener, tls)) => (accept(listener).await, tls.clone()),
                None => pending().await,
            }
        };
        Ok(tokio::select! {
            stream = plain => (stream, None, slot),
            (stream, tls) = secured => (stream, Some(tls), slot),
        })
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
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

/// What all connections share.
struct Door {
    router: Router,
    graceful: GracefulShutdown,
    write_timeout: Duration,
}

impl Door {
    fn serve(&self, stream: TcpStream, tls: Option<Tls>, slot: OwnedSemaphorePermit) {
        settle(&stream);
        let watcher = self.graceful.watcher();
        let router = self.router.clone();
        let patience = self.write_timeout;
        tokio::spawn(async move {
            match tls {
                None => answer(Patient::new(stream, patience), router, watcher).await,
                Some(tls) => match tls.accept(stream, patience).await {
                    Ok(stream) => answer(stream, router, watcher).await,
                    Err(error) => debug!(%error, "no handshake"),
                },
            }
            drop(slot);
        });
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: Watcher,
) {
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
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(connection).await {
        debug!(error, "a connection ended");
    }
}

fn settle(stream: &TcpStream) {
    // Tokens are small and should not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY cannot be set");
    }
    if let Err(error) = notice_silence(stream) {
        debug!(%error, "keep-alive cannot be set");
    }
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
