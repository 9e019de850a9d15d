use std::collections::BTreeMap;

use hyprstream_api::{Baseline, Gate, GateMetric, TrainingLastKnownGood};
use hyprstream_contract::{
    CommitId,
    training::{self, LastKnownGood, Origin, TrainingPod},
};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::adapter::build::Files;

use super::{DatasetPlan, Inputs, Plan, config_name, job_file, metadata, trust_name};

/// The files that tell a pod what to do.
pub(super) fn config(plan: &Plan, inputs: &Inputs<'_>) -> ConfigMap {
    let text = |value: serde_json::Result<serde_json::Value>| {
        // What is made of text and numbers has a JSON form.
        value.map_or_else(|_| String::new(), |value| format!("{value:#}"))
    };
    let files = BTreeMap::from([
        (
            training::JOB_FILE.to_owned(),
            text(Ok(job_file::job_file(plan))),
        ),
        (
            training::POD_FILE.to_owned(),
            text(serde_json::to_value(pod_file(plan, inputs))),
        ),
    ]);
    ConfigMap {
        metadata: metadata(plan, &config_name(plan)),
        data: Some(files),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The authorities by which a pod trusts the registry. They change while it runs.
pub(super) fn trust(plan: &Plan, bundle: &str) -> ConfigMap {
    let file = training::CA_FILE.rsplit('/').next().unwrap_or_default();
    ConfigMap {
        metadata: metadata(plan, &trust_name(plan)),
        data: Some(BTreeMap::from([(file.to_owned(), bundle.to_owned())])),
        ..ConfigMap::default()
    }
}

fn pod_file(plan: &Plan, inputs: &Inputs<'_>) -> TrainingPod {
    let Plan {
        namespace, name, ..
    } = plan;
    let dataset = match &plan.dataset {
        DatasetPlan::Git(source) => {
            let commit = inputs.dataset.map(|mirrored| mirrored.commit.clone());
            origin(&source.url, commit)
        }
        DatasetPlan::ConfigMap(map) => origin(&format!("configmap://{namespace}/{map}"), None),
        DatasetPlan::Claim(claim) => origin(&format!("pvc://{namespace}/{claim}"), None),
    };
    TrainingPod {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: plan.uid.clone(),
        registry: inputs.registry.trim_end_matches('/').to_owned(),
        registry_ca_file: inputs.bundle.map(|_| training::CA_FILE.to_owned()),
        repository: plan.full_repository(),
        model: origin(&plan.model.url, Some(inputs.model.commit.clone())),
        dataset,
        adapter: plan.adapter.clone(),
        keep: plan.spec.checkpoint.keep.unsigned_abs(),
        tag: plan.spec.checkpoint.tag,
        gates: plan.spec.gates.iter().map(gate).collect(),
        merge_into: plan.spec.output.into.clone(),
        last_known_good: plan.last_known_good.as_ref().and_then(last_known_good),
    }
}

fn last_known_good(good: &TrainingLastKnownGood) -> Option<LastKnownGood> {
    let Files { weights, config } = Files::of(&good.path);
    Some(LastKnownGood {
        repository: good.repository.clone(),
        // It came out of the status of an Adapter, or was checked by its schema.
        commit: good.commit.parse().ok()?,
        weights,
        config,
    })
}

fn origin(url: &str, commit: Option<CommitId>) -> Origin {
    Origin {
        url: url.to_owned(),
        commit,
    }
}

fn gate(gate: &Gate) -> training::Gate {
    // What the schema of the kind let in is a number.
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
    training::Gate {
        metric: match gate.metric {
            GateMetric::EvalLoss => training::Metric::EvalLoss,
            GateMetric::Perplexity => training::Metric::Perplexity,
            GateMetric::ExactMatch => training::Metric::ExactMatch,
            GateMetric::StopRate => training::Metric::StopRate,
            GateMetric::JsonSchema => training::Metric::JsonSchema,
        },
        max: number(&gate.max),
        min: number(&gate.min),
        baseline: match gate.baseline {
            Baseline::Value => training::Baseline::Value,
            Baseline::Base => training::Baseline::Base,
            Baseline::LastKnownGood => training::Baseline::LastKnownGood,
        },
        path: gate.path.as_deref().map(job_file::in_dataset),
        max_records: gate.max_records.unsigned_abs(),
        max_tokens: gate.max_tokens.unsigned_abs(),
        schema: gate
            .schema
            .as_deref()
            .and_then(|schema| serde_json::from_str(schema).ok()),
    }
}
