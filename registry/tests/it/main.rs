//! The registry against stock git and git-lfs, and against upstreams that fail.

// Helpers of tests fail as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod access;
mod adapters;
mod backend;
mod client;
mod fence;
mod heal;
mod listen;
mod mirror;
mod push;
mod restart;
mod server;
mod slow;
mod upstream;
