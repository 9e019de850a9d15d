//! Sending a request to a worker over a kept or a new connection.

use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use super::Endpoint;

/// A worker whose node is gone without a word is noticed this long after something was sent to it,
/// or after about `KEEPALIVE_IDLE + 3 x KEEPALIVE_INTERVAL` in which nothing was.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Why no answer came from a worker.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection could be made, or not to whom it should be, so nothing was sent.
    #[error("connect to the worker")]
    Connect(#[source] io::Error),
    /// A kept connection turned out to be closed before a byte of an answer came. The worker most
    /// likely closed it as idle while the request was on its way.
    #[error("the kept connection to the worker was closed")]
    Stale(#[source] hyper::Error),
    /// The worker's node did not answer any more, so that no answer can come from it.
    #[error("the worker cannot be reached any more")]
    Unreachable(#[source] hyper::Error),
    /// The connection broke while the worker had the request.
    #[error("the worker closed the connection before it answered")]
    Lost(#[source] hyper::Error),
}

/// A connection to a worker. Dropping it closes the socket at once, which is how the worker
/// learns that nobody waits for the rest of an answer.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Endpoint {
    /// Sends a request and returns the head of the answer with the connection that its body comes
    /// over. Keep the connection while reading the body; give it back with [`Self::give_back`]
    /// once the body has ended.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        connect_timeout: Duration,
    ) -> Result<(Response<Incoming>, Connection), SendError> {
        let (mut connection, kept) = match self.idle.take(Instant::now()) {
            Some(connection) => (connection, true),
            None => (
                self.connect(connect_timeout)
                    .await
                    .map_err(SendError::Connect)?,
                false,
            ),
        };
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(mut refused) => {
                let not_sent = refused.take_message().is_some();
                let error = refused.into_error();
                let kind = io_kind(&error);
                if kind.is_some_and(is_unreachable) {
                    self.idle.clear();
                    return Err(SendError::Unreachable(error));
                }
                // An answer that began and cannot be understood is no sign of a closed connection.
                let closed = error.is_closed()
                    || error.is_incomplete_message()
                    || kind.is_some_and(is_reset);
                Err(if not_sent || (kept && closed) {
                    // The others have been idle for longer and are most likely closed too.
                    self.idle.clear();
                    SendError::Stale(error)
                } else {
                    SendError::Lost(error)
                })
            }
        }
    }

    async fn connect(&self, connect_timeout: Duration) -> io::Result<Connection> {
        let stream = timeout(connect_timeout, TcpStream::connect(self.address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        rustix::net::sockopt::set_tcp_keepcnt(&stream, 3)?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED.as_millis() as u32)?;
        let connection = match &self.proof {
            None => over(stream).await,
            Some(proof) => over(proof.ask(stream).await?).await,
        };
        if connection.is_ok() {
            self.connected();
        }
        connection
    }

    /// Keeps a connection for the next request. The body that came over it must have ended.
    pub fn give_back(self: &Arc<Self>, connection: Connection) {
        if connection.is_ready() {
            self.idle.put(connection, Instant::now());
        } else {
            // The driver has yet to see the end of the answer.
            tokio::spawn(keep_when_ready(Arc::downgrade(self), connection));
        }
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<Connection> {
    let (sender, connection) = Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Its error also reaches whoever waits for the answer or reads the body.
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { sender, driver })
}

async fn keep_when_ready(endpoint: Weak<Endpoint>, mut connection: Connection) {
    let ready = timeout(Duration::from_secs(1), connection.sender.ready()).await;
    if let (Ok(Ok(())), Some(endpoint)) = (ready, endpoint.upgrade()) {
        endpoint.idle.put(connection, Instant::now());
    }
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<io::Error>().map(io::Error::kind)
}

fn is_reset(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    // The last is what the end of a connection is to TLS where nobody announced it, as when a
    // worker is killed.
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn is_unreachable(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(kind, HostUnreachable | NetworkUnreachable | TimedOut)
}
