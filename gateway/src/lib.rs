//! The cluster's one OpenAI endpoint: routes a request to a ready worker of the Model that it
//! names.
//!
//! ```text
//! API server ──watch──▶ Table (immutable, replaced on change)
//!                          │ resolve, pick the least loaded
//! client ──▶ server ──▶ forward ──▶ endpoint pool ──▶ worker
//!              │            └─ hold: no worker yet, wait for a new Table
//!              └─ limits, timeouts, drain
//! ```
//!
//! Only [`watch`] knows Kubernetes. Everything else works on a [`table::Table`], so that tests
//! and other sources of endpoints need no cluster.

pub mod check;
pub mod config;
pub mod endpoint;
mod error;
mod forward;
mod headers;
mod metrics;
mod models;
pub mod rlimit;
pub mod server;
pub mod table;
pub mod watch;

pub use config::Config;
pub use error::GatewayError;
pub use metrics::Metrics;
pub use server::Gateway;
