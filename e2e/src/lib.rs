//! What the end-to-end tests drive a real cluster with: kubectl, git, helm and HTTP, each through
//! its real door. The tests are in `tests/`; `cargo xtask test` starts the cluster for them.
//!
//! The environment tells where the cluster is, see [`Cluster::from_env`].

mod chat;
mod cluster;
mod load;
mod namespace;
mod object;
mod repo;
mod shell;
mod tensors;
mod tiny;
mod tiny_adapter;

pub use chat::{Answer, Chat};
pub use cluster::{Cluster, wait_until};
pub use load::{Load, LoadReport};
pub use namespace::Namespace;
pub use object::{Model, Object};
pub use repo::Repository;
pub use shell::{Output, run};
pub use tiny::TinyModel;
pub use tiny_adapter::TinyAdapter;
