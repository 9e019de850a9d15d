//! The only place where a spec is refused.

use std::collections::BTreeMap;

use hyprstream_api::{
    AdapterType, Dataset, Device, Model, Source, SourceRef, TrainingInputs, TrainingJob,
    TrainingJobSpec, TrainingLastKnownGood, condition,
};
use hyprstream_contract::{registry::Reference, training, volume::MIN_CAPACITY_BYTES};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::kueue;
use crate::{
    adapter::{build::literal, validate::Base},
    args::Images,
    owner::Owner,
    policy::{Policy, WorkerKey},
    source::{InvalidSource, SourceKey, own_repository},
};

/// Embedding and head, as targets.
const BESIDE_LAYERS: [&str; 2] = ["embed_tokens", "lm_head"];
/// How often a pinned commit is asked for, so that the registry keeps it.
const INTERVAL: &str = "10m";

/// A TrainingJob that can be worked on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Namespace of the job.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Makes the job the owner of an object.
    pub reference: OwnerReference,
    /// The Model's repository; all of the commit that the Model's own include names.
    pub model: SourceKey,
    /// Where the records come from.
    pub dataset: DatasetPlan,
    /// Repository that gets the commits, of [`Self::namespace`].
    pub repository: String,
    /// Name of the adapter.
    pub adapter: String,
    /// Image of the pod.
    pub image: String,
    /// When to pull it.
    pub pull_policy: &'static str,
    /// What the pod's server asks for.
    pub key: WorkerKey,
    /// What was served by its name when the job began, if a gate is measured from that.
    pub last_known_good: Option<TrainingLastKnownGood>,
    /// The day on which the job was made, for templates that write one.
    pub date: String,
    /// The labels of Kueue, which starts it if one names a queue.
    pub kueue: BTreeMap<String, String>,
    /// The spec.
    pub spec: TrainingJobSpec,
}

/// Where records come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatasetPlan {
    /// A git repository: just the files that the spec names.
    Git(SourceKey),
    /// A ConfigMap of the namespace.
    ConfigMap(String),
    /// A claim of the namespace.
    Claim(String),
}

impl Plan {
    /// The job, for which objects are made.
    pub fn owner(&self) -> Owner<'_> {
        Owner::new::<TrainingJob>(&self.namespace, &self.name, &self.uid, &self.reference)
    }

    /// The repository of the dataset, if it lies in one.
    pub fn dataset_source(&self) -> Option<&SourceKey> {
        match &self.dataset {
            DatasetPlan::Git(source) => Some(source),
            DatasetPlan::ConfigMap(_) | DatasetPlan::Claim(_) => None,
        }
    }

    /// `NAMESPACE/NAME` of the repository that gets the commits.
    pub fn full_repository(&self) -> String {
        format!("{}/{}", self.namespace, self.repository)
    }

    /// The same plan on what was pinned when the job began.
    #[must_use]
    pub fn pinned(mut self, inputs: Option<&TrainingInputs>) -> Self {
        let Some(inputs) = inputs else {
            return self;
        };
        if let Ok(commit) = inputs.model_commit.parse() {
            self.model.reference = Reference::Commit(commit);
        }
        let commit = inputs.dataset_commit.as_ref().and_then(|c| c.parse().ok());
        if let (DatasetPlan::Git(source), Some(commit)) = (&mut self.dataset, commit) {
            source.reference = Reference::Commit(commit);
        }
        if let Some((_, name)) = inputs.repository.split_once('/') {
            name.clone_into(&mut self.repository);
        }
        self.last_known_good.clone_from(&inputs.last_known_good);
        self
    }
}

/// Why a spec cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object came without what the API server always sets.
    #[error("the TrainingJob has no {0}")]
    Incomplete(&'static str),
    /// There is no such Model. It heals when there is.
    #[error("there is no Model {0} in this namespace (yet)")]
    ModelNotFound(String),
    /// The Model is there and cannot be read.
    #[error("the Model {0} cannot be read: its conditions say why")]
    ModelUnreadable(String),
    /// The Model's repository cannot be had as it is said.
    #[error("of the Model: {0}")]
    Model(InvalidSource),
    /// The dataset's repository cannot be had as it is said.
    #[error("spec.dataset: {0}")]
    Dataset(InvalidSource),
    /// Not exactly one place for the dataset.
    #[error("spec.dataset: set exactly one of url, configMap and persistentVolumeClaim")]
    DatasetPlace,
    /// The CPU's learner does not have it.
    #[error(
        "{field}: {what} is trained on GPUs alone; set spec.device to cuda or rocm, or {instead}"
    )]
    NeedsGpu {
        /// Where it is said.
        field: &'static str,
        /// What it is.
        what: String,
        /// What could be said instead.
        instead: &'static str,
    },
    /// There is no image for the device.
    #[error(
        "spec.device: this installation has no worker image for {0}; set it in the Helm values, or \
         use another device"
    )]
    NoImage(&'static str),
    /// The disk of the pod is too small.
    #[error("spec.resources.storage: {0:?} is no size of at least 16Mi, as 512Mi or 4Gi")]
    Storage(String),
    /// A variable of the chat template is no JSON.
    #[error("spec.data.templateVariables.{0}: it is no JSON value; a text needs quotes of its own")]
    TemplateVariable(String),
    /// A schema of a gate is no JSON.
    #[error("spec.gates: the schema is no JSON: {0}")]
    Schema(String),
}

impl Invalid {
    /// Reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ModelNotFound(_) => condition::reason::MODEL_NOT_FOUND,
            Self::ModelUnreadable(_) => condition::reason::MALFORMED,
            Self::Model(error) | Self::Dataset(error) => error.reason(),
            _ => condition::reason::INVALID_SPEC,
        }
    }

    /// Whether it stays so, since nothing of a job's spec changes.
    pub fn is_final(&self) -> bool {
        match self {
            Self::ModelNotFound(_)
            | Self::ModelUnreadable(_)
            | Self::Model(_)
            | Self::NoImage(_)
            | Self::Incomplete(_) => false,
            Self::Dataset(_)
            | Self::DatasetPlace
            | Self::NeedsGpu { .. }
            | Self::Storage(_)
            | Self::TemplateVariable(_)
            | Self::Schema(_) => true,
        }
    }
}

/// Checks what the schema of the CRD cannot.
///
/// # Errors
/// See [`Invalid`].
pub fn validate(
    job: &TrainingJob,
    base: Base<'_>,
    images: &Images,
    policy: &Policy,
) -> Result<Plan, Invalid> {
    let spec = &job.spec;
    let namespace = job.namespace().ok_or(Invalid::Incomplete("namespace"))?;
    let uid = job.uid().ok_or(Invalid::Incomplete("uid"))?;
    let reference = job
        .controller_owner_ref(&())
        .ok_or(Invalid::Incomplete("name"))?;
    let created = job.metadata.creation_timestamp.as_ref();
    let created = created.ok_or(Invalid::Incomplete("creationTimestamp"))?;
    let model_name = &spec.model_ref.name;
    let model = match base {
        Base::Missing => return Err(Invalid::ModelNotFound(model_name.clone())),
        Base::Unreadable => return Err(Invalid::ModelUnreadable(model_name.clone())),
        Base::Model(model) => model,
    };
    check_texts(spec)?;
    check_method(spec)?;
    let model_source = model_source(&namespace, model, spec.model_ref.reference.as_ref())?;
    policy.check(&model_source).map_err(Invalid::Model)?;
    let dataset = dataset(&namespace, spec)?;
    if let DatasetPlan::Git(source) = &dataset {
        policy.check(source).map_err(Invalid::Dataset)?;
    }
    let image = images
        .of(spec.device)
        .ok_or(Invalid::NoImage(spec.device.as_str()))?;
    let own = own_repository(&model_source.url).map(|(_, name)| name);
    let repository = spec.output.repository.as_deref().or(own);
    let name = job.name_any();
    Ok(Plan {
        repository: repository.unwrap_or(model_name).to_owned(),
        adapter: job.adapter_name().to_owned(),
        key: policy.keys.of(&namespace, &training::key_name(&name)),
        last_known_good: None,
        date: created.0.strftime("%Y-%m-%d").to_string(),
        kueue: kueue::labels(job.labels()),
        image: image.to_owned(),
        pull_policy: images.pull_policy.as_str(),
        model: model_source,
        dataset,
        namespace,
        name,
        uid,
        reference,
        spec: spec.clone(),
    })
}

/// Refuses on the CPU what only libtorch's learner has. Of an adapter that it goes on from (`from`)
/// only the pod knows.
fn check_method(spec: &TrainingJobSpec) -> Result<(), Invalid> {
    if spec.device != Device::Cpu {
        return Ok(());
    }
    if spec.method.adapter_type == AdapterType::DoRA {
        return Err(Invalid::NeedsGpu {
            field: "spec.method.type",
            what: "DoRA".to_owned(),
            instead: "use LoRA",
        });
    }
    let mut targets = spec.method.target_modules.iter();
    match targets.find(|name| BESIDE_LAYERS.contains(&name.as_str())) {
        Some(name) => Err(Invalid::NeedsGpu {
            field: "spec.method.targetModules",
            what: name.clone(),
            instead: "leave it out",
        }),
        None => Ok(()),
    }
}

fn check_texts(spec: &TrainingJobSpec) -> Result<(), Invalid> {
    if let Some(text) = &spec.resources.storage
        && spec
            .resources
            .storage_bytes()
            .is_none_or(|bytes| bytes < MIN_CAPACITY_BYTES)
    {
        return Err(Invalid::Storage(text.clone()));
    }
    for (name, text) in &spec.data.template_variables {
        if serde_json::from_str::<serde_json::Value>(text).is_err() {
            return Err(Invalid::TemplateVariable(name.clone()));
        }
    }
    for schema in spec.gates.iter().filter_map(|gate| gate.schema.as_ref()) {
        if let Err(error) = serde_json::from_str::<serde_json::Value>(schema) {
            return Err(Invalid::Schema(error.to_string()));
        }
    }
    Ok(())
}

/// The Model's repository at the commit that the job, or else the Model, names.
fn model_source(
    namespace: &str,
    model: &Model,
    reference: Option<&SourceRef>,
) -> Result<SourceKey, Invalid> {
    let own = &model.spec.source;
    let source = Source {
        reference: reference.or(own.reference.as_ref()).cloned(),
        ..own.clone()
    };
    SourceKey::of(namespace, "a Model", &source).map_err(Invalid::Model)
}

fn dataset(namespace: &str, spec: &TrainingJobSpec) -> Result<DatasetPlan, Invalid> {
    let Dataset {
        url,
        reference,
        secret_ref,
        config_map,
        persistent_volume_claim,
        path: _,
    } = &spec.dataset;
    match (url, config_map, persistent_volume_claim) {
        (Some(url), None, None) => {
            let source = Source {
                url: url.clone(),
                reference: reference.clone(),
                interval: INTERVAL.to_owned(),
                secret_ref: secret_ref.clone(),
                include: included(spec),
            };
            let key = SourceKey::of(namespace, "a TrainingJob", &source);
            key.map(DatasetPlan::Git).map_err(Invalid::Dataset)
        }
        (None, Some(map), None) => Ok(DatasetPlan::ConfigMap(map.name.clone())),
        (None, None, Some(claim)) => Ok(DatasetPlan::Claim(claim.claim_name.clone())),
        _ => Err(Invalid::DatasetPlace),
    }
}

/// Globs of the files that a job reads: each path, be it a file, a folder or a pattern.
fn included(spec: &TrainingJobSpec) -> Vec<String> {
    let gates = spec.gates.iter().filter_map(|gate| gate.path.as_ref());
    let paths = [Some(&spec.dataset.path), spec.eval.path.as_ref()];
    let mut globs = Vec::new();
    for path in paths.into_iter().flatten().chain(gates) {
        if path == "." {
            return Vec::new();
        }
        let glob = of_path(path);
        for glob in [format!("{glob}/**"), glob] {
            if !globs.contains(&glob) {
                globs.push(glob);
            }
        }
    }
    globs
}

/// As the trainer reads a path: `*` and `?` in the last of its names are those of a pattern, all else
/// is what it is.
fn of_path(path: &str) -> String {
    let (folder, name) = match path.rsplit_once('/') {
        Some((folder, name)) => (format!("{}/", literal(folder)), name),
        None => (String::new(), path),
    };
    let name: String = name
        .chars()
        .map(|c| match c {
            '*' | '?' => c.to_string(),
            c => literal(c.encode_utf8(&mut [0; 4])),
        })
        .collect();
    folder + &name
}
