//! The choice of one token.

use std::convert::Infallible;

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

/// What a grammar allows at one position.
pub(crate) trait Allowed {
    /// Why nothing can be told.
    type Error;

    /// Whether `token` may come next. Takes a microsecond or so.
    fn allows(&mut self, token: u32) -> Result<bool, Self::Error>;

    /// The tokens that may come next, a bit each, 32 in a word, lowest bit first. May take
    /// milliseconds.
    fn mask(&mut self) -> Result<&[u32], Self::Error>;
}

/// Most tokens that a grammar is asked about one by one.
const MOST_TRIED: usize = 128;

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
pub(crate) enum SampleError<E = Infallible> {
    /// A model's computation went wrong, often for weights that do not suit its type.
    #[error("the model computed a logit that is not a number")]
    NotANumber,
    /// Every token is forbidden or impossible.
    #[error("no token is possible")]
    NothingPossible,
    /// The grammar's own.
    #[error("{0}")]
    Grammar(E),
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

    /// Chooses from `logits`, which it overwrites, none of `banned` and only what `grammar` allows.
    pub(crate) fn sample<A: Allowed>(
        &mut self,
        logits: &mut [f32],
        banned: &[u32],
        grammar: Option<&mut A>,
        tell: Tell,
        scratch: &mut Scratch,
    ) -> Result<Sampled, SampleError<A::Error>> {
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
        for &token in banned {
            let never = |_| f32::NEG_INFINITY;
            scratch.changes.change(logits, token, never);
        }
        if self.penalties.restrict(logits) || !scratch.changes.is_empty() {
            scan = vector::scan(logits);
        }
        if scan.max == f32::NEG_INFINITY {
            return Err(SampleError::NothingPossible);
        }
        let token = match grammar {
            None => self.choose(logits, scan, self.random(0), scratch),
            Some(grammar) => self.choose_allowed(logits, scan, grammar, scratch)?,
        };
        self.chosen += 1;
        self.penalties.count(token);
        // What was made impossible was not chosen, so the chosen logit is still there.
        let logprobs = norm_and_top.map(|(norm, top)| Logprobs {
            chosen: scratch.changes.first(logits, token) - norm,
            top,
        });
        Ok(Sampled { token, logprobs })
    }

    /// A random number for the next choice, or for another `attempt` at it.
    fn random(&self, attempt: u64) -> f64 {
        self.rng.uniform(self.chosen ^ attempt << 63)
    }

    /// The token among those of `logits` that `grammar` allows.
    ///
    /// All that it allows is often found slowly and whether it allows one token fast, and mostly
    /// the model keeps to it. So a token is drawn from all first. If it is refused, one is drawn
    /// from what is allowed, with another random number: which gives every allowed token the
    /// probability that it has among the allowed ones, `p + (1 - a) p / a = p / a` where `a` is
    /// their share. Where the cut of unlikely tokens depends on what is allowed, this works only if
    /// as many of the likeliest as are to be left are found one by one.
    fn choose_allowed<A: Allowed>(
        &self,
        logits: &mut [f32],
        scan: vector::Scan,
        grammar: &mut A,
        scratch: &mut Scratch,
    ) -> Result<u32, SampleError<A::Error>> {
        let params = &self.params;
        let mut attempt = 0;
        if self.takes_likeliest(scan) || params.cuts_nothing() {
            let token = self.choose(logits, scan, self.random(0), scratch);
            if grammar.allows(token).map_err(SampleError::Grammar)? {
                return Ok(token);
            }
            attempt = 1;
        } else if (1..=MOST_TRIED / 2).contains(&params.top_k) {
            let likeliest = vector::largest_of(logits, MOST_TRIED);
            scratch.candidates.clear();
            for (rank, (token, weight)) in likeliest.into_iter().enumerate() {
                // A model that does not keep to the grammar at all has few of them.
                let hopeless = rank >= 8 && scratch.candidates.is_empty();
                if hopeless || weight == f32::NEG_INFINITY {
                    break;
                }
                if grammar.allows(token).map_err(SampleError::Grammar)? {
                    scratch.candidates.push(Candidate { token, weight });
                }
                if scratch.candidates.len() == params.top_k {
                    let likeliest = scratch.candidates[0];
                    let drawn = self.choose_candidate(likeliest.weight, self.random(0), scratch);
                    return Ok(drawn.unwrap_or(likeliest.token));
                }
            }
        }
        apply_mask(logits, grammar.mask().map_err(SampleError::Grammar)?);
        let scan = vector::scan(logits);
        if scan.max == f32::NEG_INFINITY {
            return Err(SampleError::NothingPossible);
        }
        Ok(self.choose(logits, scan, self.random(attempt), scratch))
    }

    /// Whether nothing but the likeliest token can be chosen.
    fn takes_likeliest(&self, scan: vector::Scan) -> bool {
        self.params.temperature == 0.0 || self.params.top_k == 1 || scan.max == f32::INFINITY
    }

    /// The token among `logits`, one of which is possible, at the share `at` of their weight.
    fn choose(&self, logits: &[f32], scan: vector::Scan, at: f64, scratch: &mut Scratch) -> u32 {
        let params = &self.params;
        if self.takes_likeliest(scan) {
            return scan.at;
        }
        scratch.candidates.clear();
        if params.top_k > 0 {
            // The order of logits is the order of weights, so the cut comes before the
            // exponentials.
            likeliest_of(logits, params.top_k, &mut scratch.candidates);
            let drawn = self.choose_candidate(scan.max, at, scratch);
            return drawn.unwrap_or(scan.at);
        }
        let (weights, sums) = (&mut scratch.weights, &mut scratch.sums);
        let scale = 1.0 / params.temperature;
        let sum = vector::exp_all(logits, scan.max, scale, weights, sums);
        if params.cuts_nothing() {
            return draw_from_row(weights, sums, sum, at).unwrap_or(scan.at);
        }
        let (least, total) = if params.min_p > 0.0 {
            (params.min_p, None)
        } else {
            let least = least_in_top_p(params.top_p, sum, logits.len());
            (least, Some(sum))
        };
        scratch.found.clear();
        vector::at_least(weights, least.max(f32::MIN_POSITIVE), &mut scratch.found);
        let candidate = |&token: &u32| Candidate {
            token,
            weight: weights[token as usize],
        };
        let found = scratch.found.iter().map(candidate);
        scratch.candidates.extend(found);
        self.draw(total, at, scratch).unwrap_or(scan.at)
    }

    /// Draws from the candidates, the likeliest tokens, whose weights are logits of which `max` is
    /// the greatest.
    fn choose_candidate(&self, max: f32, at: f64, scratch: &mut Scratch) -> Option<u32> {
        let scale = 1.0 / self.params.temperature;
        let candidates = &mut scratch.candidates;
        for candidate in candidates.iter_mut() {
            candidate.weight = vector::exp((candidate.weight - max) * scale);
        }
        candidates.retain(|candidate| candidate.weight >= self.params.min_p);
        self.draw(None, at, scratch)
    }

    /// Draws from the candidates, of whose weights `total` is the sum if it is known.
    fn draw(&self, total: Option<f64>, at: f64, scratch: &mut Scratch) -> Option<u32> {
        let (params, candidates) = (&self.params, &mut scratch.candidates);
        if params.top_p < 1.0 {
            let total = total.unwrap_or_else(|| weight(candidates));
            keep_top_p(candidates, params.top_p, total);
        }
        if params.typical_p < 1.0 {
            keep_typical(candidates, params.typical_p, &mut scratch.ranked);
        }
        draw(candidates, at)
    }
}

/// The log-probability of `token` in a row of logits, and so many alternatives.
pub(crate) fn logprobs_of<E>(
    logits: &[f32],
    token: u32,
    count: usize,
) -> Result<Logprobs, SampleError<E>> {
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
