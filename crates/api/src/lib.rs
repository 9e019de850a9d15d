//! The custom resources of hyprstream, and nothing else.
//!
//! [`Model`] is `models.hyprstream.io`: a git repository at a reference, served. [`Adapter`] is
//! `adapters.hyprstream.io`: a file in a commit that a Model's workers serve on top of it.
//! [`TrainingJob`] is `trainingjobs.hyprstream.io`: it makes such a file out of data. The CRDs in `crds/` are generated from these types; everything that a schema or a CEL rule can refuse is
//! refused by the API server, so there is no webhook. Whoever reads many objects reads them as
//! [`Checked`], so that a bad one does not hide the others.

// KubeSchema repeats each struct inside of a function, where `pub` reaches nothing.
#![allow(unreachable_pub)]

mod adapter;
mod checked;
pub mod condition;
mod model;
#[cfg(test)]
mod schema_test;
mod size;
mod source;
mod training_job;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use adapter::{
    Adapter, AdapterReplicas, AdapterSource, AdapterSpec, AdapterStatus, BaseCommitPolicy,
    LocalModelRef,
};
pub use checked::{Checked, DecodeError};
pub use model::{
    Device, Download, Dtype, Engine, FailedCommit, Model, ModelAdapters, ModelSpec, ModelStatus,
    NoRoom, Quantization, Rollout, Storage,
};
pub use source::{LocalSecretRef, Source, SourceRef};
pub use training_job::{
    AdapterType, Baseline, ClaimSource, ConfigMapSource, CurvePoint, Dataset, Gate, GateMetric,
    GateVerdict, LearningRateSchedule, LossOn, Objective, OnSuccess, TrainingCheckpoint,
    TrainingCheckpointStatus, TrainingData, TrainingEval, TrainingInputs, TrainingJob,
    TrainingJobSpec, TrainingJobStatus, TrainingLastKnownGood, TrainingMethod, TrainingMetric,
    TrainingModelRef, TrainingOutput, TrainingOutputStatus, TrainingResources,
};

/// All CustomResourceDefinitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![Model::crd(), Adapter::crd(), TrainingJob::crd()]
}
