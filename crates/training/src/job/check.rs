//! What a job cannot be, as far as that is seen without the model and the data.

use std::{io, path::PathBuf};

use super::{AdapterSpec, EvalSpec, Job, Method};

/// A job that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Its file cannot be read.
    #[error("the job {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no job: no YAML or JSON, a field that is not known, or of another type.
    #[error("the job is not understood: {0}")]
    Form(String),
    /// A field has a value that it cannot have.
    #[error("{field}: {why}")]
    Field {
        /// Its name, with those that it lies in.
        field: &'static str,
        /// What is wrong, and what to do.
        why: String,
    },
}

impl JobError {
    /// A field that is wrong, and what to do.
    pub(crate) fn field(field: &'static str, why: impl Into<String>) -> Self {
        Self::Field {
            field,
            why: why.into(),
        }
    }
}

impl Job {
    /// Checks every field by itself and against the others.
    ///
    /// # Errors
    /// [`JobError::Field`], the first that is wrong.
    pub fn check(&self) -> Result<(), JobError> {
        let training = &self.training;
        let data = &self.data;
        at_least("data.maxLength", data.max_length, 2)?;
        part("data.maxBad", data.max_bad, true)?;
        if self.beta.is_some() && self.method == Method::Sft {
            return Err(JobError::field("beta", "only method dpo has it: remove it"));
        }
        positive("beta", self.beta())?;
        self.adapter.check(self.method)?;
        if training.epochs.is_some() && training.steps.is_some() {
            let why = "it cannot stand beside training.steps: keep one of them";
            return Err(JobError::field("training.epochs", why));
        }
        at_least("training.epochs", training.epochs.unwrap_or(1) as usize, 1)?;
        at_least("training.steps", training.steps.unwrap_or(1) as usize, 1)?;
        at_least("training.batch", training.batch, 1)?;
        let tokens = training.micro_batch_tokens.unwrap_or(1);
        at_least("training.microBatchTokens", tokens, 1)?;
        positive("training.learningRate", self.learning_rate())?;
        part("training.warmup", training.warmup, true)?;
        let optimiser = &training.optimiser;
        part("training.optimiser.beta1", optimiser.beta1, false)?;
        part("training.optimiser.beta2", optimiser.beta2, false)?;
        positive("training.optimiser.epsilon", optimiser.epsilon)?;
        not_negative("training.optimiser.weightDecay", optimiser.weight_decay)?;
        not_negative("training.optimiser.clip", optimiser.clip)?;
        at_least("training.maxBadSteps", training.max_bad_steps as usize, 1)?;
        at_least("checkpoints.every", self.checkpoints.every as usize, 1)?;
        at_least("checkpoints.keep", self.checkpoints.keep, 1)?;
        self.eval.as_ref().map_or(Ok(()), EvalSpec::check)?;
        let holds_back = self.eval.is_some();
        self.gates
            .iter()
            .try_for_each(|gate| gate.check(holds_back))
    }
}

impl AdapterSpec {
    fn check(&self, method: Method) -> Result<(), JobError> {
        if self.from.is_some() {
            for (field, is_set) in [
                ("adapter.rank", self.rank.is_some()),
                ("adapter.alpha", self.alpha.is_some()),
                ("adapter.targets", self.targets.is_some()),
                ("adapter.rsLora", self.rs_lora.is_some()),
                ("adapter.dora", self.dora.is_some()),
            ] {
                if is_set {
                    let why = "the adapter of adapter.from has it already: remove one of the two";
                    return Err(JobError::field(field, why));
                }
            }
        }
        at_least("adapter.rank", self.rank.unwrap_or(1), 1)?;
        let alpha = self.alpha.unwrap_or(1.0);
        if !alpha.is_finite() || alpha == 0.0 {
            let why =
                format!("with {alpha} nothing could be learnt: set it to the rank or twice that");
            return Err(JobError::field("adapter.alpha", why));
        }
        part("adapter.dropout", f64::from(self.dropout), false)?;
        if method == Method::Dpo && self.dropout > 0.0 {
            let why = "method dpo compares two answers under the same numbers: set it to 0";
            return Err(JobError::field("adapter.dropout", why));
        }
        Ok(())
    }
}

impl EvalSpec {
    fn check(&self) -> Result<(), JobError> {
        let ways = [
            self.fraction.is_some(),
            self.records.is_some(),
            self.path.is_some(),
        ];
        if ways.into_iter().filter(|is_set| *is_set).count() != 1 {
            let why = "set exactly one of fraction, records and path";
            return Err(JobError::field("eval", why));
        }
        if let Some(fraction) = self.fraction {
            positive("eval.fraction", fraction)?;
            part("eval.fraction", fraction, false)?;
        }
        at_least("eval.records", self.records.unwrap_or(1), 1)?;
        at_least("eval.every", self.every.unwrap_or(1) as usize, 1)?;
        at_least("eval.patience", self.patience.unwrap_or(1) as usize, 1)?;
        not_negative("eval.minGain", self.min_gain)
    }
}

fn at_least(field: &'static str, value: usize, least: usize) -> Result<(), JobError> {
    if value < least {
        let why = format!("{value} is too little: set it to {least} or more");
        return Err(JobError::field(field, why));
    }
    Ok(())
}

fn positive(field: &'static str, value: f64) -> Result<(), JobError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    let why = format!("{value} cannot be: set it to a number above 0");
    Err(JobError::field(field, why))
}

fn not_negative(field: &'static str, value: f64) -> Result<(), JobError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let why = format!("{value} cannot be: set it to 0 or more");
    Err(JobError::field(field, why))
}

/// A part of 1: from 0 on, below 1 or up to it.
fn part(field: &'static str, value: f64, with_one: bool) -> Result<(), JobError> {
    let fits = value >= 0.0 && if with_one { value <= 1.0 } else { value < 1.0 };
    if fits {
        return Ok(());
    }
    let to = if with_one { "to 1" } else { "to below 1" };
    let why = format!("{value} is no part of a whole: set it to a number from 0 {to}");
    Err(JobError::field(field, why))
}
