//! The choice of one token.

use super::{
    SamplingParams,
    nucleus::{Candidate, keep_top_k, keep_top_p, keep_typical, least_in_top_p, weight},
    penalties::{Changes, Penalties},
    rng::CounterRng,
    vector::{self, CHUNK},
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

/// Memory of a choice, used again for the next one, of whatever request.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    weights: Vec<f32>,
    sums: Vec<f64>,
    found: Vec<u32>,
    candidates: Vec<Candidate>,
    ranked: Vec<(f64, Candidate)>,
    changes: Changes,
}

/// What must not be chosen this time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules<'a> {
    /// These tokens.
    pub(crate) banned: &'a [u32],
    /// Tokens whose bit is not set, 32 in a word, lowest bit first.
    pub(crate) mask: Option<&'a [u32]>,
}

/// What is to be told about a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tell {
    /// The token.
    #[default]
    Token,
    /// Also log-probabilities, with so many alternatives.
    Logprobs(usize),
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

    /// Chooses from `logits`, which it overwrites.
    pub(crate) fn sample(
        &mut self,
        logits: &mut [f32],
        rules: Rules<'_>,
        tell: Tell,
        scratch: &mut Scratch,
    ) -> Result<Sampled, SampleError> {
        let mut scan = vector::scan(logits);
        if scan.has_nan {
            return Err(SampleError::NotANumber);
        }
        let norm_and_top = match tell {
            Tell::Token => None,
            Tell::Logprobs(count) => Some(norm_and_top(logits, scan.max, count)),
        };
        scratch.changes.clear();
        self.penalties.apply(logits, &mut scratch.changes);
        for &token in rules.banned {
            let never = |_| f32::NEG_INFINITY;
            scratch.changes.change(logits, token, never);
        }
        let mut restricted = self.penalties.restrict(logits);
        if let Some(mask) = rules.mask {
            apply_mask(logits, mask);
            restricted = true;
        }
        if restricted || !scratch.changes.is_empty() {
            scan = vector::scan(logits);
        }
        if scan.max == f32::NEG_INFINITY {
            return Err(SampleError::NothingPossible);
        }
        let token = self.choose(logits, scan, scratch);
        self.chosen += 1;
        self.penalties.count(token);
        // What was made impossible was not chosen, so the chosen logit is still there.
        let logprobs = norm_and_top.map(|(norm, top)| Logprobs {
            chosen: scratch.changes.first(logits, token) - norm,
            top,
        });
        Ok(Sampled { token, logprobs })
    }

    /// The token among `logits`, one of which is possible.
    fn choose(&self, logits: &[f32], scan: vector::Scan, scratch: &mut Scratch) -> u32 {
        let params = &self.params;
        if params.temperature == 0.0 || params.top_k == 1 || scan.max == f32::INFINITY {
            return scan.at;
        }
        let scale = 1.0 / params.temperature;
        let at = self.rng.uniform(self.chosen);
        let candidates = &mut scratch.candidates;
        candidates.clear();
        let mut total = None;
        if params.top_k > 0 {
            // The order of logits is the order of weights, so the cut comes before the
            // exponentials.
            likeliest_of(logits, params.top_k, candidates);
            for candidate in candidates.iter_mut() {
                candidate.weight = vector::exp((candidate.weight - scan.max) * scale);
            }
            candidates.retain(|candidate| candidate.weight >= params.min_p);
        } else {
            let (weights, sums) = (&mut scratch.weights, &mut scratch.sums);
            let sum = vector::exp_all(logits, scan.max, scale, weights, sums);
            if params.min_p == 0.0 && params.top_p >= 1.0 && params.typical_p >= 1.0 {
                return draw_from_row(weights, sums, sum, at).unwrap_or(scan.at);
            }
            let least = if params.min_p > 0.0 {
                params.min_p
            } else {
                total = Some(sum);
                least_in_top_p(params.top_p, sum, logits.len())
            };
            scratch.found.clear();
            vector::at_least(weights, least.max(f32::MIN_POSITIVE), &mut scratch.found);
            candidates.extend(scratch.found.iter().map(|&token| Candidate {
                token,
                weight: weights[token as usize],
            }));
        }
        if params.top_p < 1.0 {
            let total = total.unwrap_or_else(|| weight(candidates));
            keep_top_p(candidates, params.top_p, total);
        }
        if params.typical_p < 1.0 {
            keep_typical(candidates, params.typical_p, &mut scratch.ranked);
        }
        draw(candidates, at).unwrap_or(scan.at)
    }
}

/// The log-probability of `token` in a row of logits, and so many alternatives.
pub(crate) fn logprobs_of(
    logits: &[f32],
    token: u32,
    count: usize,
) -> Result<Logprobs, SampleError> {
    let scan = vector::scan(logits);
    if scan.has_nan {
        return Err(SampleError::NotANumber);
    }
    let (norm, top) = norm_and_top(logits, scan.max, count);
    let logit = logits.get(token as usize).copied();
    Ok(Logprobs {
        chosen: logit.unwrap_or(f32::NEG_INFINITY) - norm,
        top,
    })
}

/// What is to be subtracted from a logit for a log-probability, and the likeliest tokens.
fn norm_and_top(logits: &[f32], max: f32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let norm = vector::log_sum_exp(logits, max);
    let mut top = vector::largest_of(logits, count);
    for (_, logit) in &mut top {
        *logit -= norm;
    }
    (norm, top)
}

/// Makes the tokens impossible whose bit is not set.
fn apply_mask(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (part, word) in logits.chunks_mut(32).zip(words) {
        match word {
            0 => part.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in part.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The `k` largest logits above minus infinity, as candidates of that weight.
fn likeliest_of(logits: &[f32], k: usize, candidates: &mut Vec<Candidate>) {
    /// Up to here a sorted list that most logits do not get into is the faster way.
    const SMALL: usize = 256;
    if k <= SMALL {
        let top = vector::largest_of(logits, k).into_iter();
        candidates.extend(top.map(|(token, weight)| Candidate { token, weight }));
    } else {
        let candidate = |(&weight, token)| Candidate { token, weight };
        candidates.extend(logits.iter().zip(0..).map(candidate));
        keep_top_k(candidates, k);
    }
    candidates.retain(|candidate| candidate.weight > f32::NEG_INFINITY);
}

/// The token at the share `at` of `total`, the sum of all weights, whose parts are `sums`.
fn draw_from_row(weights: &[f32], sums: &[f64], total: f64, at: f64) -> Option<u32> {
    let mut left = at * total;
    let mut last = None;
    for (index, (chunk, sum)) in weights.chunks(CHUNK).zip(sums).enumerate() {
        if *sum <= left {
            left -= sum;
            continue;
        }
        let some = |(_, weight): &(usize, &f32)| **weight > 0.0;
        for (offset, &weight) in chunk.iter().enumerate().filter(some) {
            left -= f64::from(weight);
            last = Some((index * CHUNK + offset) as u32);
            if left < 0.0 {
                return last;
            }
        }
    }
    last
}

/// The candidate at the share `at` of the whole weight.
fn draw(candidates: &[Candidate], at: f64) -> Option<u32> {
    let mut left = at * weight(candidates);
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
