//! Connections over TLS, and those that should be.

use std::{io, sync::Arc, time::Duration};

use hyprstream_tls::ServerIdentity;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::patience::Patient;

/// Time for a handshake, from the connection's first byte to its last.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a connection's first byte: as long as for the first request where there is no TLS.
const FIRST_BYTE: Duration = Duration::from_secs(75);
/// With which every handshake begins (RFC 8446, 5.1), and no request.
const HANDSHAKE_RECORD: u8 = 22;
/// For those who do not speak TLS.
const PLAIN: &str = "{\"error\":{\"message\":\"this port speaks TLS: ask by https://\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"tls_required\"}}";

/// How connections over TLS begin.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Shows what `identity` has at the time of each handshake.
    pub fn new(identity: &ServerIdentity) -> Self {
        let mut config = Arc::unwrap_or_clone(identity.config());
        // As without TLS, where the first bytes tell.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// The stream once both sides know whom they speak with. Writes that get no further for
    /// `patience` are errors.
    ///
    /// # Errors
    /// The client does not speak TLS, takes nobody's word that we have, is silent or gone. One that
    /// speaks plain HTTP was told.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        patience: Duration,
    ) -> io::Result<TlsStream<Patient<TcpStream>>> {
        let mut first = [0];
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let read = timeout(FIRST_BYTE, stream.peek(&mut first)).await;
        match read.map_err(late)?? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if first[0] != HANDSHAKE_RECORD => {
                let told = timeout(HANDSHAKE, tell(stream)).await;
                told.map_err(late)??;
                return Err(io::Error::other("the client speaks no TLS"));
            }
            _ => {}
        }
        // Below TLS, where what a slow client takes is seen piece by piece.
        let handshake = self.0.accept(Patient::new(stream, patience));
        timeout(HANDSHAKE, handshake).await.map_err(late)?
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(..)")
    }
}

/// Answers what most likely is a request, without having read it: nothing of it counts.
async fn tell(mut stream: TcpStream) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{PLAIN}",
        PLAIN.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Bytes that nobody took would make the kernel cut the answer short.
    let mut taken = [0; 4096];
    for _ in 0..MOST_READ {
        if stream.read(&mut taken).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// How often is read what a client without TLS sends, before it sees its connection cut.
const MOST_READ: usize = 256;
