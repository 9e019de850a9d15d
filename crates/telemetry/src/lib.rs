//! Logs, metrics and health, the same in every program.

mod admin;
mod log;

pub use admin::{AdminServer, Probe, render};
pub use log::{LogFormat, init_logs};
