//! What the control plane and the nodes agree on.
//!
//! Programs never depend on programs; they meet here. Everything that one program writes and
//! another reads has its type, its name and its round-trip test in this crate: the attributes of
//! a volume, the manifest in it, the worker's environment and last words, the registry's API, the
//! reference by which clients name a model, labels and headers. It does no IO.

pub mod adapters;
pub mod commit;
pub mod grants;
pub mod header;
pub mod label;
pub mod manifest;
pub mod model_name;
pub mod model_ref;
pub mod persistent_volumes;
pub mod registry;
pub mod repositories;
pub mod training;
pub mod training_defaults;
pub mod volume;
pub mod worker;
pub mod worker_adapters;
pub mod worker_key;
pub mod worker_tls;

pub use commit::CommitId;
pub use manifest::Manifest;
pub use model_ref::ModelRef;
pub use volume::VolumeAttributes;
pub use worker_key::WorkerKeys;
