//! What the backend refuses, and that it survives it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use hyprstream_engine::{Backend, BackendError, SequenceStep, StepBatch};
use hyprstream_torch::{DType, Device, LoadOptions, TorchBackend, load};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/data/tied")
}

fn options() -> LoadOptions {
    LoadOptions {
        device: Device::Cpu,
        dtype: DType::Float32,
        max_model_len: Some(64),
        max_batch: 2,
        ..LoadOptions::default()
    }
}

fn step(backend: &mut TorchBackend, step: SequenceStep) -> Result<Vec<f32>, BackendError> {
    let mut out = backend.step(&StepBatch {
        sequences: vec![step],
    })?;
    Ok(out.rows_mut().flat_map(|row| row.to_vec()).collect())
}

/// The reason and text with which a model is refused whose files were changed.
#[track_caller]
fn refusal(change: impl Fn(&Path), options: &LoadOptions) -> (&'static str, String) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny().join(name), dir.path().join(name)).unwrap();
    }
    change(dir.path());
    let error = load(dir.path(), options).unwrap_err();
    (error.reason(), error.to_string())
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let poison = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        // In every type this is a NaN.
        bytes.iter_mut().rev().take(4).for_each(|byte| *byte = 0xff);
        std::fs::write(path, bytes).unwrap();
    };
    for dtype in [DType::Float32, DType::BFloat16] {
        let options = LoadOptions { dtype, ..options() };
        let (reason, told) = refusal(poison, &options);
        assert_eq!(reason, "InvalidWeights");
        assert!(told.contains("holds NaN at ["), "{told}");
    }
}

#[test]
fn the_cache_is_as_large_as_asked_for_and_no_larger_than_useful() {
    let backend = load(&tiny(), &options()).unwrap();
    let spec = backend.spec();
    assert_eq!(
        (spec.max_positions, spec.block_size, spec.num_blocks),
        (64, 16, 8)
    );
    // 2 layers, key and value of 2 heads of 8 values.
    assert_eq!(spec.kv_cache_bytes, 8 * 16 * (2 * 2 * 2 * 8 * 4));
    let five = LoadOptions {
        kv_cache_bytes: Some(5 * 16 * 256),
        ..options()
    };
    assert_eq!(load(&tiny(), &five).unwrap().spec().num_blocks, 5);
    // Without a wish for the length, the model is served as far as the cache goes.
    let short = LoadOptions {
        kv_cache_bytes: Some(3 * 16 * 256),
        max_model_len: None,
        ..options()
    };
    assert_eq!(load(&tiny(), &short).unwrap().spec().max_positions, 48);
}

#[test]
fn a_step_out_of_bounds_fails_and_the_next_one_works() {
    let mut backend = load(&tiny(), &options()).unwrap();
    let good = SequenceStep {
        tokens: vec![1, 2, 3],
        blocks: vec![0],
        ..SequenceStep::default()
    };
    let before = step(&mut backend, good.clone()).unwrap();
    assert_eq!(before.len(), 64);
    for (wrong, why) in [
        (
            SequenceStep {
                tokens: vec![],
                ..good.clone()
            },
            "no new tokens",
        ),
        (
            SequenceStep {
                tokens: vec![64],
                ..good.clone()
            },
            "token 64",
        ),
        (
            SequenceStep {
                blocks: vec![8],
                ..good.clone()
            },
            "block 8",
        ),
        (
            SequenceStep {
                position: 14,
                ..good.clone()
            },
            "cannot hold",
        ),
        (
            SequenceStep {
                position: 62,
                blocks: (0..5).collect(),
                ..good.clone()
            },
            "exceeds 64",
        ),
        (
            SequenceStep {
                position: usize::MAX,
                ..good.clone()
            },
            "exceeds 64",
        ),
    ] {
        match step(&mut backend, wrong) {
            Err(BackendError::Step(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert!(matches!(
        backend.step(&StepBatch::default()),
        Err(BackendError::Step(_))
    ));
    assert_eq!(step(&mut backend, good).unwrap(), before);
}

#[test]
fn models_that_cannot_be_served_are_refused_with_a_reason() {
    let remove =
        |name: &'static str| move |dir: &Path| std::fs::remove_file(dir.join(name)).unwrap();
    let edit = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let path = dir.join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(path, text.replace(from, to)).unwrap();
        }
    };
    let truncate = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let options = options();
    let nothing = |_: &Path| {};
    assert_eq!(refusal(remove("config.json"), &options).0, "MissingFile");
    assert_eq!(
        refusal(remove("model.safetensors"), &options).0,
        "MissingFile"
    );
    let (reason, text) = refusal(edit("LlamaForCausalLM", "FooForCausalLM"), &options);
    assert_eq!(reason, "UnsupportedArchitecture");
    assert!(text.contains("FooForCausalLM"), "{text}");
    assert_eq!(refusal(edit("silu", "relu"), &options).0, "InvalidConfig");
    let (reason, text) = refusal(edit("\"vocab_size\": 64", "\"vocab_size\": 65"), &options);
    assert_eq!(reason, "InvalidWeights");
    assert!(text.contains("model.embed_tokens.weight"), "{text}");
    assert_eq!(refusal(truncate, &options).0, "InvalidWeights");
    let long = LoadOptions {
        max_model_len: Some(129),
        ..options.clone()
    };
    assert_eq!(refusal(nothing, &long).0, "InvalidConfig");
    let small = LoadOptions {
        kv_cache_bytes: Some(3 * 16 * 256),
        ..options.clone()
    };
    assert_eq!(refusal(nothing, &small).0, "OutOfMemory");
    let gpu = LoadOptions {
        device: Device::Cuda(63),
        ..options
    };
    assert_eq!(refusal(nothing, &gpu).0, "UnavailableDevice");
}
