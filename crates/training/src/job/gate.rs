//! What the finished adapter must show.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::JobError;

/// A bound on one figure of the finished adapter. With a baseline it is one on the difference: max 0
/// for the loss is not worse than the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GateSpec {
    /// What is measured.
    pub metric: GateMetric,
    /// Most that it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Least that it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// What the bounds are measured from; nothing.
    #[serde(default)]
    pub baseline: GateBaseline,
    /// Data in one of the forms of the job's, or a text for the perplexity; without it, what eval
    /// holds back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Most records that are looked at, those at the beginning; 200.
    #[serde(default = "records")]
    pub max_records: u32,
    /// Most tokens of an answer; 256.
    #[serde(default = "tokens")]
    pub max_tokens: u32,
    /// A JSON schema that answers must have, for `jsonSchema`; without it they need only be JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<serde_json::Value>,
}

/// What a gate measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GateMetric {
    /// Mean loss of the tokens that count.
    EvalLoss,
    /// e to the mean loss of all tokens of a text.
    Perplexity,
    /// Part of greedy answers that are what the record says.
    ExactMatch,
    /// Part of greedy answers that end by themselves.
    StopRate,
    /// Part of greedy answers that are JSON and have the schema.
    JsonSchema,
}

/// What a bound is measured from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GateBaseline {
    /// From nothing.
    #[default]
    Value,
    /// From the model without the adapter.
    Base,
    /// From the adapter of the same name in the model's folder, or the model where there is none.
    LastKnownGood,
}

impl GateSpec {
    /// Checks it by itself, and whether it has data: its own, or what eval holds back.
    pub(super) fn check(&self, holds_back: bool) -> Result<(), JobError> {
        let wrong = |why: String| Err(JobError::field("gates", why));
        let metric = serde_json::to_string(&self.metric).unwrap_or_default();
        let finite = |bound: Option<f64>| bound.is_none_or(f64::is_finite);
        if self.max.is_none() && self.min.is_none() {
            return wrong(format!("{metric} has no bound: set max, min or both"));
        }
        if !finite(self.max) || !finite(self.min) {
            return wrong(format!("a bound of {metric} is no finite number: set one"));
        }
        if self.schema.is_some() && self.metric != GateMetric::JsonSchema {
            return wrong(format!(
                "{metric} has a schema, which only jsonSchema looks at: remove it"
            ));
        }
        if self.path.is_none() && !holds_back {
            return wrong(format!(
                "{metric} has nothing to look at: set its path, or eval"
            ));
        }
        if self.max_records == 0 || self.max_tokens == 0 {
            return wrong(format!(
                "{metric} looks at nothing: set maxRecords and maxTokens to 1 or more"
            ));
        }
        Ok(())
    }
}

fn records() -> u32 {
    200
}

fn tokens() -> u32 {
    256
}
