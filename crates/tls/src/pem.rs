//! PEM texts.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::TlsError;

/// The certificates of a PEM text, in its order. `subject` names the text in errors.
///
/// # Errors
/// It is not PEM, or has no certificate.
pub fn certificates(text: &[u8], subject: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Pem {
            subject: subject.to_owned(),
            why: error.to_string(),
        })?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate {
            subject: subject.to_owned(),
        });
    }
    Ok(found)
}

/// The first key of a PEM text.
pub(crate) fn key(text: &[u8], subject: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| TlsError::Pem {
        subject: subject.to_owned(),
        why: error.to_string(),
    })
}
