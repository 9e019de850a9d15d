//! How a worker is known for who it is before it is told anything.

use std::{fmt, io, sync::Arc, time::Duration};

use hyprstream_tls::Trust;
use rustls::{
    client::Resumption,
    pki_types::{DnsName, ServerName},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest that a handshake may take, once there is a connection: a worker that computes on all its
/// processors is slow to answer, and one that hangs is not waited for.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Sessions that are kept of a worker, so that the next connection needs no signature.
const SESSIONS: usize = 8;

/// What a worker must show before it is told anything.
pub(super) struct Proof {
    name: String,
    connector: TlsConnector,
}

impl Proof {
    /// A certificate for that name of somebody who is believed at the time.
    pub(super) fn new(name: &str, trust: &Trust) -> Self {
        let mut config = trust.client_config();
        // Of its own: that of another worker of the Model would open nothing here.
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Self {
            name: name.to_owned(),
            connector: TlsConnector::from(Arc::new(config)),
        }
    }

    /// Makes sure of who is at the other end.
    ///
    /// # Errors
    /// It is somebody else, or nobody who speaks TLS ([`io::ErrorKind::InvalidData`]), it takes too
    /// long, or the connection breaks.
    pub(super) async fn ask(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = DnsName::try_from(self.name.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let handshake = self.connector.connect(ServerName::DnsName(name), stream);
        timeout(HANDSHAKE, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no handshake in time"))?
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
