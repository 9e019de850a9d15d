//! Tiny models with random weights, one for each thing that a family does.

use std::path::{Path, PathBuf};

use hyprstream_engine::Backend;
use serde::Deserialize;

use crate::{TOLERANCE, Way, data, greedy, hidden, logits, read};

/// Names of the tiny models; `make.py` says what each shows.
pub const TINY: [&str; 12] = [
    "tied",
    "llama3",
    "biases",
    "sharded",
    "yarn",
    "yarn-mscale",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
];

/// A tiny model and what it gives in f32.
#[derive(Debug)]
pub struct Tiny {
    name: String,
    dir: PathBuf,
    golden: Golden,
}

#[derive(Debug, Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
    greedy_from: usize,
    greedy: Vec<u32>,
}

impl Tiny {
    /// The tiny model of this name.
    pub fn read(name: &str) -> Self {
        let dir = data().join(name);
        Self {
            name: name.to_owned(),
            golden: read(&dir.join("golden.json")),
            dir,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tokens to run through it, about 50.
    pub fn tokens(&self) -> &[u32] {
        &self.golden.tokens
    }

    /// Checks the logits of every position, run in every way, the hidden states and the greedy
    /// tokens.
    #[track_caller]
    pub fn check(&self, backend: &mut dyn Backend) {
        for way in Way::ALL {
            let worst = self.worst(backend, way);
            assert!(
                worst < TOLERANCE,
                "{}, {way:?}: a logit is off by {worst}",
                self.name
            );
        }
        let golden = &self.golden;
        let ours = hidden(backend, &golden.tokens, 13);
        let worst = worst(&ours, &golden.hidden);
        assert!(
            worst < TOLERANCE,
            "{}: a hidden state is off by {worst}",
            self.name
        );
        let prompt = &golden.tokens[..golden.greedy_from];
        let ours = greedy(backend, prompt, golden.greedy.len());
        assert_eq!(ours, golden.greedy, "{}", self.name);
    }

    /// The largest difference of a logit when the tokens are run in this way.
    #[track_caller]
    pub fn worst(&self, backend: &mut dyn Backend, way: Way) -> f32 {
        let ours = logits(backend, &self.golden.tokens, way);
        worst(&ours, &self.golden.logits)
    }
}

/// The largest difference of a value of two rows of rows; not a number where one is none.
#[track_caller]
pub fn worst(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let mut worst = 0.0_f32;
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            // Not `f32::max`, which would overlook what is not a number.
            let difference = (a - b).abs();
            if difference > worst || difference.is_nan() {
                worst = difference;
            }
        }
    }
    worst
}
