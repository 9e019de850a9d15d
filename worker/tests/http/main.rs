//! The HTTP side over a real socket, with a model that computes nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of it is tests")]

mod cancel;
mod chat;
mod completions;
mod limits;
mod load;
mod server;
mod state;
