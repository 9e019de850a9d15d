//! What a request adds to or takes from the logits before a token is chosen.

use std::{collections::HashMap, sync::Arc};

use super::SamplingParams;

/// The tokens that were seen so far, as far as the request's penalties need them.
#[derive(Debug, Default)]
pub(crate) struct Penalties {
    /// Times that a token stands in the answer; 0 for a token of the prompt alone.
    counts: HashMap<u32, u32>,
    /// `None` when it is off.
    repetition: Option<f32>,
    presence: f32,
    frequency: f32,
    bias: Vec<(u32, f32)>,
    allowed: Option<Arc<[u32]>>,
    bad_words: Vec<Vec<u32>>,
    /// The answer so far, as long as bad words need it.
    answer: Vec<u32>,
}

/// Logits as they were before they were changed, in the order of the changes.
#[derive(Debug, Default)]
pub(crate) struct Changes(Vec<(u32, f32)>);

impl Changes {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes the logit of `token`. Tokens that the row does not have are passed over.
    pub(crate) fn change(
        &mut self,
        logits: &mut [f32],
        token: u32,
        change: impl FnOnce(f32) -> f32,
    ) {
        if let Some(logit) = logits.get_mut(token as usize) {
            self.0.push((token, *logit));
            *logit = change(*logit);
        }
    }

    /// The logit of `token` as it was at first.
    pub(crate) fn first(&self, logits: &[f32], token: u32) -> f32 {
        match self.0.iter().find(|(changed, _)| *changed == token) {
            Some((_, logit)) => *logit,
            None => logits[token as usize],
        }
    }
}

impl Penalties {
    pub(crate) fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let mut counts = HashMap::new();
        // 1 is exactly how "off" is written.
        #[allow(clippy::float_cmp, reason = "set, never computed")]
        let repetition = (params.repetition_penalty != 1.0).then_some(params.repetition_penalty);
        if repetition.is_some() {
            counts.extend(prompt.iter().map(|&token| (token, 0)));
        }
        Self {
            counts,
            repetition,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            bias: params.logit_bias.clone(),
            allowed: params.allowed_tokens.clone(),
            bad_words: params.bad_words.clone(),
            answer: Vec::new(),
        }
    }

    /// Notes a token of the answer.
    pub(crate) fn count(&mut self, token: u32) {
        if self.repetition.is_some() || self.presence != 0.0 || self.frequency != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        if self.bad_words.iter().any(|word| word.len() > 1) {
            self.answer.push(token);
        }
    }

    /// Changes `logits` accordingly.
    pub(crate) fn apply(&self, logits: &mut [f32], changes: &mut Changes) {
        for (&token, &count) in &self.counts {
            changes.change(logits, token, |logit| {
                // As in CTRL, <https://arxiv.org/abs/1909.05858>, with the sign seen to.
                let repeated = match self.repetition {
                    Some(penalty) if logit > 0.0 => logit / penalty,
                    Some(penalty) => logit * penalty,
                    None => logit,
                };
                if count > 0 {
                    repeated - self.presence - self.frequency * count as f32
                } else {
                    repeated
                }
            });
        }
        for &(token, bias) in &self.bias {
            changes.change(logits, token, |logit| logit + bias);
        }
        for word in &self.bad_words {
            if let Some((&last, begin)) = word.split_last()
                && self.answer.ends_with(begin)
            {
                changes.change(logits, last, |_| f32::NEG_INFINITY);
            }
        }
    }

    /// Makes tokens impossible that are not allowed, and says whether it did.
    pub(crate) fn restrict(&self, logits: &mut [f32]) -> bool {
        let Some(allowed) = &self.allowed else {
            return false;
        };
        let at = |token: &u32| logits.get(*token as usize).copied();
        let kept: Vec<(u32, f32)> = allowed.iter().filter_map(|t| Some((*t, at(t)?))).collect();
        logits.fill(f32::NEG_INFINITY);
        for (token, logit) in kept {
            logits[token as usize] = logit;
        }
        true
    }
}
