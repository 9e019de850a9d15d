//! The choice of one token.

use super::{
    SamplingParams,
    nucleus::{Candidate, keep_top_k, keep_top_p},
    penalties::Penalties,
    rng::CounterRng,
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
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(SampleError::NotANumber);
        }
        let wanted = logprobs.map(|count| (log_sum_exp(logits), top(logits, count)));
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

    fn choose(&self, logits: &[f32]) -> Result<u32, SampleError> {
        let (likeliest, max) = argmax(logits).ok_or(SampleError::NothingPossible)?;
        let params = &self.params;
        if params.temperature == 0.0 || params.top_k == 1 || max == f32::INFINITY {
            return Ok(likeliest);
        }
        let inverse = 1.0 / params.temperature;
        // A logit below this is dropped by min_p: weight = exp((logit - max) / T) < min_p.
        let least = if params.min_p > 0.0 {
            max + params.temperature * params.min_p.ln()
        } else {
            f32::MIN
        };
        let mut candidates: Vec<Candidate> = logits
            .iter()
            .zip(0..)
            .filter(|(logit, _)| **logit >= least)
            .map(|(&logit, token)| Candidate {
                token,
                weight: logit,
            })
            .collect();
        // The order of logits is the order of weights, so the cheap cut comes before the
        // exponentials.
        keep_top_k(&mut candidates, params.top_k);
        for candidate in &mut candidates {
            candidate.weight = ((candidate.weight - max) * inverse).exp();
        }
        keep_top_p(&mut candidates, params.top_p);
        Ok(draw(&candidates, self.rng.uniform(self.chosen)).unwrap_or(likeliest))
    }
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

/// The lowest index of the largest value above minus infinity.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (&logit, token) in logits.iter().zip(0..) {
        if logit > max {
            (best, max) = (Some(token), logit);
        }
    }
    best.map(|token| (token, max))
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return max;
    }
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - max).exp()))
        .sum();
    max + sum.ln() as f32
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
