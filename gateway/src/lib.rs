//! The cluster's one OpenAI endpoint: routes a request to a ready worker of the Model that it
//! names.
//!
//! ```text
//! API server ──watch──▶ Table (immutable, replaced on change)
//!                          │ resolve, pick the least loaded
//! client ──▶ server ──▶ forward ──▶ endpoint pool ──▶ worker
//!              │            └─ hold: no worker yet, wait for a new Table
//!              └─ limits, shares of them, timeouts, drain
//! ```
//!
//! Only [`watch`] and [`fine_tuning`] know Kubernetes. Everything else works on a [`table::Table`], so that tests
//! and other sources of endpoints need no cluster.

mod budget;
pub mod check;
pub mod config;
pub mod endpoint;
mod error;
pub mod fine_tuning;
mod forward;
mod headers;
pub mod keys;
mod metrics;
mod models;
mod network;
pub mod rlimit;
pub mod server;
pub mod table;
pub mod watch;

pub use config::Config;
pub use error::GatewayError;
pub use metrics::Metrics;
pub use network::{Network, NotANetwork};
pub use server::Gateway;
