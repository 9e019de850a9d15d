//! Making certificates.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use crate::{Facts, MakeError, TlsError, Trust, pem};

/// Clocks of nodes differ: a certificate counts from this long before it was made.
const SKEW: Duration = Duration::from_hours(1);

/// Whom a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names of hosts.
    pub hosts: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its key, PEM (PKCS #8).
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Who signs certificates: a key of ECDSA P-256 and the certificate by which it is trusted.
#[derive(Clone)]
pub struct Authority {
    issued: Issued,
    der: CertificateDer<'static>,
    facts: Facts,
}

impl Authority {
    /// A new one, which counts from an hour before `now` until `life` after it. `name` and
    /// something of its key become its name, so that two are never taken for one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn generate(name: &str, now: SystemTime, life: Duration) -> Result<Self, MakeError> {
        let key = new_key()?;
        let mut tag = String::new();
        for byte in &key.public_key_raw()[1..9] {
            // Writing to a String cannot fail.
            let _ = write!(tag, "{byte:02x}");
        }
        let mut params = params(now, now + life)?;
        params.distinguished_name = common_name(&format!("{name} {tag}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params
            .self_signed(&key)
            .map_err(crypto("sign the certificate of an authority"))?;
        Self::read(&made.pem(), &key.serialize_pem(), "a new authority").map_err(MakeError::Result)
    }

    /// The one that these PEM texts make, which `subject` names in errors.
    ///
    /// # Errors
    /// They cannot be read, do not belong together, or are no authority's.
    pub fn read(certificate: &str, key: &str, subject: &str) -> Result<Self, TlsError> {
        let broken = |why: String| TlsError::Certificate {
            subject: subject.to_owned(),
            why,
        };
        let der = pem::certificates(certificate.as_bytes(), subject)?.swap_remove(0);
        let facts = Facts::of(&der, subject)?;
        if !facts.is_authority {
            return Err(broken("it may not sign others".to_owned()));
        }
        let pair = KeyPair::from_pem(key).map_err(|e| broken(format!("its key: {e}")))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|e| broken(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(broken("its key is another's".to_owned()));
        }
        Issuer::from_ca_cert_der(&der, pair).map_err(|e| broken(e.to_string()))?;
        Ok(Self {
            issued: Issued {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            },
            der,
            facts,
        })
    }

    /// Certificate and key, PEM.
    pub fn issued(&self) -> &Issued {
        &self.issued
    }

    /// What its certificate says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A certificate for a server with a new key, which counts from an hour before `now` until
    /// `life` after it, but no longer than the authority's own.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn issue(
        &self,
        names: &Names,
        now: SystemTime,
        life: Duration,
    ) -> Result<Issued, MakeError> {
        let key = new_key()?;
        let mut params = params(now, (now + life).min(self.facts.not_after))?;
        params.distinguished_name = common_name(names.hosts.first().map_or("", String::as_str));
        for host in &names.hosts {
            let name = host
                .as_str()
                .try_into()
                .map_err(crypto("put a name into a certificate"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = names.addresses.iter().copied();
        params
            .subject_alt_names
            .extend(addresses.map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let own =
            KeyPair::from_pem(&self.issued.key).map_err(crypto("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_der(&self.der, own)
            .map_err(crypto("read the authority's certificate"))?;
        let made = params
            .signed_by(&key, &issuer)
            .map_err(crypto("sign a certificate"))?;
        Ok(Issued {
            certificate: made.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Issued {
    /// What the certificate says, if the texts can be read and belong together; `subject` names
    /// them in errors.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn check(&self, subject: &str) -> Result<Facts, TlsError> {
        let chain = pem::certificates(self.certificate.as_bytes(), subject)?;
        let facts = Facts::of(&chain[0], subject)?;
        let key = pem::key(self.key.as_bytes(), subject)?;
        rustls::sign::CertifiedKey::from_der(chain, key, &crate::provider()).map_err(|source| {
            let subject = subject.to_owned();
            TlsError::Identity { subject, source }
        })?;
        Ok(facts)
    }

    /// Whether the authority with the certificate `authority` (PEM) signed this one.
    pub fn is_signed_by(&self, authority: &str) -> bool {
        let signed = || -> Result<bool, TlsError> {
            let trust = Trust::fixed(authority.as_bytes(), "an authority")?;
            let own =
                pem::certificates(self.certificate.as_bytes(), "a certificate")?.swap_remove(0);
            let facts = Facts::of(&own, "a certificate")?;
            let name = match (facts.hosts.first(), facts.addresses.first()) {
                (Some(host), _) => ServerName::try_from(host.clone()).ok(),
                (None, Some(address)) => Some(ServerName::from(*address)),
                (None, None) => None,
            };
            let at = facts.not_before + Duration::from_secs(1);
            let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
            Ok(name.is_some_and(|name| trust.verify_at(&own, &name, at).is_ok()))
        };
        // What cannot be read was signed by nobody.
        signed().unwrap_or(false)
    }
}

fn new_key() -> Result<KeyPair, MakeError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto("make a key"))
}

fn params(now: SystemTime, until: SystemTime) -> Result<CertificateParams, MakeError> {
    let mut params = CertificateParams::default();
    params.not_before = date(now.checked_sub(SKEW).unwrap_or(UNIX_EPOCH))?;
    params.not_after = date(until)?;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    // At most 64 characters; nobody goes by it.
    let name: String = name.chars().take(64).collect();
    all.push(DnType::CommonName, name);
    all
}

fn date(time: SystemTime) -> Result<OffsetDateTime, MakeError> {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok())
        .ok_or(MakeError::Time { seconds })
}

fn crypto(act: &'static str) -> impl Fn(rcgen::Error) -> MakeError {
    move |source| MakeError::Crypto { act, source }
}
