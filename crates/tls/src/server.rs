//! Taking connections.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::ServerIdentity;

/// First byte of a client that speaks TLS: a record of a handshake.
const HANDSHAKE: u8 = 22;
/// What who speaks plain HTTP to a port of HTTPS is told, as Go's servers do.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 58\r\nConnection: close\r\n\r\n\
    this port speaks HTTPS: call it with https:// and our CA.\n";

/// Makes accepted connections ready to be served.
#[derive(Clone)]
pub struct Handshakes {
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
    deadline: Duration,
    accepts_plain: bool,
}

/// A connection after its handshake, or one without TLS where that is accepted.
pub enum Accepted {
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// Without.
    Plain(TcpStream),
}

/// A connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client took longer than it may.
    #[error("the handshake was not done within {0:?}")]
    TooSlow(Duration),
    /// The client went away, or cannot or does not want to agree with us.
    #[error("the handshake failed")]
    Failed(#[source] io::Error),
    /// The client speaks HTTP without TLS. It was told so.
    #[error("the client speaks plain HTTP")]
    Plain,
}

impl Handshakes {
    /// Handshakes with `identity`. At most `at_once` are worked on at the same time, others wait;
    /// each ends within `deadline`, waiting included.
    pub fn new(identity: &ServerIdentity, at_once: usize, deadline: Duration) -> Self {
        Self {
            acceptor: TlsAcceptor::from(identity.config()),
            places: Arc::new(Semaphore::new(at_once.max(1))),
            deadline,
            accepts_plain: false,
        }
    }

    /// Whether clients that speak without TLS, which their first byte tells, are served too.
    #[must_use]
    pub fn accepting_plain(mut self, accepts_plain: bool) -> Self {
        self.accepts_plain = accepts_plain;
        self
    }

    /// The connection, ready to be served. To be called on a task of its own: it waits for the
    /// client.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the connection is closed.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, HandshakeError> {
        timeout(self.deadline, self.greet(stream))
            .await
            .unwrap_or(Err(HandshakeError::TooSlow(self.deadline)))
    }

    async fn greet(&self, mut stream: TcpStream) -> Result<Accepted, HandshakeError> {
        let mut first = [0];
        // The byte stays where it is. A client that closes without one is for the handshake to tell.
        let seen = stream
            .peek(&mut first)
            .await
            .map_err(HandshakeError::Failed)?;
        if seen == 1 && first[0] != HANDSHAKE {
            if self.accepts_plain {
                return Ok(Accepted::Plain(stream));
            }
            refuse(&mut stream).await;
            return Err(HandshakeError::Plain);
        }
        // The semaphore is never closed.
        let _place = self.places.acquire().await;
        let stream = self.acceptor.accept(stream).await;
        stream
            .map(|stream| Accepted::Tls(Box::new(stream)))
            .map_err(HandshakeError::Failed)
    }
}

/// Tells a client of plain HTTP what is wrong. What it sent is read first, as far as it has come:
/// a connection that is closed on unread bytes takes the answer with it.
async fn refuse(stream: &mut TcpStream) {
    // It is told as well as may be; that it is refused, the caller says.
    let _ = stream.try_read(&mut [0; 8192]);
    let _ = stream.write_all(NO_TLS).await;
    let _ = stream.shutdown().await;
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
