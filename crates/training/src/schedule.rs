//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decay {
    /// Half a cosine down to 0.
    #[default]
    Cosine,
    /// A line down to 0.
    Linear,
    /// Not at all.
    Constant,
}

/// The learning rates of a job, as transformers' schedules of the same names have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest.
    pub learning_rate: f64,
    /// Steps in which it rises from 0; see [`Schedule::warmup_steps`].
    pub warmup: u64,
    /// Steps of the job.
    pub total: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// Steps of the warm-up that is this part of all: `ceil(ratio * total)`.
    #[must_use]
    pub fn warmup_steps(ratio: f64, total: u64) -> u64 {
        (ratio * total as f64).ceil() as u64
    }

    /// The learning rate of the step of this index, from 0: with a warm-up the first is 0.
    ///
    /// ```text
    /// s < W:     s / max(1, W)
    /// cosine:    max(0, (1 + cos(pi (s - W) / max(1, T - W))) / 2)
    /// linear:    max(0, (T - s) / max(1, T - W))
    /// ```
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let (step_f, warmup) = (step as f64, self.warmup as f64);
        let rest = self.total.saturating_sub(self.warmup).max(1) as f64;
        let factor = if step < self.warmup {
            step_f / warmup.max(1.0)
        } else {
            match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => (self.total as f64 - step_f) / rest,
                Decay::Cosine => {
                    f64::midpoint(1.0, (std::f64::consts::PI * (step_f - warmup) / rest).cos())
                }
            }
        };
        self.learning_rate * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(decay: Decay, expected: &[f64]) {
        let schedule = Schedule {
            learning_rate: 2.0,
            warmup: Schedule::warmup_steps(0.15, 10),
            total: 10,
            decay,
        };
        for (step, expected) in expected.iter().enumerate() {
            let found = schedule.at(step as u64);
            assert!((found - expected).abs() < 1e-12, "step {step}: {found}");
        }
    }

    #[test]
    fn rates_are_those_of_transformers() {
        // get_cosine_schedule_with_warmup and its siblings, of 2 warm-up steps of 10.
        let cosine = |s: f64| 1.0 + (std::f64::consts::PI * (s - 2.0) / 8.0).cos();
        let falling: Vec<f64> = (2..10).map(|s| cosine(f64::from(s))).collect();
        check(Decay::Cosine, &[&[0.0, 1.0], falling.as_slice()].concat());
        check(
            Decay::Linear,
            &[0.0, 1.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0],
        );
        check(Decay::Constant, &[0.0, 1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_warm_up_is_rounded_up_and_may_be_none() {
        assert_eq!(Schedule::warmup_steps(0.03, 100), 3);
        assert_eq!(Schedule::warmup_steps(0.03, 10), 1);
        assert_eq!(Schedule::warmup_steps(0.0, 10), 0);
    }

    #[derive(Deserialize)]
    struct Recorded {
        schedules: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        decay: Decay,
        warmup: u64,
        total: u64,
        rates: Vec<f64>,
    }

    #[test]
    fn rates_are_those_that_transformers_made() {
        let recorded = include_str!("../tests/goldens/recorded.json");
        let recorded: Recorded = serde_json::from_str(recorded).unwrap();
        for case in recorded.schedules {
            let schedule = Schedule {
                learning_rate: 2e-4,
                warmup: case.warmup,
                total: case.total,
                decay: case.decay,
            };
            for (step, theirs) in case.rates.iter().enumerate() {
                let ours = schedule.at(step as u64);
                assert!((ours - theirs).abs() < 1e-16, "{step}: {ours} {theirs}");
            }
        }
    }
}
