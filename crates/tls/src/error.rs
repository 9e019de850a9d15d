//! What can be wrong with certificates.

use std::path::PathBuf;

/// A certificate, key or bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What should be PEM is not.
    #[error("{subject} is not PEM: {why}")]
    Pem {
        /// What was read.
        subject: String,
        /// Why.
        why: String,
    },
    /// There is no certificate in it.
    #[error("{subject} has no certificate")]
    NoCertificate {
        /// What was read.
        subject: String,
    },
    /// A certificate's contents are not understood.
    #[error("{subject} has a certificate that cannot be read: {why}")]
    Certificate {
        /// What was read.
        subject: String,
        /// Why.
        why: String,
    },
    /// Key and certificate are of no use together.
    #[error("{subject} cannot be served with")]
    Identity {
        /// What was read.
        subject: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A bundle from which nothing can be verified.
    #[error("{subject} cannot be trusted: {why}")]
    Roots {
        /// What was read.
        subject: String,
        /// Why.
        why: String,
    },
    /// There is a bundle for a URL that needs none.
    #[error("{url} is not https: leave {bundle} out, or call it by https")]
    Useless {
        /// The URL.
        url: String,
        /// The bundle's file.
        bundle: PathBuf,
    },
    /// There is no bundle for a URL that needs one.
    #[error("{url} is https: name the file with the bundle of authorities that it is trusted by")]
    Missing {
        /// The URL.
        url: String,
    },
    /// A certificate is not one that this name may show.
    #[error("the certificate of {host} is refused")]
    Refused {
        /// Who showed it.
        host: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// A key could not be made, or something could not be signed.
    #[error("{act}")]
    Crypto {
        /// What was done.
        act: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A time is outside of what certificates can say.
    #[error("a certificate cannot say the time {seconds} s after 1970")]
    Time {
        /// The time, in seconds since 1970.
        seconds: u64,
    },
    /// What was made is not what was asked for.
    #[error("read what was made")]
    Result(#[source] TlsError),
}
