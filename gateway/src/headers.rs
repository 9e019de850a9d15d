//! What of the headers is passed on.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{
    HeaderMap, HeaderValue,
    header::{self, HeaderName},
};
use hyprstream_contract::header::{DRAINING, REQUEST_ID};

use crate::Network;

/// Headers of one connection, RFC 9110 section 7.6.1.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const OTHER_HOP_BY_HOP: [&str; 2] = ["keep-alive", "proxy-connection"];

/// What proxies say of the client beside the headers that begin with [`FORWARDED_PREFIX`].
const OTHER_FORWARDED: [&str; 2] = ["forwarded", "x-real-ip"];
const FORWARDED_PREFIX: &str = "x-forwarded-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers beside `Authorization` in which clients send keys.
const KEYS: [&str; 2] = ["x-api-key", "api-key"];

/// Longest request id that is taken from a client.
const MAX_REQUEST_ID: usize = 128;

/// The request's id: the client's if it is fit to be logged, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(id)
            if (1..=MAX_REQUEST_ID).contains(&id.len())
                && id.as_bytes().iter().all(u8::is_ascii_graphic) =>
        {
            id.clone()
        }
        _ => new_request_id(),
    }
}

fn new_request_id() -> HeaderValue {
    static KEYS: LazyLock<(RandomState, RandomState)> =
        LazyLock::new(|| (RandomState::new(), RandomState::new()));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let id = format!(
        "{:016x}{:016x}",
        KEYS.0.hash_one(next),
        KEYS.1.hash_one(next)
    );
    HeaderValue::from_str(&id).expect("hexadecimal digits are a header value")
}

/// Turns a client's headers into those of the request to a worker, which lack only `host` and the
/// worker's key.
///
/// Credentials stay here: they are for this gateway or for nobody. What is said of the client by
/// `X-Forwarded-*`, `Forwarded` and `X-Real-IP` stays only if the peer is a proxy that is
/// believed; otherwise anybody could pass for any address.
pub(crate) fn to_worker(
    headers: &mut HeaderMap,
    peer: Option<IpAddr>,
    proxies: &[Network],
    request_id: &HeaderValue,
) {
    strip_hop_by_hop(headers);
    for name in [
        header::AUTHORIZATION,
        header::COOKIE,
        header::EXPECT,
        header::CONTENT_LENGTH,
    ] {
        headers.remove(name);
    }
    for name in KEYS {
        headers.remove(name);
    }
    let believed = peer.is_some_and(|peer| proxies.iter().any(|proxy| proxy.contains(peer)));
    if !believed {
        strip_forwarded(headers);
    }
    if let Some(peer) = peer {
        let mut chain: Vec<String> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        chain.push(peer.to_canonical().to_string());
        if let Ok(value) = HeaderValue::from_str(&chain.join(", ")) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    if let Some(host) = headers.remove(header::HOST) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    headers.insert(REQUEST_ID, request_id.clone());
}

/// Turns a worker's headers into those of the answer to the client.
pub(crate) fn to_client(headers: &mut HeaderMap, request_id: &HeaderValue) {
    strip_hop_by_hop(headers);
    headers.remove(DRAINING);
    headers.insert(REQUEST_ID, request_id.clone());
}

fn strip_forwarded(headers: &mut HeaderMap) {
    for name in OTHER_FORWARDED {
        headers.remove(name);
    }
    let forged: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(FORWARDED_PREFIX))
        .cloned()
        .collect();
    for name in forged {
        headers.remove(name);
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in OTHER_HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn what_belongs_to_the_connection_or_is_secret_does_not_reach_the_worker() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer k"),
            ("cookie", "c"),
            ("x-api-key", "k"),
            ("host", "api.example.org"),
            ("x-forwarded-for", "10.0.0.1"),
            ("content-type", "application/json"),
        ]);
        let id = HeaderValue::from_static("id");
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        to_worker(&mut headers, Some([10, 0, 0, 2].into()), &proxies, &id);
        let expected = map(&[
            ("x-forwarded-host", "api.example.org"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "10.0.0.1, 10.0.0.2"),
            ("content-type", "application/json"),
            ("x-request-id", "id"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn nobody_but_a_known_proxy_speaks_for_a_client() {
        let sent = map(&[
            ("host", "api.example.org"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "other.example.org"),
            ("x-forwarded-user", "root"),
        ]);
        let id = HeaderValue::from_static("id");
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        let mut headers = sent.clone();
        to_worker(&mut headers, Some([11, 0, 0, 2].into()), &proxies, &id);
        let expected = map(&[
            ("x-forwarded-host", "api.example.org"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "11.0.0.2"),
            ("x-request-id", "id"),
        ]);
        assert_eq!(headers, expected);
        let mut headers = sent;
        to_worker(&mut headers, Some([10, 0, 0, 2].into()), &proxies, &id);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 10.0.0.2");
        assert_eq!(headers["x-forwarded-host"], "other.example.org");
        assert_eq!(headers["x-forwarded-user"], "root");
    }

    #[test]
    fn a_request_id_is_the_clients_or_a_new_one() {
        assert_eq!(request_id(&map(&[("x-request-id", "abc")])), "abc");
        for wrong in ["", "with space", "é"] {
            let mut headers = HeaderMap::new();
            headers.insert(
                REQUEST_ID,
                HeaderValue::from_bytes(wrong.as_bytes()).unwrap(),
            );
            assert_eq!(request_id(&headers).len(), 32, "{wrong:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
