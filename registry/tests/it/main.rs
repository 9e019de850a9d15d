//! The registry against stock git and git-lfs, and against upstreams that fail.

#![allow(missing_docs)]

mod access;
mod client;
mod mirror;
mod push;
mod restart;
mod server;
mod upstream;
