//! The certificates by which our parts know each other: made, shown and made anew here
//! (`docs/adr/0010-tls-between-our-parts.md`).
//!
//! # Expected flow
//! Look at three objects ([`keep`]), decide on the one next step ([`mod@decide`]), write it, look
//! again; when there is nothing to do, wait.
//!
//! # Guarantees
//! - A client with a bundle, and a server with a certificate, that are no older than the overlap
//!   believe each other at any time, whatever was lost of the three objects, as long as it was not
//!   all of them.
//! - A kill between any two writes is mended by the next look.
//!
//! # Limitations
//! Clocks of nodes may differ by an hour. An operator that is away for 30 days lets certificates
//! end.

mod decide;
mod keep;
mod objects;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, time::Duration};

use hyprstream_tls::Names;

pub use keep::{Keeper, Published};
pub use objects::{AUTHORITY, REGISTRY, TRUST};

/// How long an authority lives.
pub(crate) const AUTHORITY_LIFE: Duration = Duration::from_hours(3 * 365 * 24);
/// How long a certificate lives.
pub(crate) const LIFE: Duration = Duration::from_hours(90 * 24);

/// What is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the three objects.
    pub namespace: String,
    /// Names and addresses of the registry.
    pub names: Names,
    /// How long an authority is in the bundle before it signs: longer than the kubelet takes to
    /// show a changed bundle.
    pub overlap: Duration,
    /// How often the objects are looked at.
    pub pause: Duration,
}

/// Names and addresses out of a list of both.
pub fn names(list: &[String]) -> Names {
    let mut names = Names::default();
    for name in list
        .iter()
        .map(|name| name.trim())
        .filter(|n| !n.is_empty())
    {
        match name.parse() {
            Ok(address) => names.addresses.insert(address),
            Err(_) => names.hosts.insert(name.to_ascii_lowercase()),
        };
    }
    names
}

/// The fields of an object that differ from what they should be, for people.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: BTreeSet<&str> = names.into_iter().map(String::as_str).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
