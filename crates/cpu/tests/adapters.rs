//! Adapters against PEFT: what the reader makes of PEFT's files gives PEFT's logits, merged into the
//! weights and attached beside them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use hyprstream_cpu::{CpuBackend, LoadOptions, load};
use hyprstream_engine::{AdapterId, Backend as _};
use hyprstream_goldens::{
    ADAPTED, ADAPTER_TOLERANCE, Adapters, Way, Written, logits, logits_with, worst,
};
use hyprstream_models::{DType, adapter::Adapter};
use sha2::{Digest as _, Sha256};

fn backend(dir: &Path) -> CpuBackend {
    let options = LoadOptions {
        dtype: DType::Float32,
        max_batch: 1,
        kv_cache_bytes: Some(4 << 20),
        threads: Some(1),
        ..LoadOptions::default()
    };
    load(dir, &options).unwrap()
}

/// Runs the model with a stack merged into it.
#[track_caller]
fn check(model: &Adapters, name: &str, stack: &[(&Adapter, f32)], expected: &[Vec<f32>]) {
    let dir = model.merged(stack);
    let ours = logits(&mut backend(dir.path()), model.tokens(), Way::Whole);
    let worst = worst(&ours, expected);
    assert!(
        worst < ADAPTER_TOLERANCE,
        "{name}: a logit is off by {worst}"
    );
}

#[test]
fn every_adapter_gives_the_logits_of_peft() {
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        let mut digests = BTreeSet::new();
        for case in adapters.cases() {
            let adapter = adapters.adapter(case);
            let name = format!("{model}/{case}");
            check(&adapters, &name, &[(&adapter, 1.0)], &adapters.logits(case));
            assert!(digests.insert(adapter.digest()), "{name}: a digest twice");
        }
    }
}

#[test]
fn stacks_give_the_sum_that_the_layers_of_peft_compute() {
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        for (name, stack) in adapters.stacks() {
            let read: Vec<_> = stack
                .iter()
                .map(|(case, _)| adapters.adapter(case))
                .collect();
            let scales = stack.iter().map(|(_, scale)| *scale);
            let stack: Vec<_> = read.iter().zip(scales).collect();
            let name_of_all = format!("{model}/{name}");
            check(&adapters, &name_of_all, &stack, &adapters.logits(name));
        }
    }
}

/// A model with all of its adapters attached, by name.
struct Attached {
    backend: CpuBackend,
    ids: BTreeMap<String, AdapterId>,
}

impl Attached {
    fn new(adapters: &Adapters) -> Self {
        let dir = adapters.merged(&[]);
        let mut backend = backend(dir.path());
        let packer = backend.adapter_packer();
        let mut ids = BTreeMap::new();
        for (number, case) in adapters.cases().enumerate() {
            let adapter = adapters.adapter(case);
            let packed = packer.pack(&adapter).unwrap();
            let id = AdapterId::new(number as u64);
            backend.attach(id, packed).unwrap();
            ids.insert(case.to_owned(), id);
        }
        Self { backend, ids }
    }

    /// Runs a stack in every way.
    #[track_caller]
    fn check(&mut self, model: &Adapters, name: &str, stack: &[(&str, f32)]) {
        let ids = stack.iter();
        let ids: Vec<_> = ids.map(|(case, scale)| (self.ids[*case], *scale)).collect();
        for way in Way::ALL {
            let ours = logits_with(&mut self.backend, model.tokens(), way, &ids);
            let worst = worst(&ours, &model.logits(name));
            assert!(
                worst < ADAPTER_TOLERANCE,
                "{name} {way:?}: a logit is off by {worst}"
            );
        }
    }
}

#[test]
fn attached_adapters_and_stacks_give_the_logits_of_peft() {
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        let mut attached = Attached::new(&adapters);
        for case in adapters.cases() {
            attached.check(&adapters, case, &[(case, 1.0)]);
        }
        for (name, stack) in adapters.stacks() {
            let stack: Vec<_> = stack
                .iter()
                .map(|(case, scale)| (case.as_str(), *scale))
                .collect();
            attached.check(&adapters, name, &stack);
        }
        assert!(
            adapters.stacks().count() == 3 && attached.ids.len() > 10,
            "{model}"
        );
    }
}

#[test]
fn a_scale_of_0_is_the_base_with_dora_too() {
    let adapters = Adapters::read("tied");
    let dora = adapters.adapter("dora");
    let base = adapters.merged(&[]);
    let expected = logits(&mut backend(base.path()), adapters.tokens(), Way::Whole);
    let merged = adapters.merged(&[(&dora, 0.0)]);
    let ours = logits(&mut backend(merged.path()), adapters.tokens(), Way::Whole);
    assert!(ours == expected);
    let mut attached = Attached::new(&adapters);
    let dora = [(attached.ids["dora"], 0.0)];
    let ours = logits_with(&mut attached.backend, adapters.tokens(), Way::Whole, &dora);
    assert!(ours == expected);
}

#[test]
fn what_is_written_is_what_peft_has_loaded_and_read_back_the_same() {
    let known = Written::read();
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        for (name, folder, adapter) in adapters.write_some(dir.path()) {
            let known = &known[&name];
            let digest = |file| {
                let bytes = std::fs::read(folder.join(file)).unwrap();
                hex::encode(Sha256::digest(bytes))
            };
            let again = "run write_adapters and make.py written again";
            assert_eq!(
                digest("adapter_model.safetensors"),
                known.tensors_sha256,
                "{again}"
            );
            assert_eq!(
                digest("adapter_config.json"),
                known.config_sha256,
                "{again}"
            );
            check(&adapters, &name, &[(&adapter, 1.0)], &known.logits);
            let files = hyprstream_models::adapter::AdapterFiles::find(&folder).unwrap();
            let back = adapters.load(&files);
            check(&adapters, &name, &[(&back, 1.0)], &known.logits);
            // Matrices that are put beside each other are other ones.
            let is_fused = model == "phi3" && ["phi3/own-matrices", "phi3/holes"].contains(&&*name);
            assert_eq!(back.digest() == adapter.digest(), !is_fused, "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, known.len());
}
