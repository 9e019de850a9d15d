//! The HTTP side of a worker.

mod adapter_metrics;
mod api;
mod app;
mod auth;
mod body;
mod collect;
mod constraint;
mod drain;
mod generate;
mod identity;
mod metrics;
mod options;
mod patience;
mod reading;
mod respond;
mod run;
mod sse;
mod stack;
mod tls;
mod unread;

pub use app::App;
pub use identity::{Identity, IdentityError};
pub use options::{ApiKeys, ApiOptions, ReasoningMode, ToolCallParser};
pub use run::{Listeners, Places, ServerOptions, run};
pub use tls::Tls;
