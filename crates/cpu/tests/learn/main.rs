//! Losses and gradients against finite differences of the same model in f64, with every set of kernels
//! that this processor has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod peft;
mod reference;
mod rounded;

use std::path::Path;

use hyprstream_cpu::{CpuLearner, Kernels, LearnLoadError as E, LearnOptions, LoadOptions, load};
use hyprstream_goldens::{RealModel, TINY, Tiny, Way, logits};
use hyprstream_models::{
    DType, DecoderConfig,
    adapter::{Linear, Site},
};
use hyprstream_training::{Batch, Dropout, LearnError, Learner, Parameters, Part, Policy, Segment};

use reference::{Change, Reference};

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|set| set.available())
}

/// Factors of this rank on these maps of all layers. With `fused`, maps of one input share A.
fn parameters(config: &DecoderConfig, maps: &[Linear], rank: usize, fused: bool) -> Parameters {
    let (mut parts, mut len) = (Vec::<Part>::new(), 0);
    let mut take = |count: usize| {
        len += count;
        len - count..len
    };
    let input = |map: Linear| match map {
        Linear::Query | Linear::Key | Linear::Value => 0,
        Linear::Gate | Linear::Up => 1,
        Linear::Output | Linear::Down => 2 + map as usize,
    };
    for index in 0..config.num_layers() {
        let mut shared = Vec::new();
        for &map in maps {
            let site = Site::Layer(index, map);
            let (outputs, inputs) = site.size(config);
            let known = shared.iter().find(|(of, _)| fused && *of == input(map));
            let a = known.map_or_else(
                || take(rank * inputs),
                |(_, range)| std::ops::Range::clone(range),
            );
            shared.push((input(map), a.clone()));
            parts.push(Part {
                site,
                rank,
                scaling: 0.7 + 0.1 * map as usize as f32,
                a,
                b: take(outputs * rank),
                magnitude: None,
            });
        }
    }
    Parameters { parts, len }
}

fn learner(dir: &Path, parameters: &Parameters, options: &LearnOptions) -> CpuLearner {
    CpuLearner::load(dir, parameters.clone(), options).unwrap()
}

fn in_f32(kernels: Kernels) -> LearnOptions {
    LearnOptions {
        dtype: DType::Float32,
        kernels: Some(kernels),
        threads: Some(2),
        ..LearnOptions::default()
    }
}

fn values(parameters: &Parameters, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut next = || (random.f32() - 0.5) * 0.4;
    (0..parameters.len).map(|_| next()).collect()
}

/// The tokens of a model's golden in three segments of different weight, some of them not trained.
fn batch(tokens: &[u32]) -> Batch {
    let cut = |from: usize, to: usize, weight: f32| Segment {
        sample: from as u64 + 3,
        tokens: tokens[from..to].to_vec(),
        trained: (0..to - from).map(|i| i > 0 && i % 5 != 3).collect(),
        weight,
    };
    let (end, third) = (tokens.len(), tokens.len() / 3);
    Batch {
        segments: vec![
            cut(0, third + 7, 0.05),
            cut(third + 7, end - 11, 0.02),
            cut(end - 11, end, 0.11),
        ],
    }
}

fn gradient(
    learner: &mut CpuLearner,
    batch: &Batch,
    values: &[f32],
    dropout: Dropout,
) -> (Vec<f64>, Vec<f32>) {
    let mut gradient = vec![0.0; values.len()];
    let scores = learner
        .accumulate(batch, values, dropout, &mut gradient)
        .unwrap();
    (scores.iter().map(|score| score.loss).collect(), gradient)
}

/// Compares losses, and each factor's gradient along a random direction.
#[track_caller]
fn agrees(
    what: &str,
    reference: &Reference,
    learner: &mut CpuLearner,
    batch: &Batch,
    dropout: Dropout,
) {
    const STEP: f64 = 1e-4;
    let parameters = learner.parameters().clone();
    let values = values(&parameters, 5);
    let (losses, gradient) = gradient(learner, batch, &values, dropout);
    let exact: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let loss = |values: &[f64]| {
        let change = Change {
            parameters: &parameters,
            values,
            dropout,
        };
        let each = batch.segments.iter();
        each.map(|segment| reference.segment(segment, Some(change)))
            .collect::<Vec<_>>()
    };
    let whole = |values: &[f64]| -> f64 {
        let losses = loss(values).into_iter().zip(&batch.segments);
        losses
            .map(|(loss, segment)| f64::from(segment.weight) * loss)
            .sum()
    };
    for (expected, loss) in loss(&exact).into_iter().zip(losses) {
        assert!(
            (loss - expected).abs() <= 1e-5 * expected,
            "{what}: a loss is {loss}, not {expected}"
        );
    }
    let mut random = fastrand::Rng::with_seed(9);
    for part in &parameters.parts {
        for (factor, range) in [('A', part.a.clone()), ('B', part.b.clone())] {
            let direction: Vec<f64> = range.clone().map(|_| random.f64() - 0.5).collect();
            let moved = |by: f64| {
                let mut moved = exact.clone();
                for (value, along) in moved[range.clone()].iter_mut().zip(&direction) {
                    *value += by * along;
                }
                whole(&moved)
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let ours: Vec<f64> = gradient[range].iter().copied().map(f64::from).collect();
            let along: f64 = ours.iter().zip(&direction).map(|(a, b)| a * b).sum();
            let length = |of: &[f64]| of.iter().map(|x| x * x).sum::<f64>().sqrt();
            let size = length(&ours) * length(&direction) / (ours.len() as f64).sqrt();
            assert!(
                (along - expected).abs() <= 1e-4 * size + 1e-8,
                "{what}, {factor} of {}: {along}, not {expected}",
                part.site
            );
        }
    }
}

#[test]
fn gradients_are_finite_differences_for_every_family_and_set_of_kernels() {
    for name in TINY {
        let tiny = Tiny::read(name);
        let batch = batch(tiny.tokens());
        for (dtype, half) in [(DType::Float32, false), (DType::BFloat16, true)] {
            let reference = Reference::load(tiny.dir(), half);
            for (rank, fused) in [(4, false), (19, true)] {
                let parameters = parameters(&reference.config, &Linear::ALL, rank, fused);
                for kernels in sets() {
                    // Finite differences see nothing of what rounds.
                    let options = LearnOptions {
                        dtype,
                        products: DType::Float32,
                        ..in_f32(kernels)
                    };
                    let mut learner = learner(tiny.dir(), &parameters, &options);
                    let what = format!("{name} {dtype:?} {kernels} rank {rank}");
                    agrees(&what, &reference, &mut learner, &batch, Dropout::NONE);
                }
            }
        }
    }
}

#[test]
fn what_falls_out_is_what_the_counter_says() {
    let dropout = Dropout {
        probability: 0.3,
        seed: 11,
        step: 4,
    };
    for (name, fused) in [("qwen3", false), ("phi3", true)] {
        let tiny = Tiny::read(name);
        let reference = Reference::load(tiny.dir(), false);
        let parameters = parameters(&reference.config, &Linear::ALL, 4, fused);
        let mut learner = learner(tiny.dir(), &parameters, &in_f32(Kernels::best()));
        agrees(
            name,
            &reference,
            &mut learner,
            &batch(tiny.tokens()),
            dropout,
        );
    }
}

#[test]
fn some_maps_alone_are_trained_too() {
    let tiny = Tiny::read("gemma3");
    let reference = Reference::load(tiny.dir(), false);
    let maps = [Linear::Value, Linear::Query, Linear::Up];
    let parameters = parameters(&reference.config, &maps, 3, false);
    let mut learner = learner(tiny.dir(), &parameters, &in_f32(Kernels::best()));
    let batch = batch(tiny.tokens());
    agrees("some", &reference, &mut learner, &batch, Dropout::NONE);
}

#[test]
fn neither_memory_nor_threads_change_a_bit() {
    let dtypes = [DType::Float32, DType::BFloat16];
    for (name, dtype) in ["qwen2", "gemma2"]
        .into_iter()
        .flat_map(|name| dtypes.map(|d| (name, d)))
    {
        let tiny = Tiny::read(name);
        let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
        let parameters = parameters(&config, &Linear::ALL, 4, false);
        let (batch, values) = (batch(tiny.tokens()), values(&parameters, 1));
        let dropout = Dropout {
            probability: 0.1,
            seed: 2,
            step: 3,
        };
        let mut first = None;
        // All layers keep theirs, none does, and one or two do.
        for (kept_bytes, threads) in [(1 << 30, 1), (0, 1), (0, 3), (120 << 10, 2), (1 << 30, 5)] {
            let options = LearnOptions {
                dtype,
                kept_bytes,
                threads: Some(threads),
                ..in_f32(Kernels::best())
            };
            let mut learner = learner(tiny.dir(), &parameters, &options);
            for _ in 0..2 {
                let outcome = gradient(&mut learner, &batch, &values, dropout);
                let first = first.get_or_insert_with(|| outcome.clone());
                assert!(
                    *first == outcome,
                    "{name}, {dtype:?}, {kept_bytes}, {threads}"
                );
            }
        }
    }
}

#[test]
fn a_batch_without_memory_is_refused_before_it_is_begun_and_with_little_computes_more_and_the_same()
{
    let tiny = Tiny::read("qwen2");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let parameters = parameters(&config, &Linear::ALL, 4, false);
    let (batch, values) = (batch(tiny.tokens()), values(&parameters, 1));
    let parts = batch.segments.iter().map(|segment| Batch {
        segments: vec![segment.clone()],
    });
    let parts: Vec<Batch> = parts.collect();
    let with = |memory_bytes| {
        let options = LearnOptions {
            memory_bytes,
            ..in_f32(Kernels::best())
        };
        learner(tiny.dir(), &parameters, &options)
    };
    let mut roomy = with(Some(u64::MAX));
    let whole = gradient(&mut roomy, &batch, &values, Dropout::NONE);
    let alone: Vec<_> = parts
        .iter()
        .map(|part| gradient(&mut roomy, part, &values, Dropout::NONE))
        .collect();
    // Refused altogether, in parts alone, and not.
    let mut seen = [0; 3];
    for kib in std::iter::successors(Some(16), |kib| Some(kib + kib / 8)).take_while(|k| *k < 4096)
    {
        let mut learner = with(Some(kib << 10));
        let mut sum = vec![0.0; values.len()];
        let found = learner.accumulate(&batch, &values, Dropout::NONE, &mut sum);
        match found {
            Ok(_) => {
                let found = gradient(&mut learner, &batch, &values, Dropout::NONE);
                assert!(found == whole, "{kib} KiB");
                seen[2] += 1;
                continue;
            }
            Err(LearnError::OutOfMemory { tokens, message }) => {
                assert_eq!(tokens, batch.tokens());
                assert!(message.contains("tokens at once need"), "{message}");
                assert!(sum.iter().all(|g| *g == 0.0), "nothing was computed");
            }
            Err(other) => panic!("{other}"),
        }
        let scores = parts.iter().zip(&alone).filter(|(part, expected)| {
            let mut sum = vec![0.0; values.len()];
            let fits = learner.accumulate(part, &values, Dropout::NONE, &mut sum);
            assert!(fits.is_err() || sum == expected.1, "{kib} KiB");
            fits.is_ok()
        });
        seen[usize::from(scores.count() == parts.len())] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    // What looks itself how much there is finds enough for so little.
    let found = gradient(&mut with(None), &batch, &values, Dropout::NONE);
    assert!(found == whole);
}

#[test]
fn packed_is_as_unpacked() {
    let dtypes = [DType::Float32, DType::BFloat16];
    for (name, dtype) in ["mistral", "gemma3"]
        .into_iter()
        .flat_map(|name| dtypes.map(|d| (name, d)))
    {
        let tiny = Tiny::read(name);
        let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
        let parameters = parameters(&config, &Linear::ALL, 4, false);
        let (batch, values) = (batch(tiny.tokens()), values(&parameters, 1));
        let options = LearnOptions {
            dtype,
            ..in_f32(Kernels::best())
        };
        let mut learner = learner(tiny.dir(), &parameters, &options);
        let dropout = Dropout {
            probability: 0.2,
            seed: 2,
            step: 3,
        };
        let (losses, packed) = gradient(&mut learner, &batch, &values, dropout);
        let mut alone = vec![0.0; values.len()];
        for (segment, loss) in batch.segments.iter().zip(losses) {
            let one = Batch {
                segments: vec![segment.clone()],
            };
            let scores = learner.accumulate(&one, &values, dropout, &mut alone);
            let score = scores.unwrap()[0];
            assert!((score.loss - loss).abs() <= 1e-5 * loss);
        }
        let most = packed.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let apart = packed.iter().zip(&alone).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0, f32::max);
        assert!(apart <= 1e-5 * most, "{name}: {apart} of {most}");
    }
}

/// The negative log-likelihood that logits of serving give.
fn served(rows: &[Vec<f32>], segment: &Segment) -> (f64, u32) {
    let (mut loss, mut correct) = (0.0, 0);
    for position in (1..segment.tokens.len()).filter(|i| segment.trained[*i]) {
        let row = &rows[position - 1];
        let most = row.iter().fold(f32::MIN, |a, b| a.max(*b));
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        let logit = row[segment.tokens[position] as usize];
        loss += f64::from(most) + sum.ln() - f64::from(logit);
        correct += u32::from(logit >= most);
    }
    (loss, correct)
}

#[track_caller]
fn scores_as_served(dir: &Path, tokens: &[u32], dtype: DType, tolerance: f64) {
    let options = LoadOptions {
        dtype,
        kv_cache_bytes: Some(64 << 20),
        threads: Some(2),
        ..LoadOptions::default()
    };
    let mut backend = load(dir, &options).unwrap();
    let (config, _) = DecoderConfig::read(dir).unwrap();
    let parameters = parameters(&config, &[Linear::Query], 2, false);
    let options = LearnOptions {
        dtype,
        ..in_f32(Kernels::best())
    };
    let mut learner = learner(dir, &parameters, &options);
    let batch = batch(tokens);
    let zeros = vec![0.0; parameters.len];
    let base = learner.score(&batch, Policy::Base).unwrap();
    assert_eq!(
        base,
        learner.score(&batch, Policy::Adapter(&zeros)).unwrap()
    );
    for (segment, score) in batch.segments.iter().zip(base) {
        let rows = logits(&mut backend, &segment.tokens, Way::Whole);
        let (loss, correct) = served(&rows, segment);
        assert!(
            (score.loss - loss).abs() <= tolerance * loss,
            "{}: {} and {loss}",
            dir.display(),
            score.loss
        );
        let trained = segment.trained.iter().filter(|trained| **trained).count();
        assert_eq!((score.tokens as usize, score.correct), (trained, correct));
    }
}

#[test]
fn losses_are_those_of_the_logits_that_are_served() {
    for name in TINY {
        let tiny = Tiny::read(name);
        scores_as_served(tiny.dir(), tiny.tokens(), DType::Float32, 1e-5);
        // Serving keeps keys and values in 16 bits, and learning does not.
        scores_as_served(tiny.dir(), tiny.tokens(), DType::BFloat16, 3e-3);
    }
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let tokens = &golden.case("chat").tokens;
    scores_as_served(&model.dir(), tokens, DType::Float32, 1e-5);
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let tiny = Tiny::read("tied");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let good = parameters(&config, &Linear::ALL, 4, false);
    let refuse = |change: &dyn Fn(&mut Parameters)| {
        let mut bad = good.clone();
        change(&mut bad);
        let outcome = CpuLearner::load(tiny.dir(), bad, &LearnOptions::default());
        outcome.err().unwrap()
    };
    assert!(matches!(refuse(&|p| p.parts.clear()), E::Empty));
    assert!(matches!(
        refuse(&|p| p.parts[0].site = Site::Head),
        E::Place(Site::Head)
    ));
    let far = Site::Layer(2, Linear::Up);
    assert!(matches!(refuse(&|p| p.parts[3].site = far), E::Absent(site) if site == far));
    let twice = |p: &mut Parameters| {
        let part = p.parts[4].clone();
        p.parts[5] = Part {
            b: p.parts[5].b.clone(),
            ..part
        };
    };
    assert!(matches!(refuse(&twice), E::Twice(_)));
    assert!(matches!(
        refuse(&|p| p.len -= 1),
        E::Size { factor: 'B', .. }
    ));
    assert!(matches!(
        refuse(&|p| p.parts[0].rank = 5),
        E::Size { factor: 'A', .. }
    ));
    assert!(matches!(
        refuse(&|p| p.parts[0].scaling = f32::NAN),
        E::Scaling(_)
    ));
    assert!(matches!(
        refuse(&|p| p.parts[2].magnitude = Some(0..8)),
        E::Magnitude(_)
    ));
    let shares = |p: &mut Parameters| p.parts[4].a = p.parts[0].a.clone();
    assert!(matches!(refuse(&shares), E::Shared { factor: 'A', .. }));
}

#[test]
fn batches_that_cannot_be_read_say_why() {
    let tiny = Tiny::read("tied");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let parameters = parameters(&config, &[Linear::Down], 4, false);
    let mut learner = learner(tiny.dir(), &parameters, &in_f32(Kernels::best()));
    let good = batch(tiny.tokens());
    let mut refuse = |change: &dyn Fn(&mut Batch), part: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = learner.score(&bad, Policy::Base).unwrap_err();
        assert!(
            matches!(error, LearnError::Batch(_)) && error.to_string().contains(part),
            "{error}"
        );
    };
    refuse(&|b| b.segments.clear(), "no segments");
    refuse(&|b| b.segments[1].tokens[3] = 64, "token 64");
    refuse(&|b| b.segments[1].trained.truncate(3), "of 3");
    refuse(&|b| b.segments[0].tokens.truncate(1), "1 tokens");
    refuse(&|b| b.segments[0].tokens.resize(129, 0), "129 tokens");
    let values = values(&parameters, 1);
    let mut short = vec![0.0; values.len() - 1];
    let error = learner.accumulate(&good, &values, Dropout::NONE, &mut short);
    assert!(matches!(error, Err(LearnError::Batch(_))));
    assert!(learner.score(&good, Policy::Adapter(&short)).is_err());
}

#[test]
fn a_batch_without_trained_tokens_has_no_gradient() {
    let tiny = Tiny::read("tied");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let parameters = parameters(&config, &[Linear::Down], 4, false);
    let mut learner = learner(tiny.dir(), &parameters, &in_f32(Kernels::best()));
    let mut batch = batch(tiny.tokens());
    for segment in &mut batch.segments {
        segment.trained.fill(false);
    }
    let values = values(&parameters, 1);
    let (losses, gradient) = gradient(&mut learner, &batch, &values, Dropout::NONE);
    assert!(losses.iter().all(|loss| *loss == 0.0) && gradient.iter().all(|g| *g == 0.0));
}

#[test]
fn numbers_that_are_not_finite_are_an_answer() {
    let tiny = Tiny::read("tied");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let parameters = parameters(&config, &[Linear::Down], 4, false);
    let mut learner = learner(tiny.dir(), &parameters, &in_f32(Kernels::best()));
    let mut values = values(&parameters, 1);
    values[0] = f32::NAN;
    let (losses, gradient) = gradient(&mut learner, &batch(tiny.tokens()), &values, Dropout::NONE);
    assert!(losses.iter().all(|loss| loss.is_nan()) && gradient.iter().any(|g| g.is_nan()));
}
