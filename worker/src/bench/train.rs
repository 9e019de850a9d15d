//! Measures training: whole updates of an adapter on all linear layers.

use std::time::Instant;

use anyhow::Context;
use hyprstream_models::{DType, DecoderConfig};
use hyprstream_training::{
    AdamW, Batch, Dropout, Learner, Lora, Moments, Segment, Targets, clip, first_values, norm,
    parameters,
};

use super::{
    BenchArgs, checkpoints, median,
    report::{TrainReport, TrainRow, max_rss_bytes},
};
use crate::train::learner::{LearnerChoice, Loaded};

/// Updates that pay for memory which is touched for the first time.
const UNCOUNTED: usize = 2;
/// Large enough to change something, small enough not to leave numbers behind.
const LEARNING_RATE: f64 = 2e-4;

/// Measures updates of every number of rows of up to `tokens` tokens.
pub(super) fn measure(tokens: usize, args: &BenchArgs) -> anyhow::Result<TrainReport> {
    let model = &args.model;
    let choice = LearnerChoice::new(
        model.device.parse().context("--device")?,
        [model.dtype.parse().context("--dtype")?, DType::Auto],
        model.kernels,
        model.threads,
    )?;
    let (config, _) = DecoderConfig::read(&model.model)?;
    let lora = Lora {
        rank: args.rank,
        alpha: 2.0 * args.rank as f64,
        rank_stabilized: false,
        dora: false,
        targets: Targets::AllLinear,
    };
    let layout = parameters(&config, &lora)?;
    let values = first_values(&layout, args.seed, |_| Vec::new());
    let Loaded {
        learner,
        weight_bytes,
    } = choice.load(&model.model, layout)?;
    let mut run = Run {
        moments: Moments::zeros(values.len()),
        gradient: vec![0.0; values.len()],
        random: fastrand::Rng::with_seed(args.seed),
        vocabulary: u32::try_from(config.vocab_size)?,
        update: 0,
        values,
        learner,
    };
    let mut results = Vec::new();
    for &rows in &args.batch {
        results.push(run.row(rows, tokens, args)?);
    }
    Ok(TrainReport {
        model: model.model.display().to_string(),
        dtype: model.dtype.clone(),
        kernels: format!("{:?}", model.kernels).to_lowercase(),
        threads: model.threads,
        rank: args.rank,
        parameters: run.values.len(),
        weight_bytes,
        computed_by: run.learner.name(),
        results,
        max_rss_bytes: max_rss_bytes(),
        checkpoints: {
            let vocabulary = run.vocabulary;
            // The job has the machine to itself.
            drop(run);
            let folder = args.checkpoints.as_ref();
            let measured =
                folder.map(|folder| checkpoints::measure(folder, tokens, vocabulary, args));
            measured.transpose()?
        },
    })
}

struct Run {
    learner: Box<dyn Learner>,
    values: Vec<f32>,
    moments: Moments,
    gradient: Vec<f32>,
    random: fastrand::Rng,
    vocabulary: u32,
    update: u64,
}

impl Run {
    fn row(&mut self, rows: usize, tokens: usize, args: &BenchArgs) -> anyhow::Result<TrainRow> {
        let (mut paces, mut losses, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..args.repeat + UNCOUNTED {
            let of_rows: Vec<usize> = (0..rows)
                .map(|_| {
                    if args.ragged {
                        chat_length(&mut self.random, tokens)
                    } else {
                        tokens
                    }
                })
                .collect();
            let batch = self.batch(&of_rows);
            let begin = Instant::now();
            let loss = self.step(&batch)?;
            let seconds = begin.elapsed().as_secs_f64();
            losses.push(loss);
            if args.ragged {
                lengths.push(of_rows);
            }
            if round >= UNCOUNTED {
                paces.push(batch.tokens() as f64 / seconds);
            }
        }
        Ok(TrainRow {
            rows,
            row_tokens: tokens,
            tokens_per_second: median(paces).context("--repeat is at least 1")?,
            losses,
            lengths,
        })
    }

    fn batch(&mut self, lengths: &[usize]) -> Batch {
        let counted: usize = lengths.iter().map(|length| length - 1).sum();
        let weight = 1.0 / counted as f32;
        let segments = lengths.iter().enumerate().map(|(index, &length)| {
            let vocabulary = self.vocabulary;
            Segment {
                sample: self.update * lengths.len() as u64 + index as u64,
                tokens: (0..length).map(|_| self.random.u32(..vocabulary)).collect(),
                trained: (0..length).map(|at| at > 0).collect(),
                weight,
            }
        });
        Batch {
            segments: segments.collect(),
        }
    }

    /// One update; its mean loss.
    fn step(&mut self, batch: &Batch) -> anyhow::Result<f64> {
        self.update += 1;
        self.gradient.fill(0.0);
        let scores =
            self.learner
                .accumulate(batch, &self.values, Dropout::NONE, &mut self.gradient)?;
        let length = norm(&self.gradient);
        clip(&mut self.gradient, length, 1.0);
        AdamW::default().update(
            &mut self.values,
            &mut self.moments,
            &self.gradient,
            LEARNING_RATE,
            self.update,
        );
        let loss: f64 = scores.iter().map(|score| score.loss).sum();
        let counted: u32 = scores.iter().map(|score| score.tokens).sum();
        Ok(loss / f64::from(counted))
    }
}

/// A length from 2 to `most`, log-normal with a third of `most` as its median and sigma 1.
fn chat_length(random: &mut fastrand::Rng, most: usize) -> usize {
    // Box and Muller.
    let (radius, turn) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos();
    let length = most as f64 / 3.0 * normal.exp();
    (length as usize).clamp(2, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_chats_have_their_median_at_a_third() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut lengths: Vec<usize> = (0..4001).map(|_| chat_length(&mut random, 900)).collect();
        lengths.sort_unstable();
        assert!((280..320).contains(&lengths[2000]), "{}", lengths[2000]);
        assert!(lengths[0] >= 2 && lengths[4000] == 900);
    }
}
