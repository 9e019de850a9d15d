//! Losses and gradients against PEFT and TRL, and what a learner must keep.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use hyprstream_goldens::training::{
    EVERYTHING, GRADIENT_TOLERANCE, LOSS_TOLERANCE, Long, PLAIN, Preferences, Saved, TRAINED,
    Trained, worst_gradient,
};
use hyprstream_models::adapter::{Linear, Site};
use hyprstream_torch::{
    DType, Device, LearnOptions, LearnerError, LoadOptions, TorchLearner, load, load_learner,
};
use hyprstream_training::{Batch, Dropout, LearnError, Learner, Parameters, Policy, Segment};

fn options() -> LearnOptions {
    let device = std::env::var("HYPRSTREAM_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    LearnOptions {
        device: device.parse::<Device>().unwrap(),
        dtype: DType::Float32,
        threads: Some(1),
        ..LearnOptions::default()
    }
}

fn learner(dir: &Path, parameters: &Parameters, options: &LearnOptions) -> TorchLearner {
    load_learner(dir, parameters.clone(), options).unwrap()
}

fn case(model: &str, name: &str) -> Trained {
    let name = format!("{model}/{name}");
    let mut cases = Trained::read(model).into_iter();
    cases.find(|case| case.name() == name).unwrap()
}

fn gradient(learner: &mut TorchLearner, case: &Trained, dropout: Dropout) -> (f64, Vec<f32>) {
    let mut gradient = vec![0.0; case.parameters().len];
    let scores = learner
        .accumulate(&case.batch(0), case.values(), dropout, &mut gradient)
        .unwrap();
    (scores.iter().map(|score| score.loss).sum(), gradient)
}

#[test]
fn gradients_and_losses_of_every_tiny_model_are_those_of_peft() {
    for model in TRAINED {
        for case in Trained::read(model) {
            case.check(&mut learner(case.dir(), case.parameters(), &options()));
        }
    }
}

#[test]
fn a_few_logits_at_a_time_give_the_same() {
    for case in [case("mistral", "everything"), case("gemma2", "all-linear")] {
        // Those of five tokens, and of one, of the vocabulary of 64.
        for logits_at_once in [5 * 64, 1] {
            let options = LearnOptions {
                logits_at_once,
                ..options()
            };
            case.check(&mut learner(case.dir(), case.parameters(), &options));
        }
    }
}

#[test]
fn preferences_are_learnt_as_trl_does() {
    let pairs = Preferences::read();
    pairs.check(&mut learner(pairs.dir(), pairs.parameters(), &options()));
}

#[test]
fn losses_of_200_steps_are_those_of_peft() {
    for run in Long::read() {
        let case = run.case();
        let mut learner = learner(case.dir(), case.parameters(), &options());
        let off = run.check(&mut learner);
        println!("{}: off by {off:.2e}", case.name());
    }
}

#[test]
fn what_was_trained_and_saved_is_what_the_engine_computes() {
    for adapter in [PLAIN, EVERYTHING] {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = Saved::train(folder.path(), adapter, |dir, parameters| {
            Box::new(learner(dir, &parameters, &options()))
        });
        let served = LoadOptions {
            device: options().device,
            dtype: DType::Float32,
            max_batch: 1,
            kv_cache_bytes: Some(4 << 20),
            threads: Some(1),
            ..LoadOptions::default()
        };
        let mut backend = load(saved.dir(), &served).unwrap();
        let packed = backend.adapter_packer().pack(&saved.adapter()).unwrap();
        let off = saved.check(&mut backend, packed);
        println!("off by {off:.2e}");
    }
}

#[test]
fn a_learner_says_what_computes() {
    let case = case("tied", "all-linear");
    for (dtype, name) in [
        (DType::Float32, "libtorch cpu float32"),
        (DType::BFloat16, "libtorch cpu bfloat16"),
    ] {
        let options = LearnOptions {
            dtype,
            device: Device::Cpu,
            ..options()
        };
        assert_eq!(
            learner(case.dir(), case.parameters(), &options).name(),
            name
        );
    }
}

#[test]
fn layers_computed_twice_give_the_bits_of_layers_that_are_kept() {
    let dropout = Dropout {
        probability: 0.3,
        seed: 5,
        step: 2,
    };
    for model in TRAINED {
        for case in Trained::read(model) {
            for dtype in [DType::Float32, DType::BFloat16] {
                let run = |recompute| {
                    let options = LearnOptions {
                        recompute,
                        dtype,
                        ..options()
                    };
                    let mut learner = learner(case.dir(), case.parameters(), &options);
                    gradient(&mut learner, &case, dropout)
                };
                assert_eq!(run(true), run(false), "{} {dtype:?}", case.name());
            }
        }
    }
}

#[test]
fn derivatives_with_dropout_are_what_the_loss_changes_by() {
    let dropout = Dropout {
        probability: 0.4,
        seed: 1,
        step: 9,
    };
    for case in [case("mistral", "everything"), case("phi3", "all-linear")] {
        let mut learner = learner(case.dir(), case.parameters(), &options());
        let (plain, _) = gradient(&mut learner, &case, Dropout::NONE);
        let (loss, slope) = gradient(&mut learner, &case, dropout);
        assert!((loss - plain).abs() > 1e-3, "{}", case.name());
        // Along the gradient, which is the direction that shows most.
        let square: f64 = slope.iter().map(|x| f64::from(*x).powi(2)).sum();
        let mut at = |step: f64| {
            let moved = case.values().iter().zip(&slope);
            let values: Vec<f32> = moved
                .map(|(value, slope)| (f64::from(*value) + step * f64::from(*slope)) as f32)
                .collect();
            let mut ignored = vec![0.0; values.len()];
            let batch = case.batch(0);
            let scores = learner.accumulate(&batch, &values, dropout, &mut ignored);
            let weight = f64::from(batch.segments[0].weight);
            scores.unwrap().iter().map(|s| s.loss).sum::<f64>() * weight
        };
        let step = 2e-3 / square.sqrt();
        let found = (at(step) - at(-step)) / (2.0 * step);
        let off = (found / square - 1.0).abs();
        assert!(off < 1e-2, "{}: {found} is not {square}", case.name());
    }
}

#[test]
fn dropout_does_not_depend_on_what_else_is_in_the_batch() {
    let dropout = Dropout {
        probability: 0.5,
        seed: 3,
        step: 4,
    };
    let case = case("qwen2", "all-linear");
    let mut learner = learner(case.dir(), case.parameters(), &options());
    let (loss, packed) = gradient(&mut learner, &case, dropout);
    let mut alone = vec![0.0; packed.len()];
    let mut losses = 0.0;
    for segment in case.batch(0).segments.into_iter().rev() {
        let batch = Batch {
            segments: vec![segment],
        };
        let scores = learner.accumulate(&batch, case.values(), dropout, &mut alone);
        losses += scores.unwrap()[0].loss;
    }
    assert!((losses / loss - 1.0).abs() < LOSS_TOLERANCE);
    let worst = worst_gradient(case.parameters(), &packed, &alone);
    assert!(worst.error < GRADIENT_TOLERANCE, "{worst:?}");
    let other = Dropout { step: 5, ..dropout };
    assert!(gradient(&mut learner, &case, other).1 != packed);
}

#[test]
fn a_frozen_model_in_bfloat16_learns_nearly_the_same() {
    let case = case("tied", "all-linear");
    let options = LearnOptions {
        dtype: DType::BFloat16,
        ..options()
    };
    let mut learner = learner(case.dir(), case.parameters(), &options);
    let (loss, ours) = gradient(&mut learner, &case, Dropout::NONE);
    let weight = f64::from(case.batch(0).segments[0].weight);
    assert!((loss * weight / case.losses()[0] - 1.0).abs() < 0.05);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let theirs = case.gradient();
    let cosine = dot(&ours, theirs) / (dot(&ours, &ours) * dot(theirs, theirs)).sqrt();
    assert!(cosine > 0.98, "{cosine}");
}

#[test]
fn without_an_adapter_the_frozen_model_is_scored() {
    let case = case("gemma3", "all-linear");
    let mut learner = learner(case.dir(), case.parameters(), &options());
    let mut values = case.values().to_vec();
    for part in &case.parameters().parts {
        values[part.b.clone()].fill(0.0);
    }
    let batch = case.batch(0);
    let base = learner.score(&batch, Policy::Base).unwrap();
    assert_eq!(
        base,
        learner.score(&batch, Policy::Adapter(&values)).unwrap()
    );
    let trained = learner
        .score(&batch, Policy::Adapter(case.values()))
        .unwrap();
    assert!((base[0].loss - trained[0].loss).abs() > 1e-3);
}

#[test]
fn a_batch_with_nothing_to_train_has_no_gradient() {
    let case = case("mistral", "everything");
    let mut learner = learner(case.dir(), case.parameters(), &options());
    let mut batch = case.batch(0);
    batch
        .segments
        .iter_mut()
        .for_each(|s| s.trained.fill(false));
    let mut gradient = vec![0.0; case.parameters().len];
    let scores = learner
        .accumulate(&batch, case.values(), Dropout::NONE, &mut gradient)
        .unwrap();
    assert!(
        scores
            .iter()
            .all(|score| score.tokens == 0 && score.loss == 0.0)
    );
    assert!(gradient.iter().all(|x| *x == 0.0));
}

#[test]
fn batches_that_the_model_cannot_read_are_refused() {
    let case = case("tied", "all-linear");
    let mut learner = learner(case.dir(), case.parameters(), &options());
    let good = || Segment {
        sample: 0,
        tokens: vec![3, 4, 5],
        trained: vec![false, true, true],
        weight: 1.0,
    };
    let mut check = |segments: Vec<Segment>, why: &str| {
        let batch = Batch { segments };
        let mut gradient = vec![0.0; case.parameters().len];
        let none = Dropout::NONE;
        let error = learner.accumulate(&batch, case.values(), none, &mut gradient);
        let text = error.unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
        assert!(matches!(
            learner.score(&batch, Policy::Base),
            Err(LearnError::Batch(_))
        ));
    };
    check(vec![], "no segments");
    let change = |with: &dyn Fn(&mut Segment)| {
        let mut segment = good();
        with(&mut segment);
        vec![good(), segment]
    };
    check(change(&|s| s.tokens.truncate(1)), "segment 1 has 1 tokens");
    check(
        change(&|s| s.tokens = vec![3; 129]),
        "129 tokens, but the model has 128 positions",
    );
    check(change(&|s| s.trained.push(true)), "4 marks");
    check(change(&|s| s.trained[0] = true), "first token");
    check(change(&|s| s.tokens[2] = 64), "token 64");
    check(change(&|s| s.weight = f32::NAN), "NaN");
    let batch = Batch {
        segments: vec![good()],
    };
    let error = learner.score(&batch, Policy::Adapter(&[1.0])).unwrap_err();
    assert!(error.to_string().contains("1 numbers"), "{error}");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let case = case("tied", "all-linear");
    let mut parameters = case.parameters().clone();
    parameters.parts[0].site = Site::Layer(2, Linear::Query);
    let error = load_learner(case.dir(), parameters, &options()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("model.layers.2.self_attn.q_proj"),
        "{error}"
    );
    let mut parameters = case.parameters().clone();
    parameters.parts[1].rank += 1;
    let error = load_learner(case.dir(), parameters, &options()).unwrap_err();
    assert!(matches!(error, LearnerError::Part { .. }), "{error}");
    let half = LearnOptions {
        dtype: DType::Float16,
        ..options()
    };
    let error = load_learner(case.dir(), case.parameters().clone(), &half).unwrap_err();
    assert!(matches!(error, LearnerError::Float16));
}
