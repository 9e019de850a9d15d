//! The custom resources of hyprstream, and nothing else.
//!
//! [`Model`] is `models.hyprstream.io`: a git repository at a reference, served. The CRD in
//! `crds/` is generated from these types; everything that a schema or a CEL rule can refuse is
//! refused by the API server, so there is no webhook. Whoever reads many objects reads them as
//! [`Checked`], so that a bad one does not hide the others.

// KubeSchema repeats each struct inside of a function, where `pub` reaches nothing.
#![allow(unreachable_pub)]

mod checked;
pub mod condition;
mod engine;
mod model;
mod rollout;
#[cfg(test)]
mod schema_test;
mod source;
mod status;

pub use checked::{Checked, DecodeError};
pub use engine::{Device, Dtype, Engine, Quantization};
pub use model::{Model, ModelSpec, Storage, crds};
pub use rollout::Rollout;
pub use source::{LocalSecretRef, Source, SourceRef};
pub use status::{Download, FailedCommit, ModelStatus};
