//! What there should be for a job: pure, and never fails.

mod account;
mod config;
mod job_file;
mod pod;

use std::collections::BTreeMap;

use hyprstream_contract::{label, training, volume::MIN_CAPACITY_BYTES, worker_key};
use k8s_openapi::{
    ByteString,
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{ConfigMap, Secret},
    },
};
use kube::api::ObjectMeta;

pub use account::Account;
pub(super) use pod::TRUST;

use super::{
    kueue,
    validate::{DatasetPlan, Plan},
};
use crate::{
    source::Mirrored,
    volume::{self, BoundVolume, Content},
};

/// Everything that is made for a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// As whom it pushes; `None` where the spec names an account.
    pub account: Option<Account>,
    /// What its server asks for.
    pub key: Secret,
    /// What it does.
    pub config: ConfigMap,
    /// By what it trusts the registry, where that speaks TLS.
    pub trust: Option<ConfigMap>,
    /// The Model's commit, written to.
    pub workspace: BoundVolume,
    /// The dataset, where it lies in git.
    pub dataset: Option<BoundVolume>,
    /// Its pods, one at a time.
    pub batch: Job,
}

/// What was found of a job's inputs.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The Model's commit.
    pub model: &'a Mirrored,
    /// The dataset's, where it lies in git.
    pub dataset: Option<&'a Mirrored>,
    /// Where pods reach the registry.
    pub registry: &'a str,
    /// By what they trust it (PEM), where it speaks TLS.
    pub bundle: Option<&'a str>,
}

/// What there should be. `None` while a dataset in git is not there.
pub fn desired(plan: &Plan, inputs: &Inputs<'_>) -> Option<Desired> {
    let workspace = Content::of(&plan.model, inputs.model).written(capacity(plan, inputs));
    let dataset = match &plan.dataset {
        DatasetPlan::Git(source) => Some(Content::of(source, inputs.dataset?)),
        DatasetPlan::ConfigMap(_) | DatasetPlan::Claim(_) => None,
    };
    let bound = |content: &Content| {
        let owner = plan.owner();
        let claim = volume::claim_name(&owner, content);
        let new = volume::new_volume(&owner, content, &claim);
        BoundVolume {
            volume: volume::persistent_volume(&owner, labels(plan), &new),
            claim: volume::persistent_volume_claim(&owner, labels(plan), &new),
        }
    };
    let workspace = bound(&workspace);
    let dataset = dataset.as_ref().map(bound);
    let mounts = pod::Mounts {
        workspace: claim_of(&workspace),
        dataset: dataset.as_ref().map(claim_of),
        has_trust: inputs.bundle.is_some(),
    };
    Some(Desired {
        account: plan
            .spec
            .service_account_name
            .is_none()
            .then(|| Account::of(plan)),
        key: key(plan),
        config: config::config(plan, inputs),
        trust: inputs.bundle.map(|bundle| config::trust(plan, bundle)),
        batch: batch(plan, &mounts),
        workspace,
        dataset,
    })
}

fn claim_of(bound: &BoundVolume) -> &str {
    bound.claim.metadata.name.as_deref().unwrap_or_default()
}

/// The Job. Only `suspend` of it changes.
fn batch(plan: &Plan, mounts: &pod::Mounts<'_>) -> Job {
    let spec = &plan.spec;
    let mut metadata = metadata(plan, &plan.name);
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(plan.kueue.clone());
    // One that Kueue starts begins stopped.
    let is_queued = plan.kueue.contains_key(kueue::QUEUE);
    let suspend = spec.suspend || is_queued;
    if spec.suspend && !is_queued {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(kueue::SUSPENDED_BY.to_owned(), plan.uid.clone());
    }
    Job {
        metadata,
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            backoff_limit: Some(spec.backoff_limit),
            active_deadline_seconds: spec.active_deadline_seconds,
            suspend: Some(suspend),
            // Never two that write one branch.
            pod_replacement_policy: Some("Failed".to_owned()),
            pod_failure_policy: Some(failure_policy()),
            template: pod::template(plan, mounts),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// What the cluster does to a pod is not the job's, and what is wrong for good is not tried again.
/// The first rule that fits counts.
fn failure_policy() -> PodFailurePolicy {
    use training::exit::{KILLED, NOT_STARTED, REFUSED, SUSPENDED, UNAVAILABLE};
    let disruption = PodFailurePolicyRule {
        action: "Ignore".to_owned(),
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".to_owned(),
            status: Some("True".to_owned()),
        }]),
        ..PodFailurePolicyRule::default()
    };
    PodFailurePolicy {
        rules: vec![
            disruption,
            rule("Ignore", vec![UNAVAILABLE, SUSPENDED, NOT_STARTED, KILLED]),
            rule("FailJob", vec![REFUSED]),
        ],
    }
}

fn rule(action: &str, codes: Vec<u8>) -> PodFailurePolicyRule {
    PodFailurePolicyRule {
        action: action.to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(training::CONTAINER.to_owned()),
            operator: "In".to_owned(),
            values: codes.into_iter().map(i32::from).collect(),
        }),
        ..PodFailurePolicyRule::default()
    }
}

fn key(plan: &Plan) -> Secret {
    let content = ByteString(plan.key.secret().as_bytes().to_vec());
    Secret {
        metadata: metadata(plan, &key_name(plan)),
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(worker_key::FILE.to_owned(), content)])),
        ..Secret::default()
    }
}

fn key_name(plan: &Plan) -> String {
    format!("{}-training-key", plan.name)
}

fn config_name(plan: &Plan) -> String {
    format!("{}-training", plan.name)
}

fn trust_name(plan: &Plan) -> String {
    format!("{}-training-trust", plan.name)
}

/// Name of the account as which the pod pushes: the job's own, since the registry gives an account
/// that may train in a repository the branch of its own name.
pub fn account_name(plan: &Plan) -> String {
    let named = plan.spec.service_account_name.as_ref();
    named.unwrap_or(&plan.name).clone()
}

/// Disk of a pod: as the spec says, or room for the checkpoints that are kept, two more that are
/// being written and pushed, and prepared data.
///
/// An adapter of rank r on all linear maps has about `r / 256` of the model's bytes in f32 for the
/// shapes that are served, and a checkpoint has three numbers of each (the value and AdamW's two
/// means); a commit has it once more, in the store. Data is prepared into 4 bytes a token, which is
/// about what a text takes itself, and up to twice that of languages with more tokens; what lies in no
/// repository has no size that is known.
fn capacity(plan: &Plan, inputs: &Inputs<'_>) -> u64 {
    const LEAST: u64 = 128 << 20;
    const DATA: u64 = 128 << 20;
    if let Some(bytes) = plan.spec.resources.storage_bytes() {
        return bytes.max(MIN_CAPACITY_BYTES);
    }
    let rank = u64::from(job_file::rank(&plan.spec.method));
    let checkpoint = inputs.model.size_bytes / 256 * rank * 3;
    let dataset = inputs.dataset.map_or(0, |dataset| dataset.size_bytes);
    let data = DATA.saturating_add(dataset.saturating_mul(2));
    let kept = u64::from(plan.spec.checkpoint.keep.unsigned_abs()) + 2;
    LEAST.max(checkpoint.saturating_mul(2 * kept).saturating_add(data))
}

/// Labels on everything that is made for a job.
pub fn labels(plan: &Plan) -> BTreeMap<String, String> {
    [
        (label::MANAGED_BY, label::MANAGER),
        ("app.kubernetes.io/name", "hyprstream-trainer"),
        ("app.kubernetes.io/component", "trainer"),
        ("app.kubernetes.io/instance", &plan.name),
        (training::LABEL, &plan.name),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

fn metadata(plan: &Plan, name: &str) -> ObjectMeta {
    plan.owner().metadata(name, labels(plan))
}

#[cfg(test)]
pub(in crate::training) mod tests;
