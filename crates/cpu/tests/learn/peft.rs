//! Losses and gradients against PEFT and TRL.

use hyprstream_cpu::{CpuLearner, LearnLoadError, LoadOptions, load};
use hyprstream_goldens::training::{Long, PLAIN, Preferences, Saved, TRAINED, Trained};
use hyprstream_models::DType;

use crate::{in_f32, sets};

#[test]
fn gradients_and_losses_of_every_tiny_model_are_those_of_peft() {
    let mut refused = Vec::new();
    for case in TRAINED.into_iter().flat_map(Trained::read) {
        for kernels in sets() {
            let learner = CpuLearner::load(case.dir(), case.parameters().clone(), &in_f32(kernels));
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
        let learner = CpuLearner::load(pairs.dir(), pairs.parameters().clone(), &in_f32(kernels));
        pairs.check(&mut learner.unwrap());
    }
}

#[test]
fn losses_of_200_steps_are_those_of_peft() {
    for run in Long::read() {
        let case = run.case();
        for kernels in sets() {
            let learner = CpuLearner::load(case.dir(), case.parameters().clone(), &in_f32(kernels));
            match learner {
                Ok(mut learner) => {
                    let off = run.check(&mut learner);
                    println!("{} {kernels:?}: off by {off:.2e}", case.name());
                }
                Err(error) => {
                    assert!(matches!(error, LearnLoadError::Magnitude(_)), "{error}");
                    assert_eq!(case.name(), "qwen3/dora");
                }
            }
        }
    }
}

#[test]
fn what_was_trained_and_saved_is_what_the_engine_computes() {
    for kernels in sets() {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = Saved::train(folder.path(), PLAIN, |dir, parameters| {
            Box::new(CpuLearner::load(dir, parameters, &in_f32(kernels)).unwrap())
        });
        let served = LoadOptions {
            dtype: DType::Float32,
            kernels: Some(kernels),
            max_batch: 1,
            kv_cache_bytes: Some(4 << 20),
            threads: Some(1),
            ..LoadOptions::default()
        };
        let mut backend = load(saved.dir(), &served).unwrap();
        let packed = backend.adapter_packer().pack(&saved.adapter()).unwrap();
        let off = saved.check(&mut backend, packed);
        println!("{kernels:?}: off by {off:.2e}");
    }
}
