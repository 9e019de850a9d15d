//! The operations of a handle, compared with stock git and git-lfs on the same repositories.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

#[path = "../support/mod.rs"]
mod support;

mod desk;
mod filter;
mod history;
mod ignore;
mod merge;
mod refs;
mod sign;
mod status;
mod twins;
mod worktree;
