//! TLS between our parts: certificates that are followed, and an authority that makes them.
//!
//! - [`ServerIdentity`] and [`Trust`] read PEM files, such as the kubelet keeps of a Secret or a
//!   ConfigMap, and look again every few seconds: whoever serves or calls never has to start anew.
//! - [`Handshakes`] takes accepted connections, within a deadline and a bound.
//! - [`Authority`] makes certificates, and [`Facts`] says what is in one. When they are made
//!   anew is the operator's affair (`docs/adr/0010-tls-between-our-parts.md`).
//!
//! One provider of cryptography, ring, is named wherever rustls asks for one: no default of the
//! process is set or needed.
//!
//! # Limitations
//! No certificates of clients: our parts show tokens. No revocation: what must end early is taken
//! from the bundle of authorities.

mod authority;
mod error;
mod facts;
mod followed;
mod identity;
mod pem;
mod server;
mod trust;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use authority::{Authority, Issued, Names};
pub use error::{MakeError, TlsError};
pub use facts::Facts;
pub use identity::ServerIdentity;
pub use pem::certificates;
pub use server::{Accepted, HandshakeError, Handshakes};
pub use trust::{Trust, system_client_config};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
