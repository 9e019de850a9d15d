//! The HTTP side of a worker.

mod api;
mod app;
mod body;
mod drain;
mod generate;
mod identity;
mod metrics;
mod respond;
mod run;
mod sse;
mod unread;

pub use app::App;
pub use identity::{Identity, IdentityError};
pub use run::{ServerOptions, run};
