//! The program as people run it, beside stock git with git-lfs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod chat;
mod repositories;
mod support;
