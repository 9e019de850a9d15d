//! Runs of 200 steps that PEFT trained.

use hyprstream_training::{AdamW, Decay, Dropout, Learner, Moments, Schedule, clip, norm};
use serde::Deserialize;

use super::{LONG_TOLERANCE, Trained};
use crate::{data, read};

/// A case whose ten batches are trained over and over, with AdamW, clipping, a warm-up and half a
/// cosine, which is how jobs are trained.
#[derive(Debug)]
pub struct Long {
    case: Trained,
    optimiser: AdamW,
    schedule: Schedule,
    losses: Vec<f64>,
}

#[derive(Deserialize)]
struct Stored {
    learning_rate: f64,
    warmup: u64,
    weight_decay: f64,
    max_norm: f64,
    runs: Vec<StoredRun>,
}

#[derive(Deserialize)]
struct StoredRun {
    model: String,
    case: String,
    losses: Vec<f64>,
}

impl Long {
    /// All of them: `mistral/all-linear`, and `qwen3/dora`.
    pub fn read() -> Vec<Self> {
        let stored: Stored = read(&data().join("training/long.json"));
        let optimiser = AdamW {
            weight_decay: stored.weight_decay,
            clip: stored.max_norm,
            ..AdamW::default()
        };
        let runs = stored.runs.into_iter().map(|run| {
            let name = format!("{}/{}", run.model, run.case);
            let mut cases = Trained::read(&run.model).into_iter();
            Self {
                case: cases.find(|case| case.name() == name).unwrap(),
                optimiser,
                schedule: Schedule {
                    learning_rate: stored.learning_rate,
                    warmup: stored.warmup,
                    total: run.losses.len() as u64,
                    decay: Decay::Cosine,
                },
                losses: run.losses,
            }
        });
        runs.collect()
    }

    /// What is trained, and where it begins.
    pub fn case(&self) -> &Trained {
        &self.case
    }

    /// The losses of all steps are PEFT's, with the trainer's optimiser and schedule. Returns the
    /// largest relative difference.
    #[track_caller]
    pub fn check(&self, learner: &mut dyn Learner) -> f64 {
        let name = self.case.name();
        let mut values = self.case.values().to_vec();
        let mut moments = Moments::zeros(values.len());
        let mut most: f64 = 0.0;
        for (step, theirs) in self.losses.iter().enumerate() {
            let batch = self.case.batch(step % 10);
            let mut gradient = vec![0.0; values.len()];
            let scores = learner
                .accumulate(&batch, &values, Dropout::NONE, &mut gradient)
                .unwrap_or_else(|e| panic!("{name}: step {step}: {e}"));
            let tokens: u32 = scores.iter().map(|score| score.tokens).sum();
            let ours = scores.iter().map(|score| score.loss).sum::<f64>() / f64::from(tokens);
            let off = (ours / theirs - 1.0).abs();
            assert!(
                off < LONG_TOLERANCE,
                "{name}: step {step}: {ours} is not {theirs}"
            );
            most = most.max(off);
            let length = norm(&gradient);
            clip(&mut gradient, length, self.optimiser.clip);
            let rate = self.schedule.at(step as u64);
            let update = step as u64 + 1;
            self.optimiser
                .update(&mut values, &mut moments, &gradient, rate, update);
        }
        let (first, last) = (self.losses[0], self.losses[self.losses.len() - 1]);
        assert!(
            self.losses.len() == 200 && last < 0.8 * first,
            "{name}: {first} to {last} shows no training"
        );
        most
    }
}
