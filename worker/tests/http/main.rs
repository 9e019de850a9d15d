//! The HTTP side over a real socket, with a model that computes nothing.

mod cancel;
mod chat;
mod completions;
mod limits;
mod server;
mod state;
