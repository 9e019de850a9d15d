//! The registry against stock git and git-lfs, and against upstreams that fail.

// Helpers of tests fail as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod access;
mod adapters;
mod backend;
mod client;
mod cluster;
mod commits;
mod fence;
mod forks;
mod grants;
mod heal;
mod hostile;
mod keep;
mod listen;
mod merges;
mod mirror;
#[path = "../../../crates/git2db/tests/support/secrets.rs"]
mod planted;
mod program;
mod push;
mod restart;
mod resume;
mod rights;
mod secrets;
mod server;
mod slow;
mod slow_sync;
mod tls;
mod top_up;
mod upstream;
mod volumes;
