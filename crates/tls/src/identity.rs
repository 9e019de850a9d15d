//! What a server shows.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{Facts, TlsError, followed::Followed, pem, provider};

/// Certificate and key of a server, out of files that may change.
#[derive(Clone)]
pub struct ServerIdentity(Arc<Followed<Identity>>);

struct Identity {
    key: Arc<CertifiedKey>,
    ends: SystemTime,
}

impl ServerIdentity {
    /// Reads the certificate (PEM, the server's own first) and its key (PEM). Every handshake is
    /// answered with what the files have then, or had not more than 5 seconds before.
    ///
    /// # Errors
    /// A file cannot be read or used, or key and certificate do not belong together.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let subject = certificate.display().to_string();
        let of_key = key.display().to_string();
        let followed = Followed::open(vec![certificate, key], move |contents| {
            let [certificate, key] = contents else {
                unreachable!("two files are read");
            };
            identity(certificate, &subject, key, &of_key)
        })?;
        Ok(Self(Arc::new(followed)))
    }

    /// When the certificate that is shown now ends.
    pub fn ends(&self) -> SystemTime {
        self.0.get().ends
    }

    /// A server's settings, which offer HTTP/1.1 (ALPN) and TLS 1.2 and 1.3.
    pub fn config(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider());
        let mut config = builder
            .with_safe_default_protocol_versions()
            .expect("ring has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(self.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    #[cfg(test)]
    pub(crate) fn looking_every(self, pause: std::time::Duration) -> Self {
        let followed = Arc::into_inner(self.0).expect("nobody else has it yet");
        Self(Arc::new(followed.looking_every(pause)))
    }
}

struct Shown(ServerIdentity);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown(..)")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.0.get().key))
    }
}

fn identity(
    certificate: &[u8],
    subject: &str,
    key: &[u8],
    of_key: &str,
) -> Result<Identity, TlsError> {
    let chain = pem::certificates(certificate, subject)?;
    let ends = Facts::of(&chain[0], subject)?.not_after;
    let key = pem::key(key, of_key)?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|source| {
        let subject = subject.to_owned();
        TlsError::Identity { subject, source }
    })?;
    let key = Arc::new(key);
    Ok(Identity { key, ends })
}
