//! Losses and gradients against PEFT and TRL.

use hyprstream_cpu::{CpuLearner, Kernels, LearnLoadError, LearnOptions};
use hyprstream_goldens::training::{Preferences, TRAINED, Trained};
use hyprstream_models::DType;

use crate::sets;

fn options(kernels: Kernels) -> LearnOptions {
    LearnOptions {
        dtype: DType::Float32,
        kernels: Some(kernels),
        threads: Some(2),
        ..LearnOptions::default()
    }
}

#[test]
fn gradients_and_losses_of_every_tiny_model_are_those_of_peft() {
    let mut refused = Vec::new();
    for case in TRAINED.into_iter().flat_map(Trained::read) {
        for kernels in sets() {
            let learner =
                CpuLearner::load(case.dir(), case.parameters().clone(), &options(kernels));
            match learner {
                Ok(mut learner) => case.check(&mut learner),
                Err(LearnLoadError::Magnitude(_) | LearnLoadError::Place(_)) => {
                    refused.push(case.name().to_owned());
                }
                Err(error) => panic!("{}: {error}", case.name()),
            }
        }
    }
    refused.sort();
    refused.dedup();
    // What libtorch's learner is held to, and this one does not do.
    assert_eq!(refused, ["mistral/everything", "phi3/dora", "qwen3/dora"]);
}

#[test]
fn preferences_are_learnt_as_trl_does() {
    let pairs = Preferences::read();
    for kernels in sets() {
        let learner = CpuLearner::load(pairs.dir(), pairs.parameters().clone(), &options(kernels));
        pairs.check(&mut learner.unwrap());
    }
}
