//! Logits and greedy tokens against Hugging Face transformers in f32; see `goldens/make.py`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use hyprstream_engine::{Backend, LogitsWanted, SequenceStep, StepBatch};
use hyprstream_torch::{DType, Device, LoadOptions, TorchBackend, load};
use serde::Deserialize;

/// Largest difference of a logit.
const TOLERANCE: f32 = 1e-3;
/// Every way to run a sequence of tokens through the model.
const WAYS: [Way; 4] = [Way::Whole, Way::Chunks(7), Way::Chunks(1), Way::Mixed];

#[derive(Clone, Copy, Debug)]
enum Way {
    Whole,
    Chunks(usize),
    /// In chunks beside two other sequences, one of them decoding, on scattered blocks.
    Mixed,
}

#[derive(Deserialize)]
struct Tiny {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    greedy_from: usize,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct SmolLm2 {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    tokens: Vec<u32>,
    logits: Vec<Vec<(usize, f32)>>,
    greedy: Vec<u32>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

fn f32_backend(dir: &Path) -> TorchBackend {
    backend(dir, DType::Float32)
}

fn backend(dir: &Path, dtype: DType) -> TorchBackend {
    let device = std::env::var("HYPRSTREAM_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let options = LoadOptions {
        device: device.parse::<Device>().unwrap(),
        dtype,
        max_batch: 4,
        kv_cache_bytes: Some(128 << 20),
        ..LoadOptions::default()
    };
    load(dir, &options).unwrap()
}

fn smollm2() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let dir = std::env::var_os("HYPRSTREAM_SMOLLM2").map_or_else(
        || Path::new(&home).join(".cache/hyprstream/weights/smollm2-135m-instruct-0.1.2"),
        PathBuf::from,
    );
    assert!(
        dir.join("model.safetensors").exists(),
        "{} is not there: make it with `cargo xtask weights` or set HYPRSTREAM_SMOLLM2",
        dir.display()
    );
    dir
}

/// Blocks for `tokens` tokens: in a row from `first` on, or every other one, backwards.
fn blocks(first: u32, tokens: usize, scattered: bool) -> Vec<u32> {
    let count = tokens.div_ceil(16) as u32;
    let row = first..first + count;
    if scattered {
        row.rev().map(|b| b * 2 % 97).collect()
    } else {
        row.collect()
    }
}

/// Logits of every position of `tokens`.
fn logits(backend: &mut TorchBackend, tokens: &[u32], way: Way) -> Vec<Vec<f32>> {
    let scattered = matches!(way, Way::Mixed);
    let blocks = blocks(3, tokens.len(), scattered);
    let size = match way {
        Way::Whole => tokens.len(),
        Way::Chunks(size) => size,
        Way::Mixed => 9,
    };
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(size).enumerate() {
        let ours = SequenceStep {
            tokens: piece.to_vec(),
            position: index * size,
            blocks: blocks.clone(),
            logits: LogitsWanted::All,
        };
        let sequences = match way {
            Way::Mixed => vec![
                // Decodes the same token at every step.
                SequenceStep {
                    tokens: vec![5],
                    position: index,
                    blocks: vec![98],
                    logits: LogitsWanted::Last,
                },
                ours,
                SequenceStep {
                    tokens: vec![7; 21],
                    position: 0,
                    blocks: vec![99, 100],
                    logits: LogitsWanted::None,
                },
            ],
            _ => vec![ours],
        };
        let skipped = sequences.len().min(2) - 1;
        let mut out = backend.step(&StepBatch { sequences }).unwrap();
        assert_eq!(out.num_rows(), piece.len() + skipped);
        rows.extend(out.rows_mut().skip(skipped).map(|row| row.to_vec()));
    }
    rows
}

fn greedy(backend: &mut TorchBackend, prompt: &[u32], count: usize) -> Vec<u32> {
    let blocks = blocks(0, prompt.len() + count, false);
    let mut tokens = prompt.to_vec();
    let mut position = 0;
    for _ in 0..count {
        let step = SequenceStep {
            tokens: tokens[position..].to_vec(),
            position,
            blocks: blocks.clone(),
            logits: LogitsWanted::Last,
        };
        position = tokens.len();
        let mut out = backend
            .step(&StepBatch {
                sequences: vec![step],
            })
            .unwrap();
        let row = out.rows_mut().next().unwrap();
        let best = (0..row.len())
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

#[track_caller]
fn assert_tiny_agrees(name: &str) {
    let dir = goldens().join(name);
    let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
    let golden: Tiny = serde_json::from_str(&text).unwrap();
    let mut backend = f32_backend(&dir);
    for way in WAYS {
        let ours = logits(&mut backend, &golden.tokens, way);
        assert_eq!(ours.len(), golden.logits.len());
        for (position, (ours, theirs)) in ours.iter().zip(&golden.logits).enumerate() {
            assert_eq!(ours.len(), theirs.len());
            let worst = ours
                .iter()
                .zip(theirs)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(
                worst < TOLERANCE,
                "{name}, {way:?}, position {position}: off by {worst}"
            );
        }
    }
    let prompt = &golden.tokens[..golden.greedy_from];
    assert_eq!(
        greedy(&mut backend, prompt, golden.greedy.len()),
        golden.greedy,
        "{name}"
    );
}

#[test]
fn grouped_queries_and_a_tied_head_agree_with_transformers() {
    assert_tiny_agrees("tied");
}

#[test]
fn llama3_rope_and_wide_heads_agree_with_transformers() {
    assert_tiny_agrees("llama3");
}

#[test]
fn biases_one_key_head_and_linear_rope_agree_with_transformers() {
    assert_tiny_agrees("biases");
}

#[test]
fn sharded_weights_agree_with_transformers() {
    assert_tiny_agrees("sharded");
}

fn smollm2_golden() -> SmolLm2 {
    let text = std::fs::read_to_string(goldens().join("smollm2.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn smollm2_in_bfloat16_gives_the_answer_of_f32() {
    let golden = smollm2_golden();
    let case = golden.cases.iter().find(|c| c.name == "chat").unwrap();
    let mut backend = backend(&smollm2(), DType::BFloat16);
    // "The capital of France is Paris." and the end of the turn.
    assert_eq!(greedy(&mut backend, &case.tokens, 8), case.greedy[..8]);
    // 8 bits of mantissa: logits of up to 30 are off by some tenths after 30 layers.
    for way in [Way::Whole, Way::Mixed] {
        let ours = logits(&mut backend, &case.tokens, way);
        for (ours, theirs) in ours.iter().zip(&case.logits) {
            for &(token, expected) in theirs {
                let difference = (ours[token] - expected).abs();
                assert!(
                    difference < 1.0,
                    "{way:?}, token {token}: off by {difference}"
                );
            }
        }
    }
}

#[test]
fn smollm2_agrees_with_transformers() {
    let golden = smollm2_golden();
    let mut backend = f32_backend(&smollm2());
    for case in &golden.cases {
        let mut worst = 0.0_f32;
        for way in WAYS {
            let ours = logits(&mut backend, &case.tokens, way);
            assert_eq!(ours.len(), case.logits.len());
            for (position, (ours, theirs)) in ours.iter().zip(&case.logits).enumerate() {
                for &(token, expected) in theirs {
                    let difference = (ours[token] - expected).abs();
                    worst = worst.max(difference);
                    assert!(
                        difference < TOLERANCE,
                        "{}, {way:?}, position {position}, token {token}: off by {difference}",
                        case.name
                    );
                }
            }
        }
        let ours = greedy(&mut backend, &case.tokens, case.greedy.len());
        assert_eq!(ours, case.greedy, "{}", case.name);
        println!(
            "{}: the largest difference of a logit is {worst:.1e}",
            case.name
        );
    }
}
