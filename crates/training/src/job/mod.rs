//! What a job file says.

mod check;
mod gate;
#[cfg(test)]
mod tests;
mod usual;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use check::JobError;
pub use gate::{GateBaseline, GateMetric, GateSpec};

use crate::{layout::Targets, optimiser::AdamW, schedule::Decay};

/// A job: what is trained on what, and how. Every field is honoured, and one that is not known is
/// refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// Folder of the model, in Hugging Face's layout.
    pub model: PathBuf,
    /// What it learns from.
    pub data: DataSpec,
    /// Folder for checkpoints and the finished adapter; made where it is missing.
    pub output: PathBuf,
    /// How it learns.
    #[serde(default)]
    pub method: Method,
    /// Strength of the pull towards the reference, for `dpo` alone; 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// The adapter's form.
    #[serde(default)]
    pub adapter: AdapterSpec,
    /// How long and how fast.
    #[serde(default)]
    pub training: TrainingSpec,
    /// What it is judged by while it learns; none unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSpec>,
    /// What is kept of it while it learns.
    #[serde(default)]
    pub checkpoints: CheckpointSpec,
    /// What the finished adapter must show; nothing unless asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateSpec>,
    /// What the order of samples, the first values and dropout follow from; 0.
    #[serde(default)]
    pub seed: u64,
}

/// How an adapter learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// To write what the data writes.
    #[default]
    Sft,
    /// To prefer one answer to another (<https://arxiv.org/abs/2305.18290>).
    Dpo,
}

/// Where samples come from, and what of them counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataSpec {
    /// A file (`.jsonl`, `.jsonl.gz`, `.parquet`), a folder of such, or a pattern of their names
    /// (`data/train-*`). Of a folder or pattern, files that eval or gates name are left out.
    pub path: PathBuf,
    /// Which tokens count; those of the assistant's turns.
    #[serde(default)]
    pub loss: Loss,
    /// Most tokens of a sample, whose rest is cut away; 1024.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Whether a row of a batch is filled with samples up to `maxLength`, instead of being one; no.
    /// Samples never see each other in either case, and nothing is ever padded.
    #[serde(default)]
    pub packing: bool,
    /// Part of the records that may be bad, and of the samples whose answer may lie wholly beyond
    /// `maxLength`; 0.01. The job fails when there are more.
    #[serde(default = "max_bad")]
    pub max_bad: f64,
    /// The day that a chat template which writes the date writes, as in `2026-11-29`. Such a template
    /// needs it: a job that is resumed on another day must read the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub template_variables: serde_json::Map<String, serde_json::Value>,
}

/// Which tokens of a sample count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Loss {
    /// Those of all turns of the assistant, or of the completion.
    #[default]
    Assistant,
    /// Those of the last turn of the assistant, or of the completion.
    Completion,
    /// All.
    All,
}

/// The form of the adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdapterSpec {
    /// An adapter to go on from: a folder of PEFT's, or its file of tensors. It has rank, alpha and
    /// targets already, which cannot be set beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Rows of each A; 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// What `B A` is multiplied by, times the rank; 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Part of the input of each A that falls out in a step; 0.
    pub dropout: f32,
    /// Which maps are changed; `all-linear`, which is all but embedding and head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// Whether alpha is divided by the root of the rank instead of the rank; no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rs_lora: Option<bool>,
    /// Whether the lengths of rows are trained too (<https://arxiv.org/abs/2402.09353>); no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dora: Option<bool>,
}

/// How long and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrainingSpec {
    /// How often every sample is seen; 3. Not beside `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Updates in all, through as many epochs as that takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Rows of one update: samples, or with `packing` rows of `maxLength` tokens; 16. For `dpo`
    /// pairs.
    pub batch: usize,
    /// Most tokens that are computed at once; a larger batch is computed in parts, whose gradients
    /// are added up: results differ by the order of sums, so that a job goes on with the number that
    /// it began with. 2048, or `maxLength` if that is more. Halved where memory does not suffice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// The highest learning rate; 2e-4, for `dpo` 1e-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Part of all steps in which it rises from 0; 0.03.
    pub warmup: f64,
    /// How it falls; `cosine`.
    pub decay: Decay,
    /// The optimiser's constants.
    pub optimiser: AdamW,
    /// Steps in a row whose loss or gradient may be no finite number; each is skipped. 3.
    pub max_bad_steps: u32,
}

impl Default for TrainingSpec {
    fn default() -> Self {
        Self {
            epochs: None,
            steps: None,
            batch: 16,
            micro_batch_tokens: None,
            learning_rate: None,
            warmup: 0.03,
            decay: Decay::default(),
            optimiser: AdamW::default(),
            max_bad_steps: 3,
        }
    }
}

/// What the adapter is judged by. One of `fraction`, `records` and `path` says on what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EvalSpec {
    /// Part of the records that is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Number of records that are held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<usize>,
    /// Data of its own, in one of the forms of the job's: a file, a folder or a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Steps between two evaluations; without it there is one at the end of every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Evaluations in a row without a better loss after which the job ends; never unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// What a better loss is better by; 0.
    pub min_gain: f64,
    /// Whether the adapter of the best evaluation is the result, instead of the last; no.
    pub keep_best: bool,
}

/// What is kept while the adapter learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// Steps between two checkpoints; 100.
    pub every: u64,
    /// Checkpoints that are kept; 3.
    pub keep: usize,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self {
            every: 100,
            keep: 3,
        }
    }
}

impl Job {
    /// The job in the file at `path`, YAML or JSON, checked as far as it can be without the model
    /// and the data. Its paths are relative to the working directory.
    ///
    /// # Errors
    /// [`JobError`], with the field and what to do about it.
    pub fn read(path: &Path) -> Result<Self, JobError> {
        let text = fs::read_to_string(path).map_err(|source: io::Error| JobError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// The job that `text` describes, YAML or JSON, checked.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self, JobError> {
        // JSON is YAML, but for the messages.
        let job: Self = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| JobError::Form(error.to_string()))?
        } else {
            serde_yaml::from_str(text).map_err(|error| JobError::Form(error.to_string()))?
        };
        job.check()?;
        Ok(job)
    }

    /// The highest learning rate.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        let usual = match self.method {
            Method::Sft => usual::SFT_LEARNING_RATE,
            Method::Dpo => usual::DPO_LEARNING_RATE,
        };
        self.training.learning_rate.unwrap_or(usual)
    }

    /// Strength of the pull towards the reference.
    #[must_use]
    pub fn beta(&self) -> f64 {
        self.beta.unwrap_or(usual::DPO_BETA)
    }

    /// How often every sample is seen, where `steps` does not say when it ends.
    #[must_use]
    pub fn epochs(&self) -> u32 {
        self.training.epochs.unwrap_or(usual::EPOCHS)
    }

    /// Rows of each A of a new adapter.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.adapter.rank.unwrap_or(usual::RANK)
    }

    /// What `B A` of a new adapter is multiplied by, times the rank.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.adapter.alpha.unwrap_or(usual::ALPHA)
    }

    /// Most tokens that are computed at once.
    #[must_use]
    pub fn micro_batch_tokens(&self) -> usize {
        let usual = self.data.max_length.max(usual::MICRO_BATCH_TOKENS);
        self.training.micro_batch_tokens.unwrap_or(usual)
    }
}

fn max_length() -> usize {
    1024
}

fn max_bad() -> f64 {
    0.01
}
