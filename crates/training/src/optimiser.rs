//! AdamW on numbers of our own.

use serde::{Deserialize, Serialize};

/// The constants of AdamW (<https://arxiv.org/abs/1711.05101>).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdamW {
    /// Part of the first average that stays in a step; 0.9.
    pub beta1: f64,
    /// Part of the second average that stays in a step; 0.999.
    pub beta2: f64,
    /// Added to the root of the second average; 1e-8.
    pub epsilon: f64,
    /// Part of each number, times the learning rate, that is taken away in a step; 0.
    pub weight_decay: f64,
    /// Greatest norm of the gradient of a step, which is scaled down to it; none for 0. 1.
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
        }
    }
}

/// The two moving averages of each number.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Of the gradient.
    pub first: Vec<f32>,
    /// Of its square.
    pub second: Vec<f32>,
}

impl Moments {
    /// Those of `len` numbers before the first update.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }
}

impl AdamW {
    /// Changes `values` by the gradient of the update of this number, from 1.
    ///
    /// ```text
    /// p *= 1 - lr wd
    /// m += (1 - b1) (g - m)
    /// v = b2 v + (1 - b2) g g
    /// p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    /// ```
    ///
    /// Constants are computed in f64 and the numbers in f32, in the order of operations of
    /// `torch.optim.AdamW` without `foreach`.
    pub fn update(
        &self,
        values: &mut [f32],
        moments: &mut Moments,
        gradient: &[f32],
        learning_rate: f64,
        update: u64,
    ) {
        let power = i32::try_from(update).unwrap_or(i32::MAX);
        let kept = (1.0 - learning_rate * self.weight_decay) as f32;
        let toward = (1.0 - self.beta1) as f32;
        let (beta2, rest2) = (self.beta2 as f32, (1.0 - self.beta2) as f32);
        let size = -(learning_rate / (1.0 - self.beta1.powi(power))) as f32;
        let root = (1.0 - self.beta2.powi(power)).sqrt() as f32;
        let epsilon = self.epsilon as f32;
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((p, (m, v)), g) in values.iter_mut().zip(moments).zip(gradient) {
            *p *= kept;
            *m += toward * (g - *m);
            *v = *v * beta2 + rest2 * g * g;
            *p += size * *m / (v.sqrt() / root + epsilon);
        }
    }
}

/// The length of a gradient: the root of the sum of its squares, in f64.
#[must_use]
pub fn norm(gradient: &[f32]) -> f64 {
    let squares = gradient.iter().map(|g| f64::from(*g) * f64::from(*g));
    squares.sum::<f64>().sqrt()
}

/// Scales a gradient of this norm down to the norm `most`: `min(1, most / (norm + 1e-6))`, as
/// `torch.nn.utils.clip_grad_norm_` does.
pub fn clip(gradient: &mut [f32], norm: f64, most: f64) {
    let factor = most / (norm + 1e-6);
    if most > 0.0 && factor < 1.0 {
        let factor = factor as f32;
        for g in gradient.iter_mut() {
            *g *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_update_moves_by_the_learning_rate() {
        let mut values = vec![0.0_f32; 2];
        let mut moments = Moments::zeros(2);
        AdamW::default().update(&mut values, &mut moments, &[3.0, -1e-3], 0.5, 1);
        assert!((values[0] + 0.5).abs() < 1e-6 && (values[1] - 0.5).abs() < 1e-5);
    }

    #[test]
    fn only_long_gradients_are_clipped() {
        let mut long = [3.0_f32, 4.0];
        assert!((norm(&long) - 5.0).abs() < 1e-12);
        clip(&mut long, 5.0, 1.0);
        assert!((norm(&long) - 1.0).abs() < 1e-6);
        let mut short = [0.3_f32, 0.4];
        clip(&mut short, 0.5, 1.0);
        assert_eq!(short.map(f32::to_bits), [0.3_f32, 0.4].map(f32::to_bits));
        let mut unbound = [3.0_f32, 4.0];
        clip(&mut unbound, 5.0, 0.0);
        assert_eq!(unbound.map(f32::to_bits), [3.0_f32, 4.0].map(f32::to_bits));
    }

    #[derive(Deserialize)]
    struct Recorded {
        optimiser: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        decay: f64,
        clip: f64,
        start: Vec<f32>,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct Step {
        lr: f64,
        gradient: Vec<f32>,
        norm: f64,
        values: Vec<f32>,
    }

    #[test]
    fn updates_are_those_that_pytorch_made() {
        let recorded = include_str!("../tests/goldens/recorded.json");
        let recorded: Recorded = serde_json::from_str(recorded).unwrap();
        for case in recorded.optimiser {
            let adam = AdamW {
                weight_decay: case.decay,
                clip: case.clip,
                ..AdamW::default()
            };
            let mut values = case.start;
            let mut moments = Moments::zeros(values.len());
            for (step, theirs) in case.steps.into_iter().enumerate() {
                let mut gradient = theirs.gradient;
                let norm = norm(&gradient);
                if case.clip > 0.0 {
                    assert!((norm - theirs.norm).abs() < 1e-6 * norm);
                }
                clip(&mut gradient, norm, adam.clip);
                adam.update(
                    &mut values,
                    &mut moments,
                    &gradient,
                    theirs.lr,
                    step as u64 + 1,
                );
                for (ours, theirs) in values.iter().zip(&theirs.values) {
                    let far = (ours - theirs).abs();
                    assert!(
                        far <= 1e-7 * theirs.abs().max(1.0),
                        "{step}: {ours} {theirs}"
                    );
                }
            }
        }
    }
}
