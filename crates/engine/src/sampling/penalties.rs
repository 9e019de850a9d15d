//! What a request adds to or takes from the logits before a token is chosen.

use std::collections::HashMap;

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
        }
    }

    /// Notes a token of the answer.
    pub(crate) fn count(&mut self, token: u32) {
        if self.repetition.is_some() || self.presence != 0.0 || self.frequency != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Changes `logits` accordingly. Tokens that the row does not have are passed over.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            // As in CTRL, <https://arxiv.org/abs/1909.05858>, with the sign seen to.
            match self.repetition {
                Some(penalty) if *logit > 0.0 => *logit /= penalty,
                Some(penalty) => *logit *= penalty,
                None => {}
            }
            if count > 0 {
                *logit -= self.presence + self.frequency * count as f32;
            }
        }
        for &(token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }
}
