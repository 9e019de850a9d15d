//! HTTP headers of our own.

/// On every answer of a worker: the full commit whose weights produced it.
pub const COMMIT: &str = "x-hyprstream-commit";

/// On a 503 of a worker that is shutting down: the request was not begun, and another worker of
/// the same Model may take it.
pub const DRAINING: &str = "x-hyprstream-draining";

/// Identifies one request from the gateway through the worker. Taken from the client or made.
pub const REQUEST_ID: &str = "x-request-id";

/// On an answer to a conversation: members of its past messages that the worker does not know and
/// read over, such as `messages.provider_specific_fields`, parted by commas.
pub const IGNORED: &str = "x-hyprstream-ignored";

/// On an answer that adapters had a part in: `NAME=DIGEST@SCALE`, parted by commas, in the order in
/// which they are stacked. DIGEST is 64 hexadecimal digits.
pub const ADAPTERS: &str = "x-hyprstream-adapters";

/// On a 404 of a worker that lacks adapters which were asked for: their names, parted by commas. The
/// request was not begun, and another worker of the same Model may have them.
pub const MISSING_ADAPTERS: &str = "x-hyprstream-missing-adapters";
