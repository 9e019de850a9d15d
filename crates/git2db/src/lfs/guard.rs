//! Which addresses HTTP calls may go to.

use std::{fmt, net::IpAddr, sync::Arc};

use ureq::{
    Agent, Error,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

/// Says whether a host may be called at an address that its name was resolved to.
pub type Guard = Arc<dyn Fn(&str, IpAddr) -> bool + Send + Sync>;

/// An agent that connects only where `guard` allows it: the address that was looked at is the one
/// that is connected to. Through a proxy, it is the proxy that connects.
pub fn guarded_agent(config: Config, guard: Option<Guard>) -> Agent {
    match guard {
        None => config.into(),
        Some(guard) => {
            let resolver = Guarded {
                guard,
                inner: DefaultResolver::default(),
            };
            Agent::with_parts(config, DefaultConnector::default(), resolver)
        }
    }
}

struct Guarded {
    guard: Guard,
    inner: DefaultResolver,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded")
    }
}

impl Resolver for Guarded {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        // The proxy is named by our own environment, and by no stranger.
        if config.proxy().is_some_and(|proxy| proxy.uri() == uri) {
            return Ok(found);
        }
        let host = uri.host().unwrap_or_default();
        let mut allowed = self.empty();
        for address in &found {
            if (self.guard)(host, address.ip()) {
                allowed.push(*address);
            }
        }
        if allowed.is_empty() {
            tracing::debug!(host, "no address of the host is allowed");
            return Err(Error::HostNotFound);
        }
        Ok(allowed)
    }
}
