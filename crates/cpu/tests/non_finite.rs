//! Numbers that are not finite: refused when a model is loaded, and never hidden in a step.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, ops::Range, path::Path};

use hyprstream_cpu::{CpuBackend, Kernels, LoadOptions, Quantization, load};
use hyprstream_goldens::{Tiny, Way, logits};
use hyprstream_models::{DType, LoadError};
use serde_json::Value;

const ALL: [Quantization; 3] = [Quantization::None, Quantization::Int8, Quantization::Int4];

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|set| set.available())
}

/// A copy of a tiny model whose weights can be changed.
struct Copy {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
    header: Value,
    data: usize,
}

impl Copy {
    /// A model with the tensors of a tiny one, but sizes that fewer bits can have and other weights.
    fn of(name: &str) -> Self {
        let (tiny, dir) = (Tiny::read(name), tempfile::tempdir().unwrap());
        let config = fs::read(tiny.dir().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        let narrow = config["intermediate_size"].as_u64().unwrap();
        let wide = narrow.next_multiple_of(32);
        config["intermediate_size"] = wide.into();
        let config = serde_json::to_vec(&config).unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        let bytes = fs::read(tiny.dir().join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut random = fastrand::Rng::with_seed(8);
        let mut data = Vec::new();
        for (name, entry) in header.as_object_mut().unwrap() {
            if name == "__metadata__" {
                continue;
            }
            let mut count = 1;
            for size in entry["shape"].as_array_mut().unwrap() {
                let old = size.as_u64().unwrap();
                let new = match old {
                    _ if old == narrow => wide,
                    // Gate and up in one.
                    _ if old == 2 * narrow => 2 * wide,
                    _ => old,
                };
                *size = new.into();
                count *= new;
            }
            let start = data.len();
            for _ in 0..count {
                // Of all types that are 16 bits wide this is a small number.
                let [low, high] = random.u16(0x3c00..0x3d00).to_le_bytes();
                match entry["dtype"].as_str().unwrap() {
                    "F32" => data.extend((random.f32() * 0.2 - 0.1).to_le_bytes()),
                    _ => data.extend([low, high]),
                }
            }
            entry["data_offsets"] = serde_json::json!([start, data.len()]);
        }
        let text = serde_json::to_vec(&header).unwrap();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&text);
        bytes.extend(data);
        Self {
            dir,
            header,
            data: 8 + text.len(),
            bytes,
        }
    }

    fn names(&self) -> Vec<String> {
        let tensors = self.header.as_object().unwrap().keys();
        tensors.filter(|n| *n != "__metadata__").cloned().collect()
    }

    /// Where number `at` of a tensor lies; negative counts from the end.
    fn place(&self, tensor: &str, at: isize) -> (Range<usize>, String) {
        let entry = &self.header[tensor];
        let dtype = entry["dtype"].as_str().unwrap().to_owned();
        let width = if dtype == "F32" { 4 } else { 2 };
        let offset = |i: usize| self.data + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let count = (offset(1) - offset(0)) / width;
        let at = offset(0) + width * at.rem_euclid(count as isize) as usize;
        (at..at + width, dtype)
    }

    /// Writes the model with one number replaced by `value`.
    fn write(&self, tensor: &str, at: isize, value: f32) -> &Path {
        let (range, dtype) = self.place(tensor, at);
        let mut bytes = self.bytes.clone();
        let little = value.to_bits().to_le_bytes();
        let half = match (dtype.as_str(), value.is_nan()) {
            // The upper half of an f32 is a bf16.
            ("BF16", _) => [little[2], little[3]],
            ("F16", true) => 0x7e00_u16.to_le_bytes(),
            ("F16", false) => (0x7c00_u16 | u16::from(little[3] & 0x80) << 8).to_le_bytes(),
            _ => [0; 2],
        };
        let new: &[u8] = if dtype == "F32" { &little } else { &half };
        bytes[range].copy_from_slice(new);
        fs::write(self.dir.path().join("model.safetensors"), bytes).unwrap();
        self.dir.path()
    }
}

fn loaded(
    dir: &Path,
    dtype: DType,
    quantization: Quantization,
    kernels: Kernels,
) -> Result<CpuBackend, LoadError> {
    let options = LoadOptions {
        dtype,
        quantization,
        kernels: Some(kernels),
        max_batch: 2,
        threads: Some(2),
        kv_cache_bytes: Some(4 << 20),
        ..LoadOptions::default()
    };
    load(dir, &options)
}

#[test]
fn every_tensor_with_a_number_that_is_not_finite_is_refused_by_name() {
    for (model, bad) in [
        ("biases", f32::NAN),
        ("llama3", f32::INFINITY),
        ("gemma3", f32::NEG_INFINITY),
        ("phi3", f32::NAN),
        ("qwen3", f32::NAN),
    ] {
        let copy = Copy::of(model);
        for tensor in copy.names() {
            for (at, quantization) in [
                (0, Quantization::None),
                (-1, Quantization::Int8),
                (7, Quantization::Int4),
            ] {
                let dir = copy.write(&tensor, at, bad);
                let loaded = loaded(dir, DType::Auto, quantization, Kernels::best());
                let error = loaded
                    .err()
                    .unwrap_or_else(|| panic!("{model} {tensor} was taken"));
                assert_eq!(error.reason(), "InvalidWeights", "{error}");
                let told = error.to_string();
                assert!(told.contains(&format!("{tensor:?} holds")), "{told}");
                assert!(
                    told.contains(if bad.is_nan() { "NaN" } else { "inf" }),
                    "{told}"
                );
            }
        }
    }
}

#[test]
fn a_weight_that_is_too_large_is_refused_with_what_holds_it() {
    let copy = Copy::of("yarn");
    let tensor = "model.layers.1.mlp.down_proj.weight";
    let dir = copy.write(tensor, 5, 1e9);
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let error = loaded(dir, DType::Float32, quantization, Kernels::best())
            .err()
            .unwrap();
        let told = error.to_string();
        assert!(told.contains(tensor) && told.contains("1e9"), "{told}");
        assert!(told.contains("quantization none"), "{told}");
    }
    assert!(loaded(dir, DType::Float32, Quantization::None, Kernels::best()).is_ok());
}

/// A token whose embedding overflows in the first norm, in a model that loads: the head is a matrix
/// of its own.
#[test]
fn a_step_that_overflows_has_no_logits_that_look_right_and_spoils_no_other() {
    const TOKEN: u32 = 5;
    let copy = Copy::of("yarn");
    let dir = copy.write("model.embed_tokens.weight", TOKEN as isize * 32 + 3, 3e38);
    let others = Tiny::read("yarn").tokens().to_vec();
    let others: Vec<u32> = others.into_iter().filter(|t| *t != TOKEN).collect();
    let mut spoilt = others[..20].to_vec();
    spoilt[9] = TOKEN;
    for kernels in sets() {
        for quantization in ALL {
            for dtype in [DType::Float32, DType::BFloat16] {
                let mut backend = loaded(dir, dtype, quantization, kernels).unwrap();
                let before = logits(&mut backend, &others, Way::Whole);
                assert!(before.iter().flatten().all(|l| l.is_finite()));
                for way in [Way::Whole, Way::Chunks(7), Way::Chunks(1)] {
                    let rows = logits(&mut backend, &spoilt, way);
                    for row in &rows[9..] {
                        let finite = row.iter().filter(|l| l.is_finite()).count();
                        assert_eq!(finite, 0, "{kernels} {quantization} {dtype} {way:?}");
                    }
                    // The same blocks, which are full of NaN now.
                    let after = logits(&mut backend, &others, way);
                    assert!(before == after, "{kernels} {quantization} {dtype} {way:?}");
                }
            }
        }
    }
}
