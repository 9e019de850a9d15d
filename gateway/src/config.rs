//! Limits and timeouts.

use std::time::Duration;

/// Limits and timeouts of the gateway. Every one bounds something that a client or a worker
/// could otherwise make grow without end.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a request waits for a Model that is starting.
    pub hold_timeout: Duration,
    /// Most requests that wait at the same time.
    pub max_held: usize,
    /// Most requests at the same time, waiting ones included.
    pub max_requests: usize,
    /// Most client connections at the same time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies in memory at the same time.
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
    /// Time for requests in flight to end after the shutdown began.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold_timeout: Duration::from_mins(2),
            max_held: 1024,
            max_requests: 8192,
            max_connections: 16384,
            max_body_bytes: 16 << 20,
            max_buffered_bytes: 256 << 20,
            max_header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_mins(1),
            write_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_secs(3700),
            connect_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_mins(5),
        }
    }
}
