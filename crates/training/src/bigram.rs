//! For tests: a model small enough that its gradient is written by hand.
//!
//! The logits after token `x` are column `x` of `W + s B A`, with a frozen `W` of `[vocab, vocab]` and
//! an adapter on the head.

use hyprstream_models::{
    Activation, DecoderConfig, WeightNames,
    adapter::{BaseName, Site},
};

use crate::{
    Batch, Checkpoints, Control, Dropout, LearnError, Learner, Lora, Parameters, PartValues,
    Policy, Score, Targets,
    random::{Purpose, Sequence},
};

pub(crate) const VOCAB: usize = 12;
pub(crate) const RANK: usize = 3;

/// The model. Fails where it is told to.
pub(crate) struct Bigram {
    weight: Vec<f32>,
    parameters: Parameters,
    /// More tokens at once do not fit.
    pub(crate) room: usize,
    /// Calls of `accumulate` after which the loss is no number.
    pub(crate) bad: Vec<u64>,
    pub(crate) calls: u64,
    pub(crate) name: &'static str,
    /// Calls of `score`.
    pub(crate) scored: u64,
    /// The call of `score` during which somebody wishes an end.
    pub(crate) ends: Option<(u64, Control)>,
}

pub(crate) fn config() -> DecoderConfig {
    DecoderConfig {
        architecture: "Bigram".to_owned(),
        vocab_size: VOCAB,
        hidden_size: VOCAB,
        intermediate_size: 1,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 2,
        max_positions: 64,
        norm_eps: 0.0,
        norm_plus_one: false,
        sandwich_norms: false,
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        attention_scale: 1.0,
        attention_softcap: None,
        logit_softcap: None,
        tied_head: false,
        layers: Vec::new(),
        ropes: Vec::new(),
        names: WeightNames::Separate,
    }
}

pub(crate) fn lora() -> Lora {
    Lora {
        rank: RANK,
        alpha: 6.0,
        rank_stabilized: false,
        dora: false,
        targets: Targets::Named(vec!["lm_head".to_owned()]),
    }
}

pub(crate) fn checkpoints(folder: &std::path::Path, keep: usize) -> Checkpoints {
    let parameters = crate::parameters(&config(), &lora()).unwrap();
    Checkpoints::open(folder, keep, config(), parameters, BaseName::default()).unwrap()
}

impl Bigram {
    pub(crate) fn new() -> Self {
        let numbers = Sequence::new(11, Purpose::Initial, 77);
        Self {
            weight: numbers.normal(VOCAB * VOCAB).collect(),
            parameters: crate::parameters(&config(), &lora()).unwrap(),
            room: usize::MAX,
            bad: Vec::new(),
            calls: 0,
            name: "bigram float32",
            scored: 0,
            ends: None,
        }
    }

    pub(crate) fn first_values(&self, seed: u64) -> Vec<f32> {
        crate::first_values(&self.parameters, seed, |_| unreachable!())
    }

    fn fits(&self, batch: &Batch) -> Result<(), LearnError> {
        if batch.tokens() > self.room {
            return Err(LearnError::OutOfMemory {
                tokens: batch.tokens(),
                message: "made up".to_owned(),
            });
        }
        Ok(())
    }

    /// Log-probabilities of what follows `token`, with `kept` of its one input.
    fn after(&self, token: usize, kept: f32, of: Option<PartValues<'_>>) -> Vec<f64> {
        let scaling = self.parameters.parts[0].scaling * kept;
        let logits: Vec<f64> = (0..VOCAB)
            .map(|row| {
                let mut logit = self.weight[row * VOCAB + token];
                if let Some(of) = of {
                    for r in 0..RANK {
                        logit += scaling * of.b[row * RANK + r] * of.a[r * VOCAB + token];
                    }
                }
                f64::from(logit)
            })
            .collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        logits.iter().map(|l| l - most - sum.ln()).collect()
    }

    /// What is left of the input at a position.
    fn kept(dropout: Dropout, sample: u64, position: usize, token: usize) -> f32 {
        if dropout.probability == 0.0 {
            return 1.0;
        }
        let draws = dropout.draw(sample, Site::Head, position as u32, token as u32 / 4);
        if draws[token % 4] < dropout.probability {
            0.0
        } else {
            1.0 / (1.0 - dropout.probability)
        }
    }
}

fn tally(score: &mut Score, logs: &[f64], target: usize) {
    score.loss -= logs[target];
    score.tokens += 1;
    let best = (0..VOCAB).max_by(|a, b| logs[*a].total_cmp(&logs[*b]));
    score.correct += u32::from(best == Some(target));
}

impl Learner for Bigram {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn accumulate(
        &mut self,
        batch: &Batch,
        values: &[f32],
        dropout: Dropout,
        gradient: &mut [f32],
    ) -> Result<Vec<Score>, LearnError> {
        self.fits(batch)?;
        self.calls += 1;
        let part = self.parameters.parts[0].clone();
        let of = part.of(values);
        let mut scores = Vec::new();
        for segment in &batch.segments {
            let mut score = Score::default();
            for at in 1..segment.tokens.len() {
                if !segment.trained[at] {
                    continue;
                }
                let token = segment.tokens[at - 1] as usize;
                let target = segment.tokens[at] as usize;
                let kept = Self::kept(dropout, segment.sample, at - 1, token);
                let logs = self.after(token, kept, Some(of));
                tally(&mut score, &logs, target);
                for row in 0..VOCAB {
                    let hit = if row == target { 1.0 } else { 0.0 };
                    let slope =
                        (logs[row].exp() - hit) as f32 * segment.weight * part.scaling * kept;
                    for r in 0..RANK {
                        gradient[part.b.start + row * RANK + r] += slope * of.a[r * VOCAB + token];
                        gradient[part.a.start + r * VOCAB + token] += slope * of.b[row * RANK + r];
                    }
                }
            }
            if self.bad.contains(&self.calls) {
                score.loss = f64::NAN;
            }
            scores.push(score);
        }
        Ok(scores)
    }

    fn score(&mut self, batch: &Batch, policy: Policy<'_>) -> Result<Vec<Score>, LearnError> {
        self.fits(batch)?;
        self.scored += 1;
        if let Some((_, control)) = self.ends.as_ref().filter(|ends| ends.0 == self.scored) {
            control.suspend();
        }
        let part = self.parameters.parts[0].clone();
        let of = match policy {
            Policy::Base => None,
            Policy::Adapter(values) => Some(part.of(values)),
        };
        let score = |segment: &crate::Segment| {
            let mut score = Score::default();
            for at in 1..segment.tokens.len() {
                if segment.trained[at] {
                    let logs = self.after(segment.tokens[at - 1] as usize, 1.0, of);
                    tally(&mut score, &logs, segment.tokens[at] as usize);
                }
            }
            score
        };
        Ok(batch.segments.iter().map(score).collect())
    }
}
