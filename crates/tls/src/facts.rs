//! What a certificate says.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate, time::ASN1Time};

use crate::{TlsError, pem};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// From when it counts.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// Names of hosts that it is for.
    pub hosts: BTreeSet<String>,
    /// Addresses that it is for.
    pub addresses: BTreeSet<std::net::IpAddr>,
    /// Whether it may sign others.
    pub is_authority: bool,
}

impl Facts {
    /// Those of the first certificate of a PEM text, which `subject` names in errors.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn of_pem(text: &str, subject: &str) -> Result<Self, TlsError> {
        let all = pem::certificates(text.as_bytes(), subject)?;
        Self::of(&all[0], subject)
    }

    /// Those of a certificate, which `subject` names in errors.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(certificate: &CertificateDer<'_>, subject: &str) -> Result<Self, TlsError> {
        let broken = |why: String| TlsError::Certificate {
            subject: subject.to_owned(),
            why,
        };
        let (_, parsed) = parse_x509_certificate(certificate).map_err(|e| broken(e.to_string()))?;
        let mut facts = Self {
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            hosts: BTreeSet::new(),
            addresses: BTreeSet::new(),
            is_authority: parsed.is_ca(),
        };
        let names = parsed
            .subject_alternative_name()
            .map_err(|e| broken(e.to_string()))?;
        for name in names.into_iter().flat_map(|all| &all.value.general_names) {
            match name {
                GeneralName::DNSName(host) => {
                    facts.hosts.insert((*host).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    facts.addresses.extend(address(bytes));
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    /// When it should be made anew: at two thirds of its time.
    pub fn renew_at(&self) -> SystemTime {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        self.not_before + life / 3 * 2
    }
}

fn time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(Into::into);
    let sixteen = || <[u8; 16]>::try_from(bytes).map(Into::into);
    four.or_else(|_| sixteen()).ok()
}
