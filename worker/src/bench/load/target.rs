//! Which server is loaded.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use hyper::{Uri, http::uri::Scheme};

/// A server by its address, resolved once: a name that moves does not move the load.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Where connections go.
    pub(super) address: SocketAddr,
    /// What the server is called in requests.
    pub(super) host: String,
    /// Path before `/v1`, without a slash at its end.
    pub(super) base: String,
}

impl Target {
    /// Resolves an http address. Without `allow_remote` it must lead to this machine.
    ///
    /// # Errors
    /// It is no http address, has no host that resolves, or leads elsewhere.
    pub(super) async fn resolve(url: &str, allow_remote: bool) -> anyhow::Result<Self> {
        let uri: Uri = url
            .parse()
            .with_context(|| format!("no address: {url:?}"))?;
        ensure!(
            uri.scheme() == Some(&Scheme::HTTP),
            "{url:?} does not begin with http://; put a proxy before a server that only has https"
        );
        let authority = uri.authority().context("the address has no host")?;
        ensure!(
            !authority.as_str().contains('@'),
            "the address must not hold a password"
        );
        let host = authority.host();
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(80);
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name, port))
            .await
            .with_context(|| format!("{host} does not resolve"))?
            .collect();
        if !allow_remote && let Some(remote) = addresses.iter().find(|a| !a.ip().is_loopback()) {
            bail!(
                "{host} is {}, which is not this machine: load only servers of your own, with \
                 --allow-remote",
                remote.ip()
            );
        }
        let address = *addresses.first().context("the host has no address")?;
        let base = uri.path().trim_end_matches('/');
        Ok(Self {
            address,
            host: authority.to_string(),
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
        })
    }

    /// The address of a path of the API, such as `/v1/models`.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{}{path}", self.address, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(url: &str, allow_remote: bool) -> Result<String, String> {
        Target::resolve(url, allow_remote)
            .await
            .map(|target| target.url("/v1/models"))
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_this_machine_is_loaded_unless_told() {
        let remote = "http://192.0.2.1:8000";
        assert!(
            resolve(remote, false)
                .await
                .unwrap_err()
                .contains("--allow-remote")
        );
        assert_eq!(
            resolve(remote, true).await.unwrap(),
            "http://192.0.2.1:8000/v1/models"
        );
        for (url, full) in [
            ("http://127.0.0.1:9", "http://127.0.0.1:9/v1/models"),
            ("http://127.9.9.9:9/x/v1/", "http://127.9.9.9:9/x/v1/models"),
            ("http://[::1]:9/v1", "http://[::1]:9/v1/models"),
        ] {
            assert_eq!(resolve(url, false).await.unwrap(), full);
        }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_loaded_is_refused() {
        for url in [
            "127.0.0.1:9",
            "https://127.0.0.1:9",
            "http://a:b@127.0.0.1",
            "/v1",
        ] {
            assert!(resolve(url, true).await.is_err(), "{url}");
        }
    }
}
