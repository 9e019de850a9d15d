//! An adapter that PEFT trains.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hyprstream_training::{Batch, Dropout, Learner, Parameters, Policy, Score, Segment};
use serde::Deserialize;
use serde_json::Value;

use super::{AdamW, GRADIENT_TOLERANCE, LOSS_TOLERANCE, laid_out, worst_gradient};
use crate::{Adapters, adapters::extract, data, read};

/// A random adapter of a tiny model, its gradient, and the losses of ten steps from it.
#[derive(Debug)]
pub struct Trained {
    name: String,
    dir: PathBuf,
    parameters: Parameters,
    values: Vec<f32>,
    gradient: Vec<f32>,
    description: Description,
}

#[derive(Debug, Deserialize)]
struct Description {
    config: Value,
    batches: Vec<Vec<StoredSegment>>,
    scores: Vec<StoredScore>,
    learning_rate: f64,
    max_norm: f64,
    losses: Vec<f64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StoredSegment {
    tokens: Vec<u32>,
    trained: Vec<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StoredScore {
    loss: f64,
    tokens: u32,
    correct: u32,
}

impl StoredSegment {
    pub(super) fn to_segment(&self, sample: u64, weight: f32) -> Segment {
        Segment {
            sample,
            tokens: self.tokens.clone(),
            trained: self.trained.clone(),
            weight,
        }
    }
}

impl StoredScore {
    /// Whether a score is this one.
    #[track_caller]
    pub(super) fn check(&self, ours: &Score, what: &str) {
        let off = (ours.loss / self.loss - 1.0).abs();
        assert!(off < LOSS_TOLERANCE, "{what}: {ours:?} is not {self:?}");
        assert_eq!(
            (ours.tokens, ours.correct),
            (self.tokens, self.correct),
            "{what}"
        );
    }
}

impl Trained {
    /// All cases of the tiny model of this name.
    pub fn read(model: &str) -> Vec<Self> {
        let folder = data().join("training");
        let file = fs::read(folder.join(format!("{model}.safetensors"))).unwrap();
        let cases: BTreeMap<String, Description> = read(&folder.join(format!("{model}.json")));
        let adapters = Adapters::read(model);
        let cases = cases.into_iter().map(|(case, description)| {
            let (parameters, values, gradient) =
                tensors(&adapters, &file, &format!("{case}/"), &description.config);
            Self {
                name: format!("{model}/{case}"),
                dir: data().join(model),
                parameters,
                values,
                gradient,
                description,
            }
        });
        cases.collect()
    }

    /// `MODEL/CASE`; `training.py` says what each shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's folder. It is trained in f32, whatever its files have.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the adapter's numbers lie.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The numbers of the adapter before it is trained. None is 0, those of B neither.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Derivatives of the loss of the first batch.
    pub fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    /// The batch of a step, of ten: two segments of 31 and 18 tokens, weighted by one over the
    /// number of trained tokens.
    pub fn batch(&self, step: usize) -> Batch {
        let stored = &self.description.batches[step];
        let trained = stored.iter().flat_map(|segment| &segment.trained);
        let weight = 1.0 / trained.filter(|trained| **trained).count() as f32;
        let segments = stored.iter().zip(0..);
        Batch {
            segments: segments
                .map(|(stored, sample)| stored.to_segment(sample, weight))
                .collect(),
        }
    }

    /// The loss of each step's batch, before the step: cross-entropy by trained tokens.
    pub fn losses(&self) -> &[f64] {
        &self.description.losses
    }

    /// All of the checks.
    #[track_caller]
    pub fn check(&self, learner: &mut dyn Learner) {
        self.check_gradient(learner);
        self.check_packing(learner);
        self.check_losses(learner);
    }

    /// Scores and gradients of the first batch are PEFT's, and the same the second time.
    #[track_caller]
    pub fn check_gradient(&self, learner: &mut dyn Learner) {
        let name = &self.name;
        assert_eq!(learner.parameters(), &self.parameters, "{name}");
        let batch = self.batch(0);
        let (scores, ours) = self.accumulate(learner, &batch);
        let worst = worst_gradient(&self.parameters, &ours, &self.gradient);
        assert!(worst.error < GRADIENT_TOLERANCE, "{name}: {worst:?}");
        assert_eq!(scores.len(), batch.segments.len(), "{name}");
        for (ours, theirs) in scores.iter().zip(&self.description.scores) {
            theirs.check(ours, name);
        }
        let policy = Policy::Adapter(&self.values);
        let scored = learner.score(&batch, policy).unwrap();
        for (ours, theirs) in scored.iter().zip(&self.description.scores) {
            theirs.check(ours, name);
        }
        let (_, again) = self.accumulate(learner, &batch);
        assert_eq!(again, ours, "{name}: the same bits again");
        // It adds to what is there.
        let mut twice = ours.clone();
        let none = Dropout::NONE;
        learner
            .accumulate(&batch, &self.values, none, &mut twice)
            .unwrap();
        let doubled: Vec<f32> = ours.iter().map(|x| 2.0 * x).collect();
        let worst = worst_gradient(&self.parameters, &twice, &doubled);
        assert!(worst.error < GRADIENT_TOLERANCE, "{name}: {worst:?}");
    }

    /// Segments give alone what they give together.
    #[track_caller]
    pub fn check_packing(&self, learner: &mut dyn Learner) {
        let name = &self.name;
        let batch = self.batch(0);
        let (together, packed) = self.accumulate(learner, &batch);
        let mut alone = vec![0.0; self.parameters.len];
        for (segment, together) in batch.segments.iter().zip(&together) {
            let batch = Batch {
                segments: vec![segment.clone()],
            };
            let none = Dropout::NONE;
            let scores = learner.accumulate(&batch, &self.values, none, &mut alone);
            let score = scores.unwrap()[0];
            let off = (score.loss / together.loss - 1.0).abs();
            assert!(off < LOSS_TOLERANCE, "{name}: {score:?} {together:?}");
        }
        let worst = worst_gradient(&self.parameters, &packed, &alone);
        assert!(worst.error < GRADIENT_TOLERANCE, "{name}: {worst:?}");
    }

    /// The losses of ten steps are PEFT's.
    #[track_caller]
    pub fn check_losses(&self, learner: &mut dyn Learner) {
        let Description {
            learning_rate,
            max_norm,
            ..
        } = self.description;
        let mut values = self.values.clone();
        let mut optimiser = AdamW::new(values.len());
        for (step, theirs) in self.losses().iter().enumerate() {
            let batch = self.batch(step);
            let mut gradient = vec![0.0; values.len()];
            let scores = learner
                .accumulate(&batch, &values, Dropout::NONE, &mut gradient)
                .unwrap();
            let tokens: u32 = scores.iter().map(|score| score.tokens).sum();
            let ours = scores.iter().map(|score| score.loss).sum::<f64>() / f64::from(tokens);
            let off = (ours / theirs - 1.0).abs();
            assert!(
                off < LOSS_TOLERANCE,
                "{}: step {step}: {ours} is not {theirs}",
                self.name
            );
            optimiser.step(&mut values, &gradient, learning_rate, 0.0, Some(max_norm));
        }
    }

    #[track_caller]
    fn accumulate(&self, learner: &mut dyn Learner, batch: &Batch) -> (Vec<Score>, Vec<f32>) {
        let mut gradient = vec![0.0; self.parameters.len];
        let scores = learner
            .accumulate(batch, &self.values, Dropout::NONE, &mut gradient)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        (scores, gradient)
    }
}

/// Layout, numbers and gradient of an adapter in `file`, whose tensors' names begin with `prefix`.
pub(super) fn tensors(
    adapters: &Adapters,
    file: &[u8],
    prefix: &str,
    config: &Value,
) -> (Parameters, Vec<f32>, Vec<f32>) {
    let read = |what: &str| {
        let dir = tempfile::tempdir().unwrap();
        let files = extract(file, &format!("{prefix}{what}/"), config, dir.path());
        laid_out(&adapters.load(&files))
    };
    let (parameters, values) = read("values");
    // PEFT's file holds a gradient as well as what it is of.
    let (same, gradient) = read("gradient");
    assert_eq!(parameters, same, "{prefix}");
    (parameters, values, gradient)
}
