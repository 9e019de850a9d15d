use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{LocalSecretRef, SourceRef};

/// Where records lie: in a git repository, a ConfigMap or a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.url) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0) == 1").message("exactly one of url, configMap and persistentVolumeClaim must be set"),
    validation = Rule::new("has(self.url) || (!has(self.ref) && !has(self.secretRef))").message("ref and secretRef need url"),
    validation = Rule::new("!(has(self.secretRef) && has(self.url) && self.url.startsWith('hyprstream://'))").message("secretRef must not be set with hyprstream://: the registry of this cluster needs no credentials"),
)]
pub struct Dataset {
    /// A git repository, as in a Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^(https?|ssh)://[^\\s/]+/\\S+$') || self.matches('^hyprstream://[a-z0-9]([-a-z0-9]*[a-z0-9])?/[A-Za-z0-9_][A-Za-z0-9._-]*$') || self.matches('^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\\s]+$')").message("url must be https://HOST/PATH, http://HOST/PATH, ssh://HOST/PATH, USER@HOST:PATH or hyprstream://NAMESPACE/NAME"),
        validation = Rule::new(r"!self.matches('^https?://[^/]*@')").message("url must not carry credentials: put them into a Secret and name it in secretRef"),
    )]
    pub url: Option<String>,
    /// Which commit of url. Without it, the head of the default branch. Looked up once, when the job
    /// begins.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<SourceRef>,
    /// A Secret with credentials for url, as in a Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalSecretRef>,
    /// A ConfigMap of the namespace, whose keys are files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
    /// A claim of the namespace, which is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// The file of records (.jsonl, .jsonl.gz, .parquet), a folder of such, or a pattern of their names
    /// (data/train-*); "." is the root. Of a folder or pattern, files that eval or gates name are left
    /// out, and a folder whose files are called train-, test- or the like is refused.
    #[schemars(length(min = 1, max = 900))]
    #[x_kube(
        validation = Rule::new(r"self == '.' || self.split('/').all(p, p != '' && p != '.' && p != '..')").message("path must be a path below the root, without '.' and '..'"),
        validation = Rule::new(r"!self.contains('\\\\') && !self.contains('\n')").message("path must not hold a backslash or a line break"),
    )]
    pub path: String,
}

/// A ConfigMap of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapSource {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A PersistentVolumeClaim of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// How records become samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingData {
    /// Which tokens count: those of all turns of the assistant (Assistant), of the last one
    /// (Completion), or All.
    #[serde(default)]
    pub loss_on: LossOn,
    /// Most tokens of a sample; what is longer is cut.
    #[serde(default = "max_length")]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub max_length: i32,
    /// Fills rows of maxLength tokens with samples, so that a batch is batchSize full rows. Samples
    /// never see each other.
    #[serde(default)]
    pub packing: bool,
    /// Part of the records that may be bad, and of the samples whose answer may lie wholly beyond
    /// maxLength, before the job fails; a decimal number from 0 to 1.
    #[serde(default = "max_bad")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^(0(\\.[0-9]{1,9})?|1(\\.0{1,9})?)$')").message("maxBadRecords must be a decimal number from 0 to 1, such as \"0.01\""))]
    pub max_bad_records: String,
    /// Variables of the chat template, as JSON values: enable_thinking: "false".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub template_variables: BTreeMap<String, String>,
}

impl Default for TrainingData {
    fn default() -> Self {
        Self {
            loss_on: LossOn::default(),
            max_length: max_length(),
            packing: false,
            max_bad_records: max_bad(),
            template_variables: BTreeMap::new(),
        }
    }
}

/// Which tokens of a sample count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LossOn {
    /// Those of all turns of the assistant.
    #[default]
    Assistant,
    /// Those of the last turn of the assistant, or of the completion.
    Completion,
    /// All.
    All,
}

/// What the adapter is judged by while it learns: records that are held back, or a file of the
/// dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.fraction) ? 1 : 0) + (has(self.records) ? 1 : 0) + (has(self.path) ? 1 : 0) <= 1").message("at most one of fraction, records and path may be set"),
    validation = Rule::new("has(self.fraction) || has(self.records) || has(self.path) || (!has(self.everySteps) && !has(self.patience) && !self.keepBest)").message("everySteps, patience and keepBest need one of fraction, records and path"),
)]
pub struct TrainingEval {
    /// Part of the records that is held back, a decimal number between 0 and 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^0\\.[0-9]{0,8}[1-9][0-9]{0,8}$')").message("fraction must be a decimal number between 0 and 1, such as \"0.05\""))]
    pub fraction: Option<String>,
    /// Number of records that are held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub records: Option<i32>,
    /// A file, folder or pattern of the dataset's repository, ConfigMap or claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 900))]
    #[x_kube(
        validation = Rule::new(r"self.split('/').all(p, p != '' && p != '.' && p != '..')").message("path must be a path below the root, without '.' and '..'"),
        validation = Rule::new(r"!self.contains('\\\\') && !self.contains('\n')").message("path must not hold a backslash or a line break"),
    )]
    pub path: Option<String>,
    /// Steps between two evaluations; without it there is one at the end of every epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub every_steps: Option<i64>,
    /// Evaluations in a row without a better loss after which the job ends; without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub patience: Option<i32>,
    /// Whether the adapter of the best evaluation is the result, instead of the last.
    #[serde(default)]
    pub keep_best: bool,
}

fn max_length() -> i32 {
    1024
}

fn max_bad() -> String {
    "0.01".to_owned()
}
