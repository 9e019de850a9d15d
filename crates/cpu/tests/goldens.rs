//! Logits, greedy tokens and perplexity against Hugging Face transformers, with every set of
//! kernels that this processor has.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use hyprstream_cpu::{CpuBackend, Kernels, LoadOptions, Quantization, SAMPLE_TEXT, load};
use hyprstream_engine::Tokenizer;
use hyprstream_goldens::{RealModel, TINY, Tiny, Way, greedy, logits};
use hyprstream_models::DType;

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|set| set.available())
}

fn backend(dir: &Path, dtype: DType, quantization: Quantization, kernels: Kernels) -> CpuBackend {
    let sample = if quantization == Quantization::Int4 {
        let tokenizer = Tokenizer::load(dir).unwrap();
        tokenizer.encode(SAMPLE_TEXT, true).unwrap()
    } else {
        Vec::new()
    };
    let options = LoadOptions {
        dtype,
        quantization,
        kernels: Some(kernels),
        max_batch: 4,
        kv_cache_bytes: Some(256 << 20),
        sample,
        ..LoadOptions::default()
    };
    load(dir, &options).unwrap()
}

fn f32_backend(dir: &Path, kernels: Kernels) -> CpuBackend {
    backend(dir, DType::Float32, Quantization::None, kernels)
}

#[test]
fn every_tiny_model_agrees_with_transformers() {
    for kernels in sets() {
        for name in TINY {
            let tiny = Tiny::read(name);
            tiny.check(&mut f32_backend(tiny.dir(), kernels));
        }
    }
}

#[test]
fn smollm2_agrees_with_transformers() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    golden.check(&mut f32_backend(&model.dir(), Kernels::best()));
}

#[test]
fn gemma3_agrees_with_transformers() {
    let model = RealModel::Gemma3;
    let golden = model.golden();
    golden.check(&mut f32_backend(&model.dir(), Kernels::best()));
}

#[test]
fn slower_kernels_agree_with_transformers_too() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let case = golden.case("chat");
    for kernels in sets() {
        let worst = case.worst(&mut f32_backend(&model.dir(), kernels), Way::Mixed);
        assert!(
            worst < hyprstream_goldens::TOLERANCE,
            "{kernels}: off by {worst}"
        );
    }
}

#[test]
fn the_way_through_the_model_does_not_change_a_bit() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let case = golden.case("chat");
    for quantization in [Quantization::None, Quantization::Int8, Quantization::Int4] {
        let mut backend = backend(&model.dir(), DType::Auto, quantization, Kernels::best());
        let whole = logits(&mut backend, &case.tokens, Way::Whole);
        for way in [Way::Chunks(7), Way::Chunks(1), Way::Mixed] {
            let other = logits(&mut backend, &case.tokens, way);
            assert!(whole == other, "{quantization} {way:?}");
        }
    }
}

#[test]
fn bfloat16_gives_the_answer_of_f32_with_all_kernels() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let case = golden.case("chat");
    for kernels in sets() {
        let mut backend = backend(&model.dir(), DType::BFloat16, Quantization::None, kernels);
        // "The capital of France is Paris." and the end of the turn.
        let answer = greedy(&mut backend, &case.tokens, 8);
        assert_eq!(answer, case.greedy[..8], "{kernels}");
    }
}

#[test]
fn fewer_bits_rank_the_same_tokens_first_with_all_kernels() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let case = golden.case("chat");
    for kernels in sets() {
        for quantization in [Quantization::Int8, Quantization::Int4] {
            let mut backend = backend(&model.dir(), DType::BFloat16, quantization, kernels);
            let rows = logits(&mut backend, &case.tokens, Way::Whole);
            let last = rows.last().unwrap();
            // The two likeliest first tokens are 0.1 apart, so that either may win.
            let best = case.greedy[0] as usize;
            let before = last.iter().filter(|logit| **logit > last[best]).count();
            assert!(
                before < 3,
                "{kernels} {quantization}: {before} tokens are likelier"
            );
        }
    }
}

#[test]
fn perplexity_is_that_of_transformers() {
    for model in [RealModel::SmolLm2, RealModel::Gemma3] {
        let (text, dir) = (model.perplexity(), model.dir());
        let check = |dtype, quantization, exact: f64, tolerance: f64| {
            let mut backend = backend(&dir, dtype, quantization, Kernels::best());
            text.check(&mut backend, exact, tolerance);
        };
        check(DType::Float32, Quantization::None, text.float32(), 0.001);
        check(DType::BFloat16, Quantization::None, text.bfloat16(), 0.005);
        check(DType::BFloat16, Quantization::Int8, text.bfloat16(), 0.005);
        check(DType::BFloat16, Quantization::Int4, text.bfloat16(), 0.03);
    }
}
