//! Limits and timeouts.

use std::time::Duration;

use hyprstream_contract::worker;

use crate::Network;

/// Limits and timeouts of the gateway. Every one bounds something that a client or a worker
/// could otherwise make grow without end.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a request waits for a Model that is starting.
    pub hold_timeout: Duration,
    /// How long a request waits for a Model whose workers fail to start.
    pub doubtful_hold_timeout: Duration,
    /// Most requests that wait at the same time.
    pub max_held: usize,
    /// Most requests at the same time, waiting ones included.
    pub max_requests: usize,
    /// Most client connections at the same time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies and of answers that are held back until they are complete.
    pub max_buffered_bytes: usize,
    /// Largest request head in bytes; at least 8192.
    pub max_header_bytes: usize,
    /// Time for a request head to arrive, from its first byte or the connection's start.
    pub header_timeout: Duration,
    /// Time for a request body to arrive.
    pub body_timeout: Duration,
    /// Time that a client may leave the bytes sent to it unread.
    pub write_timeout: Duration,
    /// Time that a connection may be idle between requests. Longer than that of the proxies in
    /// front, since a proxy that sends on a connection just closed has to answer 503.
    pub idle_timeout: Duration,
    /// Time for a connection to a worker to be made.
    pub connect_timeout: Duration,
    /// Time that a worker may send nothing of an answer, before its head and in it.
    pub silence_timeout: Duration,
    /// Time for requests in flight to end after the shutdown began, waiting ones included.
    pub drain_timeout: Duration,
    /// Proxies whose word on the client is believed.
    pub trusted_proxies: Vec<Network>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold_timeout: Duration::from_mins(2),
            doubtful_hold_timeout: Duration::from_secs(10),
            max_held: 1024,
            max_requests: 8192,
            max_connections: 16384,
            max_body_bytes: worker::MAX_BODY_BYTES,
            max_buffered_bytes: 256 << 20,
            max_header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_secs(3700),
            connect_timeout: Duration::from_secs(2),
            silence_timeout: Duration::from_hours(1),
            drain_timeout: Duration::from_mins(5),
            trusted_proxies: Vec::new(),
        }
    }
}
