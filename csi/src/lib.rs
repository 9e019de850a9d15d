//! The CSI node plugin of hyprstream.
//!
//! A volume shows one commit of a git repository: an overlay mount over the immutable checkout of
//! the commit, of which there is one per node, and a small layer with a manifest. A read-write
//! volume has a private upper above them. The kernel serves all reads; this program is needed only
//! while volumes come and go, and may be killed at any time.
//!
//! A volume of a Model's adapters is a bind mount of a folder whose content this program changes
//! while pods have it.
//!
//! * [`volumes`] stages and publishes, [`journal`] remembers what was asked for, [`mount`] talks to
//!   the kernel, [`fetch`] brings files to the node, [`adapters`] follows lists, [`gc`]
//!   deletes what nothing uses, [`witness`] knows which volumes are gone.
//! * [`server`] answers the kubelet, [`run()`] ties all together.
//!
//! Tests drive this library; the program is `main.rs`.

pub mod adapters;
pub mod args;
pub mod error;
pub mod fetch;
pub mod gc;
pub mod journal;
pub mod layer;
pub mod layout;
pub mod metrics;
pub mod mount;
pub mod proto;
mod registry_api;
mod run;
pub mod server;
pub mod volumes;
pub mod witness;

pub use run::{RunError, run};
