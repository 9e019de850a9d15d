//! The HTTP side over a real socket, with a model that computes nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of it is tests")]

mod adapters;
mod cancel;
mod chat;
mod clients;
mod completions;
mod embeddings;
mod keys;
mod lessons;
mod limits;
mod load;
mod openapi;
mod parrot;
mod prompts;
mod responses;
mod server;
mod state;
mod structured;
mod tls;
mod tools;
