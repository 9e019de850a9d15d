//! Optimisers and schedules, without a model.

use serde::Deserialize;

use crate::{data, read};

/// Recorded gradients, and what torch's AdamW makes of parameters by them, with b1 0.9, b2 0.999 and
/// eps 1e-8.
#[derive(Clone, Debug, Deserialize)]
pub struct Optimiser {
    /// What it shows.
    pub name: String,
    /// Decoupled from the gradient.
    pub weight_decay: f64,
    /// The gradient's largest norm; `None` where it is not clipped.
    pub max_norm: Option<f64>,
    /// Parameters before the first step.
    pub start: Vec<f32>,
    /// Ten.
    pub steps: Vec<Optimised>,
}

/// One step of an [`Optimiser`].
#[derive(Clone, Debug, Deserialize)]
pub struct Optimised {
    /// As it was computed, before it is clipped.
    pub gradient: Vec<f32>,
    /// Its norm, in f64.
    pub norm: f64,
    /// As the schedule had it.
    pub learning_rate: f64,
    /// The parameters after the step, in f32.
    pub parameters: Vec<f32>,
}

impl Optimiser {
    /// All records.
    pub fn read() -> Vec<Self> {
        read(&data().join("training/optimiser.json"))
    }
}

/// What transformers multiplies the learning rate by.
#[derive(Clone, Debug, Deserialize)]
pub struct Schedule {
    /// `constant`, `linear` or `cosine`, each after a linear warm-up.
    pub kind: String,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
    /// Some steps, counted from 0; the last is the end, which no update uses.
    pub steps: Vec<u64>,
    /// The factor at each of them.
    pub factors: Vec<f64>,
}

impl Schedule {
    /// All schedules.
    pub fn read() -> Vec<Self> {
        read(&data().join("training/schedules.json"))
    }
}
