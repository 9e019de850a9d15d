//! All that a run is at one moment.

use serde::{Deserialize, Serialize};

use super::{Recipe, TrainError};
use crate::{optimiser::Moments, samples::Subset};

/// All that a run is between two steps: what a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The adapter's numbers.
    pub values: Vec<f32>,
    /// The optimiser's.
    pub moments: Moments,
    /// The numbers of the best evaluation, where they are to be the result.
    pub best_values: Option<Vec<f32>>,
    /// Where the run is.
    pub cursor: Cursor,
}

/// Where a run is. The order of samples follows from it, and nothing else does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cursor {
    /// Digest of the recipe.
    pub recipe: String,
    /// Digest of what is learnt from.
    pub data: String,
    /// What else it begins with. `None` before the first step, and in checkpoints that are older than
    /// this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Inputs>,
    /// [`Learner::name`](crate::Learner::name) of what computed its steps. `None` before the first,
    /// and in checkpoints that are older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<String>,
    /// The epoch, from 0.
    pub epoch: u32,
    /// Rows of the epoch that are done.
    pub offset: u64,
    /// Steps that are done, skipped ones too.
    pub step: u64,
    /// Updates of the optimiser that are done.
    pub updates: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Of those, the last ones without another between them.
    pub bad_in_a_row: u32,
    /// Tokens that were read.
    pub tokens: u64,
    /// Most tokens that are computed at once: it may have been halved.
    pub micro_batch_tokens: usize,
    /// Whether the evaluation that is due after the last step is still to do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unjudged: bool,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Evaluations since.
    pub without_gain: u32,
}

/// What a run begins with beside its recipe and what it learns from, by digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inputs {
    /// The model's weights and configuration.
    pub model: String,
    /// The adapter that it goes on from, which is the reference of `dpo` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// Its loss.
    #[serde(with = "exact")]
    pub loss: f64,
}

impl State {
    /// A run of this recipe on these samples that has not begun, with the first values of its
    /// adapter.
    #[must_use]
    pub fn fresh(recipe: &Recipe, train: &Subset, values: Vec<f32>) -> Self {
        Self {
            moments: Moments::zeros(values.len()),
            values,
            best_values: None,
            cursor: Cursor {
                recipe: recipe.digest(),
                data: train.digest(),
                inputs: None,
                learner: None,
                epoch: 0,
                offset: 0,
                step: 0,
                updates: 0,
                skipped: 0,
                bad_in_a_row: 0,
                tokens: 0,
                micro_batch_tokens: recipe.micro_batch_tokens,
                unjudged: false,
                best: None,
                without_gain: 0,
            },
        }
    }

    /// A copy in the memory of `spare`, where that is another state of the run.
    pub(crate) fn copy_into(&self, spare: Option<Self>) -> Self {
        // Invariant: without `..`, so that nothing of another step is left.
        let Self {
            values,
            moments: Moments { first, second },
            best_values,
            cursor,
        } = self;
        let Some(mut copy) = spare else {
            return self.clone();
        };
        // Vectors keep their memory, which a derived `clone_from` would not have them do.
        copy.values.clone_from(values);
        copy.moments.first.clone_from(first);
        copy.moments.second.clone_from(second);
        copy.best_values.clone_from(best_values);
        copy.cursor.clone_from(cursor);
        copy
    }

    /// Whether it is of a run of this recipe on these samples and with these inputs, which this learner
    /// computed. What an old one does not say is not compared.
    pub(super) fn check(
        &self,
        recipe: &Recipe,
        train: &Subset,
        inputs: &Inputs,
        learner: &str,
    ) -> Result<(), TrainError> {
        if let Some(found) = &self.cursor.inputs {
            found.check(inputs)?;
        }
        if !recipe.has(&self.cursor.recipe) {
            return Err(TrainError::OtherRecipe);
        }
        let expected = train.digest();
        if self.cursor.data != expected {
            return Err(TrainError::OtherData {
                found: self.cursor.data.clone(),
                expected,
            });
        }
        if let Some(found) = self
            .cursor
            .learner
            .as_ref()
            .filter(|found| *found != learner)
        {
            return Err(TrainError::OtherLearner {
                found: found.clone(),
                expected: learner.to_owned(),
            });
        }
        Ok(())
    }
}

impl Inputs {
    /// Whether these, of a checkpoint, are what there is.
    fn check(&self, expected: &Self) -> Result<(), TrainError> {
        if self.model != expected.model {
            return Err(TrainError::OtherModel {
                found: self.model.clone(),
                expected: expected.model.clone(),
            });
        }
        let named = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "none".to_owned());
        if self.from != expected.from {
            return Err(TrainError::OtherStart {
                found: named(&self.from),
                expected: named(&expected.from),
            });
        }
        if self.eval != expected.eval {
            return Err(TrainError::OtherEval {
                found: named(&self.eval),
                expected: named(&expected.eval),
            });
        }
        Ok(())
    }
}

/// Numbers as the shortest texts that name them: what reads JSON's numbers may round them otherwise.
mod exact {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "the form that serde calls"
    )]
    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
