use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The adapter's form, and how it learns. Numbers are decimal numbers in quotes, such as "0.1" or
/// "2e-4".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.epochs) && has(self.steps))").message("at most one of epochs and steps may be set"),
    validation = Rule::new("self.objective == 'DPO' || !has(self.beta)").message("beta needs objective DPO"),
    validation = Rule::new("self.objective != 'DPO' || !has(self.dropout) || double(self.dropout) == 0.0").message("dropout must be 0 with objective DPO, which compares two answers under the same numbers"),
    validation = Rule::new("!has(self.from) || (!has(self.rank) && !has(self.alpha) && size(self.targetModules) == 0 && !has(self.rsLora))").message("the adapter of from has rank, alpha, targetModules and rsLora already: remove them"),
)]
pub struct TrainingMethod {
    /// What is trained.
    #[serde(rename = "type", default)]
    pub adapter_type: AdapterType,
    /// SFT learns to write what the data writes, DPO to prefer one answer to another.
    #[serde(default)]
    pub objective: Objective,
    /// Rows of each A; 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub rank: Option<i32>,
    /// What B A is multiplied by, times the rank; 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{1,6}(\\.[0-9]{1,9})?$') && double(self) > 0.0").message("alpha must be a decimal number above 0, such as \"32\""))]
    pub alpha: Option<String>,
    /// Part of the input of each A that falls out in a step; 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^0(\\.[0-9]{1,9})?$')").message("dropout must be a decimal number from 0 to below 1, such as \"0.05\""))]
    pub dropout: Option<String>,
    /// Names of the maps that are changed, as q_proj. Without any, all but embedding and head.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub target_modules: Vec<String>,
    /// Whether alpha is divided by the root of the rank instead of the rank; no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rs_lora: Option<bool>,
    /// An adapter in the Model's commit to go on from: its file of tensors, or its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 900))]
    #[x_kube(
        validation = Rule::new(r"self.split('/').all(p, p != '' && p != '.' && p != '..')").message("from must be a path below the root of the repository, without '.' and '..'"),
        validation = Rule::new(r"!self.contains('\\\\') && !self.contains('\n')").message("from must not hold a backslash or a line break"),
    )]
    pub from: Option<String>,
    /// Strength of the pull towards the reference, with objective DPO; 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{1,6}(\\.[0-9]{1,9})?$') && double(self) > 0.0").message("beta must be a decimal number above 0, such as \"0.1\""))]
    pub beta: Option<String>,
    /// How often every sample is seen; 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub epochs: Option<i32>,
    /// Updates in all, through as many epochs as that takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub steps: Option<i64>,
    /// Samples of one update, or full rows with packing, or pairs with objective DPO.
    #[serde(default = "batch_size")]
    #[schemars(range(min = 1, max = 65536))]
    pub batch_size: i32,
    /// Most tokens that are computed at once; changes memory and speed, and results by no more than
    /// the order of sums. Without it 2048, or maxLength if that is more. Halved where memory does not
    /// suffice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub micro_batch_tokens: Option<i32>,
    /// The highest learning rate; 2e-4, with objective DPO 1e-5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{1,3}(\\.[0-9]{1,12})?([eE]-?[0-9]{1,2})?$') && double(self) > 0.0").message("learningRate must be a decimal number above 0, such as \"2e-4\""))]
    pub learning_rate: Option<String>,
    /// Part of all steps in which the learning rate rises from 0.
    #[serde(default = "warmup")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^(0(\\.[0-9]{1,9})?|1(\\.0{1,9})?)$')").message("warmupRatio must be a decimal number from 0 to 1, such as \"0.03\""))]
    pub warmup_ratio: String,
    /// How the learning rate falls.
    #[serde(default)]
    pub schedule: LearningRateSchedule,
    /// AdamW's decay of the adapter's values.
    #[serde(default = "zero")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{1,3}(\\.[0-9]{1,9})?$')").message("weightDecay must be a decimal number, such as \"0.01\""))]
    pub weight_decay: String,
    /// Length to which a longer gradient is cut; 0 for none.
    #[serde(default = "one")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(r"self.matches('^[0-9]{1,6}(\\.[0-9]{1,9})?$')").message("maxGradNorm must be a decimal number, such as \"1\""))]
    pub max_grad_norm: String,
    /// What the order of samples, the first values and dropout follow from.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: i64,
}

impl Default for TrainingMethod {
    fn default() -> Self {
        Self {
            adapter_type: AdapterType::default(),
            objective: Objective::default(),
            rank: None,
            alpha: None,
            dropout: None,
            target_modules: Vec::new(),
            rs_lora: None,
            from: None,
            beta: None,
            epochs: None,
            steps: None,
            batch_size: batch_size(),
            micro_batch_tokens: None,
            learning_rate: None,
            warmup_ratio: warmup(),
            schedule: LearningRateSchedule::default(),
            weight_decay: zero(),
            max_grad_norm: one(),
            seed: 0,
        }
    }
}

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdapterType {
    /// Low-rank adapters (<https://arxiv.org/abs/2106.09685>).
    #[default]
    LoRA,
    /// Low-rank adapters whose rows' lengths are trained too (<https://arxiv.org/abs/2402.09353>).
    DoRA,
}

/// What it learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Objective {
    /// To write what the data writes.
    #[default]
    #[serde(rename = "SFT")]
    Sft,
    /// To prefer one answer to another (<https://arxiv.org/abs/2305.18290>).
    #[serde(rename = "DPO")]
    Dpo,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LearningRateSchedule {
    /// Along half a cosine, to 0.
    #[default]
    Cosine,
    /// Along a line, to 0.
    Linear,
    /// It does not.
    Constant,
}

fn batch_size() -> i32 {
    16
}

fn warmup() -> String {
    "0.03".to_owned()
}

fn zero() -> String {
    "0".to_owned()
}

fn one() -> String {
    "1".to_owned()
}
