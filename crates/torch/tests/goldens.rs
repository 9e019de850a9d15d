//! Logits, greedy tokens and perplexity against Hugging Face transformers.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use hyprstream_goldens::{RealModel, TINY, Tiny, Way, logits};
use hyprstream_torch::{DType, Device, LoadOptions, TorchBackend, load};

fn backend(dir: &Path, dtype: DType) -> TorchBackend {
    let device = std::env::var("HYPRSTREAM_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let options = LoadOptions {
        device: device.parse::<Device>().unwrap(),
        dtype,
        max_batch: 4,
        kv_cache_bytes: Some(256 << 20),
        ..LoadOptions::default()
    };
    load(dir, &options).unwrap()
}

#[test]
fn every_tiny_model_agrees_with_transformers() {
    for name in TINY {
        let tiny = Tiny::read(name);
        tiny.check(&mut backend(tiny.dir(), DType::Float32));
    }
}

#[test]
fn smollm2_agrees_with_transformers() {
    let model = RealModel::SmolLm2;
    model
        .golden()
        .check(&mut backend(&model.dir(), DType::Float32));
}

#[test]
fn gemma3_agrees_with_transformers() {
    let model = RealModel::Gemma3;
    model
        .golden()
        .check(&mut backend(&model.dir(), DType::Float32));
}

#[test]
fn smollm2_in_bfloat16_gives_the_answer_of_f32() {
    let model = RealModel::SmolLm2;
    let golden = model.golden();
    let case = golden.case("chat");
    let mut backend = backend(&model.dir(), DType::BFloat16);
    // "The capital of France is Paris." and the end of the turn, up to ties: the first two tokens
    // are 0.1 apart, and at 25 neighbours in bf16 are 0.125 apart.
    let said = &case.greedy[..8];
    let tokens = [&case.tokens[..], said].concat();
    let all = logits(&mut backend, &tokens, Way::Whole);
    let rows = &all[case.tokens.len() - 1..];
    for (i, (row, &token)) in rows.iter().zip(said).enumerate() {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let behind = best - row[token as usize];
        assert!(behind <= 0.25, "token {i}: {behind} behind the best");
    }
    // 8 bits of mantissa: logits of up to 30 are off by some tenths after 30 layers.
    for way in [Way::Whole, Way::Mixed] {
        let worst = case.worst(&mut backend, way);
        assert!(worst < 1.0, "{way:?}: off by {worst}");
    }
}

#[test]
#[ignore = "takes minutes, and finds what the logits find"]
fn perplexity_is_that_of_transformers() {
    for model in [RealModel::SmolLm2, RealModel::Gemma3] {
        let text = model.perplexity();
        let dir = model.dir();
        text.check(&mut backend(&dir, DType::Float32), text.float32(), 0.001);
        text.check(&mut backend(&dir, DType::BFloat16), text.bfloat16(), 0.005);
    }
}
