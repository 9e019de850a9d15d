//! HTTP headers of our own.

/// On every answer of a worker: the full commit whose weights produced it.
pub const COMMIT: &str = "x-hyprstream-commit";

/// On a 503 of a worker that is shutting down: the request was not begun, and another worker of
/// the same Model may take it.
pub const DRAINING: &str = "x-hyprstream-draining";

/// Identifies one request from the gateway through the worker. Taken from the client or made.
pub const REQUEST_ID: &str = "x-request-id";
