use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A bound on one figure of the finished adapter. With baseline Base or LastKnownGood it is a bound
/// on the difference: max "0" for EvalLoss is not worse than the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.max) || has(self.min)").message("set max, min or both"),
    validation = Rule::new("self.metric == 'JsonSchema' || !has(self.schema)").message("schema needs metric JsonSchema"),
    validation = Rule::new("self.metric != 'Perplexity' || has(self.path)").message("metric Perplexity needs path: a text, or a file of records {\"text\": ...}"),
)]
pub struct Gate {
    /// What is measured.
    pub metric: GateMetric,
    /// Most that it may be, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(r"self.matches('^-?[0-9]{1,9}(\\.[0-9]{1,9})?$')").message("max must be a decimal number, such as \"1.2\""))]
    pub max: Option<String>,
    /// Least that it may be, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(r"self.matches('^-?[0-9]{1,9}(\\.[0-9]{1,9})?$')").message("min must be a decimal number, such as \"0.9\""))]
    pub min: Option<String>,
    /// What max and min are measured from: nothing (Value), the model without the adapter (Base), or
    /// the adapter that answered by the same name when the job began (LastKnownGood): with
    /// onSuccess CreateAdapter that of the Adapter of the name, else that of the name in the Model's
    /// commit, the model itself where there is none.
    #[serde(default)]
    pub baseline: Baseline,
    /// A file, folder or pattern of the dataset's repository, ConfigMap or claim. Without it, what eval
    /// holds back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 900))]
    #[x_kube(
        validation = Rule::new(r"self.split('/').all(p, p != '' && p != '.' && p != '..')").message("path must be a path below the root, without '.' and '..'"),
        validation = Rule::new(r"!self.contains('\\\\') && !self.contains('\n')").message("path must not hold a backslash or a line break"),
    )]
    pub path: Option<String>,
    /// Most records that are looked at; those at the beginning.
    #[serde(default = "records")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_records: i32,
    /// Most tokens of an answer, where answers are generated.
    #[serde(default = "tokens")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_tokens: i32,
    /// A JSON schema that answers must have, with metric JsonSchema; without it they need only be
    /// JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub schema: Option<String>,
}

/// What a gate measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateMetric {
    /// Mean loss of the tokens that count.
    EvalLoss,
    /// e to the mean loss of all tokens of a text.
    Perplexity,
    /// Part of the answers, chosen greedily, that are what the record says, white space at both ends
    /// left out.
    ExactMatch,
    /// Part of the answers, chosen greedily, that end by themselves within maxTokens.
    StopRate,
    /// Part of the answers, chosen greedily, that are JSON and have the schema.
    JsonSchema,
}

/// What a bound is measured from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Baseline {
    /// From nothing.
    #[default]
    Value,
    /// From the model without the adapter.
    Base,
    /// From the adapter that this one would replace.
    LastKnownGood,
}

fn records() -> i32 {
    200
}

fn tokens() -> i32 {
    256
}
