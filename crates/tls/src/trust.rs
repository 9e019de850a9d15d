//! Whom a client believes.

use std::{path::PathBuf, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use rustls_platform_verifier::BuilderVerifierExt as _;

use crate::{TlsError, followed::Followed, pem, provider};

/// The authorities whose certificates are believed: those of a bundle, and nobody else.
#[derive(Clone)]
pub struct Trust(Arc<Source>);

enum Source {
    File(Followed<Roots>),
    Shared(RwLock<Option<Arc<Roots>>>),
}

struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// Reads a bundle (PEM) from a file that may change: a handshake goes by what it has then, or
    /// had not more than 5 seconds before.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub fn open(bundle: PathBuf) -> Result<Self, TlsError> {
        let subject = bundle.display().to_string();
        let followed = Followed::open(vec![bundle], move |contents| {
            roots(contents.first().map_or(&[], Vec::as_slice), &subject)
        })?;
        Ok(Self(Arc::new(Source::File(followed))))
    }

    /// That of a program that hears of the bundle by itself and tells it by [`set`](Self::set).
    /// Until then nobody is believed.
    pub fn shared() -> Self {
        Self(Arc::new(Source::Shared(RwLock::new(None))))
    }

    /// That of a client that calls nobody by https.
    pub fn nobody() -> Self {
        Self::shared()
    }

    /// That of a client of `url`: of the bundle in `bundle` where the URL begins with `https://`,
    /// of nobody where it does not.
    ///
    /// # Errors
    /// The bundle cannot be read or used, is missing, or would be of no use.
    pub fn of_url(url: &str, bundle: Option<PathBuf>) -> Result<Self, TlsError> {
        let is_https = url
            .get(..8)
            .is_some_and(|s| s.eq_ignore_ascii_case("https://"));
        let url = url.to_owned();
        match bundle {
            Some(bundle) if is_https => Self::open(bundle),
            None if !is_https => Ok(Self::nobody()),
            Some(bundle) => Err(TlsError::Useless { url, bundle }),
            None => Err(TlsError::Missing { url }),
        }
    }

    /// That of a PEM text, which `subject` names in errors.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn fixed(bundle: &[u8], subject: &str) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(bundle, subject)?);
        Ok(Self(Arc::new(Source::Shared(RwLock::new(Some(roots))))))
    }

    /// Puts a PEM text in place of what was believed. One that follows a file goes on with that.
    ///
    /// # Errors
    /// The text cannot be used; nothing has changed.
    pub fn set(&self, bundle: &str) -> Result<(), TlsError> {
        let roots = Arc::new(roots(bundle.as_bytes(), "the bundle of authorities")?);
        if let Source::Shared(shared) = &*self.0 {
            *shared.write() = Some(roots);
        }
        Ok(())
    }

    /// The certificates of the authorities of now, for clients that take only a list.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.roots()
            .map(|roots| roots.certificates.clone())
            .unwrap_or_default()
    }

    /// Settings of a client that believes whoever is believed at the time of each handshake. It
    /// offers HTTP/1.1 (ALPN), and nothing of itself.
    pub fn client_config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider());
        let mut config = builder
            .with_safe_default_protocol_versions()
            .expect("ring has suites for both versions")
            // What is called dangerous here is to choose who verifies: the verifier of rustls does,
            // with the roots of now.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier(self.clone())))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// Nothing, if `certificate`, signed by an authority of the bundle itself, may be shown by
    /// `host` (a name or an address) now.
    ///
    /// # Errors
    /// [`TlsError::Refused`].
    pub fn verify(&self, certificate: &[u8], host: &str) -> Result<(), TlsError> {
        let refused = |source| TlsError::Refused {
            host: host.to_owned(),
            source,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| refused(RustlsError::General(error.to_string())))?;
        let certificate = CertificateDer::from(certificate);
        self.verify_at(&certificate, &name, UnixTime::now())
            .map_err(refused)
    }

    pub(crate) fn verify_at(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        at: UnixTime,
    ) -> Result<(), RustlsError> {
        let roots = self.roots().ok_or_else(nobody)?;
        let verifier = &roots.verifier;
        verifier
            .verify_server_cert(certificate, &[], name, &[], at)
            .map(drop)
    }

    fn roots(&self) -> Option<Arc<Roots>> {
        match &*self.0 {
            Source::File(followed) => Some(followed.get()),
            Source::Shared(shared) => shared.read().clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn looking_every(self, pause: std::time::Duration) -> Self {
        match Arc::into_inner(self.0) {
            Some(Source::File(followed)) => {
                Self(Arc::new(Source::File(followed.looking_every(pause))))
            }
            _ => unreachable!("a file that nobody else follows yet"),
        }
    }
}

/// Settings of a client of servers that anybody may run, which the system's authorities vouch for.
///
/// # Errors
/// This machine has no such authorities.
pub fn system_client_config() -> Result<ClientConfig, TlsError> {
    let unusable = |error: RustlsError| TlsError::Roots {
        subject: "this machine's list of authorities".to_owned(),
        why: error.to_string(),
    };
    let builder = ClientConfig::builder_with_provider(provider());
    let mut config = builder
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions")
        .with_platform_verifier()
        .map_err(unusable)?
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({} authorities)", self.certificates().len())
    }
}

fn nobody() -> RustlsError {
    RustlsError::General("the bundle of authorities is not known yet".to_owned())
}

fn roots(bundle: &[u8], subject: &str) -> Result<Roots, TlsError> {
    let unusable = |why: String| TlsError::Roots {
        subject: subject.to_owned(),
        why,
    };
    let certificates = pem::certificates(bundle, subject)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| unusable(error.to_string()))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Roots {
        certificates,
        verifier,
    })
}

/// Asks the verifier of rustls that has the roots of now.
struct Verifier(Trust);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Verifier {
    fn now(&self) -> Result<Arc<WebPkiServerVerifier>, RustlsError> {
        let roots = self.0.roots().ok_or_else(nobody)?;
        Ok(Arc::clone(&roots.verifier))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        self.now()?
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.now()?
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.now()?
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
