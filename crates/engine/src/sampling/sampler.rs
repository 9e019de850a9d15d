//! The choice of one token.

use super::{
    SamplingParams,
    nucleus::{Candidate, keep_top_k, keep_top_p},
    penalties::Penalties,
    rng::CounterRng,
    vector,
};

/// Chooses the tokens of one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    penalties: Penalties,
    rng: CounterRng,
    /// Tokens chosen so far; the position of the next random number.
    chosen: u64,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sampled {
    pub(crate) token: u32,
    /// Natural logarithm of the probability that the model gave it, before penalties and
    /// temperature; with it the likeliest tokens, likeliest first.
    pub(crate) logprobs: Option<Logprobs>,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logprobs {
    pub(crate) chosen: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// The logits leave nothing to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SampleError {
    /// A model's computation went wrong, often for weights that do not suit its type.
    #[error("the model computed a logit that is not a number")]
    NotANumber,
    /// Every token is forbidden or impossible.
    #[error("no token is possible")]
    NothingPossible,
}

impl Sampler {
    pub(crate) fn new(params: SamplingParams, prompt: &[u32]) -> Self {
        let penalties = Penalties::new(&params, prompt);
        let rng = CounterRng::new(params.seed);
        Self {
            params,
            penalties,
            rng,
            chosen: 0,
        }
    }

    /// Chooses from `logits`, which it overwrites. `banned` tokens are not chosen. With
    /// `logprobs` it tells log-probabilities, with so many alternatives.
    pub(crate) fn sample(
        &mut self,
        logits: &mut [f32],
        banned: &[u32],
        logprobs: Option<usize>,
    ) -> Result<Sampled, SampleError> {
        if vector::has_nan(logits) {
            return Err(SampleError::NotANumber);
        }
        let wanted = logprobs.map(|count| {
            let max = vector::argmax(logits).map_or(f32::NEG_INFINITY, |(_, max)| max);
            (vector::log_sum_exp(logits, max), top(logits, count))
        });
        // The chosen token's own logit is overwritten below, so a copy is kept for its telling.
        let raw = wanted.is_some().then(|| logits.to_vec());
        self.penalties.apply(logits);
        for &token in banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token = self.choose(logits)?;
        self.chosen += 1;
        self.penalties.count(token);
        let logprobs = wanted.zip(raw).map(|((norm, top), raw)| Logprobs {
            chosen: raw[token as usize] - norm,
            top: top
                .into_iter()
                .map(|(id, logit)| (id, logit - norm))
                .collect(),
        });
        Ok(Sampled { token, logprobs })
    }

    fn choose(&self, logits: &mut [f32]) -> Result<u32, SampleError> {
        let (likeliest, max) = vector::argmax(logits).ok_or(SampleError::NothingPossible)?;
        let params = &self.params;
        if params.temperature == 0.0 || params.top_k == 1 || max == f32::INFINITY {
            return Ok(likeliest);
        }
        let scale = 1.0 / params.temperature;
        let at = self.rng.uniform(self.chosen);
        let mut candidates = if params.top_k > 0 {
            // The order of logits is the order of weights, so the cut comes before the
            // exponentials.
            let mut kept = likeliest_of(logits, params.top_k);
            for candidate in &mut kept {
                candidate.weight = vector::exp((candidate.weight - max) * scale);
            }
            kept.retain(|candidate| candidate.weight >= params.min_p);
            kept
        } else {
            let total = vector::exp_all(logits, max, scale);
            if params.min_p == 0.0 && params.top_p >= 1.0 {
                return Ok(draw_from_row(logits, total, at).unwrap_or(likeliest));
            }
            // What is below this cannot be in the nucleus (see `keep_top_p`), unless min_p
            // leaves less to take it from.
            let share = total * f64::from(1.0 - params.top_p) / logits.len() as f64;
            let least = if params.min_p > 0.0 {
                params.min_p
            } else {
                share as f32
            };
            above(logits, least)
        };
        if params.top_p < 1.0 {
            keep_top_p(&mut candidates, params.top_p);
        }
        Ok(draw(&candidates, at).unwrap_or(likeliest))
    }
}

/// The tokens of weight `least` or more, and of some weight.
fn above(weights: &[f32], least: f32) -> Vec<Candidate> {
    weights
        .iter()
        .zip(0..)
        .filter(|(weight, _)| **weight >= least && **weight > 0.0)
        .map(|(&weight, token)| Candidate { token, weight })
        .collect()
}

/// The `k` largest logits above minus infinity, as candidates of that weight.
fn likeliest_of(logits: &[f32], k: usize) -> Vec<Candidate> {
    /// Up to here a sorted list that most logits do not get into is the faster way.
    const SMALL: usize = 128;
    let candidate = |(&weight, token)| Candidate { token, weight };
    let mut kept: Vec<Candidate> = if k <= SMALL {
        let top = top(logits, k).into_iter();
        top.map(|(token, weight)| Candidate { token, weight })
            .collect()
    } else {
        let mut all = logits.iter().zip(0..).map(candidate).collect();
        keep_top_k(&mut all, k);
        all
    };
    kept.retain(|candidate| candidate.weight > f32::NEG_INFINITY);
    kept
}

/// The token at the share `at` of `total`, the sum of all weights.
fn draw_from_row(weights: &[f32], total: f64, at: f64) -> Option<u32> {
    const CHUNK: usize = 1024;
    let mut left = at * total;
    let mut last = None;
    for (start, chunk) in weights.chunks(CHUNK).enumerate() {
        let sum = vector::sum(chunk);
        if sum <= left {
            left -= sum;
            continue;
        }
        for (offset, &weight) in chunk
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0.0)
        {
            left -= f64::from(weight);
            last = Some((start * CHUNK + offset) as u32);
            if left < 0.0 {
                return last;
            }
        }
    }
    last
}

/// The candidate at the share `at` of the whole weight.
fn draw(candidates: &[Candidate], at: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut left = at * total;
    let mut last = None;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        left -= f64::from(candidate.weight);
        last = Some(candidate.token);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// The `count` largest values with their indices, largest first.
fn top(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (&logit, token) in logits.iter().zip(0..) {
        if best.len() == count && best.last().is_none_or(|last| logit <= last.1) {
            continue;
        }
        let at = best.partition_point(|other| other.1 >= logit);
        best.insert(at, (token, logit));
        best.truncate(count);
    }
    best
}
