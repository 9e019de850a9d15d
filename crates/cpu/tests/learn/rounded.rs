//! What rows that are rounded to bf16 before they meet weights of bf16 change, beside the same learner
//! with exact products.

use hyprstream_cpu::{CpuLearner, Kernels, LearnLoadError, LearnOptions};
use hyprstream_goldens::{TINY, Tiny};
use hyprstream_models::{DType, DecoderConfig, adapter::Linear};
use hyprstream_training::{AdamW, Dropout, Moments, Parameters, clip, norm};

use crate::{batch, gradient, in_f32, learner, parameters, sets, values};

fn options(kernels: Kernels, products: DType) -> LearnOptions {
    LearnOptions {
        dtype: DType::BFloat16,
        products,
        ..in_f32(kernels)
    }
}

/// How far apart two gradients of a tensor are, as part of the second's length, and the cosine of the
/// angle between them.
fn apart(ours: &[f32], other: &[f32]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let difference: Vec<f32> = ours.iter().zip(other).map(|(a, b)| a - b).collect();
    let length = |a: &[f32]| dot(a, a).sqrt();
    let (ours_length, other_length) = (length(ours), length(other));
    (
        length(&difference) / other_length,
        dot(ours, other) / (ours_length * other_length),
    )
}

/// The largest part and the smallest cosine over all factors.
fn furthest(parameters: &Parameters, ours: &[f32], other: &[f32]) -> (f64, f64) {
    let ranges = parameters.parts.iter().flat_map(|part| [&part.a, &part.b]);
    let each = ranges.map(|range| apart(&ours[range.clone()], &other[range.clone()]));
    each.fold((0.0, 1.0), |(part, cosine): (f64, f64), (p, c)| {
        (part.max(p), cosine.min(c))
    })
}

#[test]
fn rounded_rows_change_losses_and_gradients_by_little() {
    for name in TINY {
        let tiny = Tiny::read(name);
        let batch = batch(tiny.tokens());
        let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
        let parameters = parameters(&config, &Linear::ALL, 4, false);
        let values = values(&parameters, 5);
        let of = |kernels, products| {
            let mut learner = learner(tiny.dir(), &parameters, &options(kernels, products));
            gradient(&mut learner, &batch, &values, Dropout::NONE)
        };
        let mut first: Option<Vec<f32>> = None;
        for kernels in sets() {
            let (exact_losses, exact) = of(kernels, DType::Float32);
            let (losses, rounded) = of(kernels, DType::Auto);
            let (part, cosine) = furthest(&parameters, &rounded, &exact);
            let loss = losses.iter().zip(&exact_losses);
            let loss = loss.map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
            let first = first.get_or_insert_with(|| rounded.clone());
            let (other, _) = furthest(&parameters, &rounded, first);
            let what = format!("{name} {kernels}");
            assert!(part > 5e-3, "{what}: {part}, so nothing was rounded");
            // Of a rounded row 2^-9 of its length is lost, or less, in each of 14 products both ways.
            assert!(
                part < 0.06,
                "{what}: gradients differ by {part} of their length"
            );
            assert!(
                cosine > 0.998,
                "{what}: the cosine of gradients is {cosine}"
            );
            assert!(loss < 2e-3, "{what}: losses differ by {loss} of themselves");
            // Sums that differ in their last bits are rounded to the other side now and then.
            assert!(other < 0.01, "{what}: sets differ by {other}");
        }
    }
}

#[test]
fn losses_of_sixty_updates_are_those_of_exact_products() {
    const UPDATES: u64 = 60;
    for name in ["llama3", "gemma3"] {
        let tiny = Tiny::read(name);
        let batch = batch(tiny.tokens());
        let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
        let parameters = parameters(&config, &Linear::ALL, 4, false);
        let losses = [DType::Auto, DType::Float32].map(|products| {
            let mut learner = learner(tiny.dir(), &parameters, &options(Kernels::best(), products));
            let mut values = values(&parameters, 5);
            let mut moments = Moments::zeros(values.len());
            let each = (1..=UPDATES).map(|update| {
                let (losses, mut of_all) = gradient(&mut learner, &batch, &values, Dropout::NONE);
                let length = norm(&of_all);
                clip(&mut of_all, length, 1.0);
                AdamW::default().update(&mut values, &mut moments, &of_all, 3e-3, update);
                losses.iter().sum::<f64>()
            });
            each.collect::<Vec<f64>>()
        });
        let [rounded, exact] = losses;
        let (first, last) = (exact[0], exact[exact.len() - 1]);
        assert!(
            last < 0.8 * first,
            "{name}: {last} after {first} is not learnt"
        );
        for (update, (rounded, exact)) in rounded.iter().zip(&exact).enumerate() {
            assert!(
                (rounded - exact).abs() <= 0.01 * exact,
                "{name}, update {update}: {rounded}, and {exact} with exact products"
            );
        }
    }
}

#[test]
fn products_that_the_weights_do_not_have_are_refused() {
    let tiny = Tiny::read("tied");
    let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
    let parameters = parameters(&config, &[Linear::Down], 4, false);
    for (dtype, products) in [
        (DType::Float32, DType::BFloat16),
        (DType::BFloat16, DType::Float16),
    ] {
        let options = LearnOptions {
            dtype,
            products,
            ..LearnOptions::default()
        };
        let error = CpuLearner::load(tiny.dir(), parameters.clone(), &options)
            .err()
            .unwrap();
        assert!(
            matches!(error, LearnLoadError::Products(p) if p == products),
            "{error}"
        );
    }
}
