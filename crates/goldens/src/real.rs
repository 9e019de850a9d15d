//! Real models, which are not in the repository.

use std::path::{Path, PathBuf};

use hyprstream_engine::Backend;
use serde::Deserialize;

use crate::{Corpus, Perplexity, TOLERANCE, Way, data, greedy, logits, read};

/// A real model that `cargo xtask weights` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealModel {
    /// SmolLM2-135M-Instruct: Llama, byte-level tokens.
    SmolLm2,
    /// Gemma-3-270m: a window of 512, norms over heads, 262,144 tokens.
    Gemma3,
}

/// A real model and what it gives in f32.
#[derive(Debug, Deserialize)]
pub struct Real {
    /// Prompts and what they give.
    pub cases: Vec<Case>,
}

/// A prompt and what it gives.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// For each position some tokens and their logits, the largest among them.
    pub logits: Vec<Vec<(usize, f32)>>,
    /// The most likely tokens that follow.
    pub greedy: Vec<u32>,
}

impl RealModel {
    fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2",
            Self::Gemma3 => "gemma3",
        }
    }

    /// The folder of the model: what `HYPRSTREAM_SMOLLM2` or `HYPRSTREAM_GEMMA3` names, or where
    /// `cargo xtask weights` puts it.
    #[track_caller]
    pub fn dir(self) -> PathBuf {
        let (variable, cached) = match self {
            Self::SmolLm2 => ("HYPRSTREAM_SMOLLM2", "smollm2-135m-instruct-0.1.2"),
            Self::Gemma3 => ("HYPRSTREAM_GEMMA3", "gemma-3-270m-1.0.0"),
        };
        let home = std::env::var_os("HOME").unwrap_or_default();
        let dir = std::env::var_os(variable).map_or_else(
            || {
                Path::new(&home)
                    .join(".cache/hyprstream/weights")
                    .join(cached)
            },
            PathBuf::from,
        );
        assert!(
            dir.join("model.safetensors").exists(),
            "{} is not there: make it with `cargo xtask weights` or set {variable}",
            dir.display()
        );
        dir
    }

    /// What it gives in f32.
    pub fn golden(self) -> Real {
        read(&data().join(format!("{}.json", self.name())))
    }

    /// Tokens and prompts of texts.
    pub fn corpus(self) -> Corpus {
        read(&data().join(format!("{}.text.json", self.name())))
    }

    /// Its perplexity on a fixed text.
    pub fn perplexity(self) -> Perplexity {
        read(&data().join(format!("{}.perplexity.json", self.name())))
    }
}

impl Real {
    /// The case of this name.
    #[track_caller]
    pub fn case(&self, name: &str) -> &Case {
        let case = self.cases.iter().find(|case| case.name == name);
        case.unwrap_or_else(|| panic!("there is no case {name:?}"))
    }

    /// Checks the logits of every position, run in every way, and the greedy tokens, in f32.
    #[track_caller]
    pub fn check(&self, backend: &mut dyn Backend) {
        for case in &self.cases {
            // Token by token, a long prompt takes minutes and shows nothing new.
            let long = case.tokens.len() > 256;
            let ways = [
                Way::Whole,
                Way::Mixed,
                Way::Chunks(if long { 100 } else { 7 }),
            ];
            let each = (!long).then_some(Way::Chunks(1));
            for way in ways.into_iter().chain(each) {
                let worst = case.worst(backend, way);
                println!(
                    "{}, {way:?}: the largest difference is {worst:.1e}",
                    case.name
                );
                assert!(
                    worst < TOLERANCE,
                    "{}, {way:?}: a logit is off by {worst}",
                    case.name
                );
            }
            let ours = greedy(backend, &case.tokens, case.greedy.len());
            assert_eq!(ours, case.greedy, "{}", case.name);
        }
    }
}

impl Case {
    /// The largest difference of a logit when the prompt is run in this way.
    #[track_caller]
    pub fn worst(&self, backend: &mut dyn Backend, way: Way) -> f32 {
        let ours = logits(backend, &self.tokens, way);
        assert_eq!(ours.len(), self.logits.len(), "{}", self.name);
        let mut worst = 0.0_f32;
        for (ours, theirs) in ours.iter().zip(&self.logits) {
            for &(token, expected) in theirs {
                let difference = (ours[token] - expected).abs();
                if difference > worst || difference.is_nan() {
                    worst = difference;
                }
            }
        }
        worst
    }
}
