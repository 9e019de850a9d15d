//! The gates of a job file as a cluster has them.

use hyprstream_contract::training::{Baseline, Gate, Metric};
use hyprstream_training::{GateBaseline, GateMetric, GateSpec, Job};

/// The gates of this job.
pub(crate) fn gates_of(job: &Job) -> Vec<Gate> {
    job.gates.iter().map(gate).collect()
}

fn gate(spec: &GateSpec) -> Gate {
    Gate {
        metric: match spec.metric {
            GateMetric::EvalLoss => Metric::EvalLoss,
            GateMetric::Perplexity => Metric::Perplexity,
            GateMetric::ExactMatch => Metric::ExactMatch,
            GateMetric::StopRate => Metric::StopRate,
            GateMetric::JsonSchema => Metric::JsonSchema,
        },
        max: spec.max,
        min: spec.min,
        baseline: match spec.baseline {
            GateBaseline::Value => Baseline::Value,
            GateBaseline::Base => Baseline::Base,
            GateBaseline::LastKnownGood => Baseline::LastKnownGood,
        },
        path: spec.path.as_ref().map(|path| path.display().to_string()),
        max_records: spec.max_records,
        max_tokens: spec.max_tokens,
        schema: spec.schema.clone(),
    }
}
