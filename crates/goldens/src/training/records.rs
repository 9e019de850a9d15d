//! What needs no model: optimisers, schedules, and what of a chat is trained.

use serde::Deserialize;
use serde_json::Value;

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

/// The chat template of a real model, with what transformers finds that the assistant wrote.
#[derive(Clone, Debug, Deserialize)]
pub struct Masks {
    /// The model's family, as TRL calls it.
    pub name: String,
    /// As the model has it: without marks.
    pub template: String,
    /// Its twin with `{% generation %}` marks.
    pub marked: String,
    /// What templates know under this name.
    pub bos_token: String,
    /// What templates know under this name.
    pub eos_token: String,
    /// Chats that the template takes.
    pub chats: Vec<MaskedChat>,
}

/// A chat, rendered without tools and without a prompt for the next answer.
#[derive(Clone, Debug, Deserialize)]
pub struct MaskedChat {
    /// `one`, `system`, `repeated`, `thoughts` or `tools`; `masks.py` says what each shows.
    pub name: String,
    /// Messages as OpenAI has them.
    pub messages: Vec<Value>,
    /// What [`Masks::template`] prompts with for each of the assistant's turns.
    pub prompts: Vec<String>,
    /// The text by [`Masks::template`]; `None` where it is not [`Self::marked_text`].
    pub text: Option<String>,
    /// The text by [`Masks::marked`].
    pub marked_text: String,
    /// What the assistant wrote in [`Self::marked_text`]: pairs of characters (not bytes), the end
    /// exclusive.
    pub spans: Vec<(usize, usize)>,
}

impl Masks {
    /// All templates.
    pub fn read() -> Vec<Self> {
        read(&data().join("training/masks.json"))
    }
}

impl MaskedChat {
    /// What the assistant wrote in [`Self::marked_text`], in order.
    pub fn written(&self) -> Vec<String> {
        let characters: Vec<char> = self.marked_text.chars().collect();
        let spans = self.spans.iter();
        spans
            .map(|&(from, to)| characters[from..to].iter().collect())
            .collect()
    }
}
