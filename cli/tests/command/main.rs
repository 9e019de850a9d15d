//! The program as people run it, beside stock git with git-lfs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod chat;
#[path = "../../../crates/git2db/tests/support/mod.rs"]
mod remote;
mod repositories;
mod secrets;
mod support;
