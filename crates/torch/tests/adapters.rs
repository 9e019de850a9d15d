//! Adapters against PEFT, mixed in batches, and what the packer refuses.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeMap, path::Path};

use hyprstream_engine::{
    AdapterId, Backend as _, BackendError, LogitsWanted, PackedAdapter, SequenceStep, StepBatch,
};
use hyprstream_goldens::{ADAPTED, ADAPTER_TOLERANCE, Adapters, Way, logits, logits_with, worst};
use hyprstream_models::adapter::{Adapter, Linear, LowRank, Matrix, Site};
use hyprstream_torch::{AdapterError, DType, Device, LoadOptions, TorchBackend, load};

type Stack<'a> = [(&'a str, f32)];

fn backend(dir: &Path, dtype: DType) -> TorchBackend {
    let device = std::env::var("HYPRSTREAM_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let options = LoadOptions {
        device: device.parse::<Device>().unwrap(),
        dtype,
        max_batch: 4,
        kv_cache_bytes: Some(4 << 20),
        threads: Some(1),
        ..LoadOptions::default()
    };
    load(dir, &options).unwrap()
}

/// A model with all of its adapters attached, by name.
struct Attached {
    backend: TorchBackend,
    ids: BTreeMap<String, AdapterId>,
}

impl Attached {
    fn new(adapters: &Adapters, dtype: DType) -> Self {
        let dir = adapters.merged(&[]);
        let mut backend = backend(dir.path(), dtype);
        let packer = backend.adapter_packer();
        let mut ids = BTreeMap::new();
        for (number, case) in adapters.cases().enumerate() {
            let adapter = adapters.adapter(case);
            let packed = packer.pack(&adapter).unwrap();
            // As packed, and beside others.
            let least = if dtype == DType::Float32 { 2 } else { 1 } * adapter.bytes();
            assert!((least..=packer.bytes_of(&adapter)).contains(&packed.bytes()));
            let id = AdapterId::new(number as u64);
            backend.attach(id, packed).unwrap();
            ids.insert(case.to_owned(), id);
        }
        Self { backend, ids }
    }

    fn stack(&self, stack: &Stack) -> Vec<(AdapterId, f32)> {
        let ids = stack.iter();
        ids.map(|(case, scale)| (self.ids[*case], *scale)).collect()
    }

    /// Runs a stack in every way.
    #[track_caller]
    fn check(&mut self, model: &Adapters, name: &str, stack: &Stack) {
        let stack = self.stack(stack);
        for way in Way::ALL {
            let ours = logits_with(&mut self.backend, model.tokens(), way, &stack);
            let worst = worst(&ours, &model.logits(name));
            assert!(
                worst < ADAPTER_TOLERANCE,
                "{name} {way:?}: a logit is off by {worst}"
            );
        }
    }

    /// All rows of logits of one step that runs all of `stacks` on the same tokens.
    fn together(&mut self, tokens: &[u32], stacks: &[&Stack]) -> Vec<Vec<Vec<f32>>> {
        let blocks = tokens.len().div_ceil(self.backend.spec().block_size) as u32;
        let sequences = stacks
            .iter()
            .zip(0_u32..)
            .map(|(stack, index)| SequenceStep {
                tokens: tokens.to_vec(),
                position: 0,
                blocks: (index * blocks..(index + 1) * blocks).collect(),
                logits: LogitsWanted::All,
                adapters: self.stack(stack),
            });
        let batch = StepBatch {
            sequences: sequences.collect(),
        };
        let mut out = self.backend.step(&batch).unwrap();
        let rows: Vec<_> = out.rows_mut().map(|row| row.to_vec()).collect();
        rows.chunks(tokens.len()).map(<[_]>::to_vec).collect()
    }
}

#[test]
fn attached_adapters_and_stacks_give_the_logits_of_peft() {
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        let mut attached = Attached::new(&adapters, DType::Float32);
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
fn sequences_of_all_adapters_in_one_step_each_give_the_logits_of_peft() {
    for model in ADAPTED {
        let adapters = Adapters::read(model);
        let mut attached = Attached::new(&adapters, DType::Float32);
        let tokens = adapters.tokens();
        let base = attached.together(tokens, &[&[]]).remove(0);
        let singles: Vec<_> = adapters.cases().map(|case| [(case, 1.0)]).collect();
        let owned: Vec<(&str, Vec<(&str, f32)>)> = adapters
            .stacks()
            .map(|(name, stack)| {
                let stack = stack.iter().map(|(case, scale)| (case.as_str(), *scale));
                (name, stack.collect())
            })
            .collect();
        // Each of them, one without, and all stacks.
        let mut stacks: Vec<&Stack> = singles.iter().map(<[_; 1]>::as_slice).collect();
        stacks.push(&[]);
        stacks.extend(owned.iter().map(|(_, stack)| stack.as_slice()));
        let names = adapters.cases().map(Some).chain([None]);
        let names: Vec<_> = names.chain(owned.iter().map(|(n, _)| Some(*n))).collect();
        let rows = attached.together(tokens, &stacks);
        assert_eq!(rows.len(), names.len());
        for (name, rows) in names.into_iter().zip(rows) {
            let expected = name.map_or_else(|| base.clone(), |name| adapters.logits(name));
            let worst = worst(&rows, &expected);
            assert!(
                worst < ADAPTER_TOLERANCE,
                "{model} {name:?}: off by {worst}"
            );
        }
    }
}

#[test]
fn a_stack_counts_an_adapter_as_often_as_it_is_there() {
    for case in ["all-linear", "dora"] {
        let adapters = Adapters::read("tied");
        let mut attached = Attached::new(&adapters, DType::Float32);
        let tokens = adapters.tokens();
        let stacks: [&Stack; 3] = [
            &[(case, 0.75)],
            &[(case, 1.0), (case, -0.25)],
            &[(case, 0.5)],
        ];
        let rows = attached.together(tokens, &stacks);
        assert!(worst(&rows[0], &rows[1]) < ADAPTER_TOLERANCE, "{case}");
        assert!(worst(&rows[0], &rows[2]) > 0.01, "{case}");
    }
}

#[test]
fn a_step_with_some_of_the_adapters_of_the_step_before_is_as_one_alone() {
    let adapters = Adapters::read("qwen3");
    let mut attached = Attached::new(&adapters, DType::Float32);
    let tokens = adapters.tokens();
    let all: [&Stack; 4] = [
        &[("dora", 1.0)],
        &[("rslora", 0.5)],
        &[("all-linear", 1.0), ("everything", -0.5)],
        &[],
    ];
    let before = attached.together(tokens, &all);
    // Half of what lies beside each other is enough; a quarter is not, and is put together anew.
    for some in [&all[..2], &all[1..3], &all[2..], &all[..1], &all[3..]] {
        let rows = attached.together(tokens, some);
        for (stack, rows) in some.iter().zip(rows) {
            let index = all.iter().position(|other| other == stack).unwrap();
            let off = worst(&rows, &before[index]);
            assert!(off < ADAPTER_TOLERANCE, "{stack:?}: off by {off}");
        }
    }
}

#[test]
fn a_scale_of_0_is_the_base_with_dora_too() {
    let adapters = Adapters::read("tied");
    let mut attached = Attached::new(&adapters, DType::Float32);
    let base = logits(&mut attached.backend, adapters.tokens(), Way::Whole);
    let dora = attached.stack(&[("dora", 0.0)]);
    let ours = logits_with(&mut attached.backend, adapters.tokens(), Way::Whole, &dora);
    assert!(ours == base);
}

#[test]
fn in_16_bits_an_adapter_is_as_exact_beside_the_model_as_merged_into_it() {
    for (dtype, share) in [(DType::BFloat16, 0.1), (DType::Float16, 0.02)] {
        for model in ["tied", "biases", "gemma3"] {
            let adapters = Adapters::read(model);
            let tokens = adapters.tokens();
            let mut attached = Attached::new(&adapters, dtype);
            let base = attached.together(tokens, &[&[]]).remove(0);
            for case in ["all-linear", "everything", "dora"] {
                let expected = adapters.logits(case);
                let stack = attached.stack(&[(case, 1.0)]);
                let ours = logits_with(&mut attached.backend, tokens, Way::Mixed, &stack);
                let off = worst(&ours, &expected);
                let merged = adapters.merged(&[(&adapters.adapter(case), 1.0)]);
                let mut merged = backend(merged.path(), dtype);
                let merged = worst(&logits(&mut merged, tokens, Way::Mixed), &expected);
                let changed = worst(&base, &expected);
                assert!(
                    off < 6.0 * merged && off < share * changed,
                    "{model} {case} {dtype:?}: off by {off}, merged by {merged}, of {changed}"
                );
            }
        }
    }
}

/// An adapter whose products overflow in f16.
fn huge(adapters: &Adapters) -> Adapter {
    let (outputs, inputs) = Linear::Query.size(adapters.config());
    let part = LowRank {
        a: Matrix::new(1, vec![60_000.0; inputs]),
        b: Matrix::new(outputs, vec![1.0; outputs]),
        scaling: 1.0,
        magnitude: None,
    };
    let base = adapters.adapter("all-linear").base().clone();
    let parts = [(Site::Layer(0, Linear::Query), part)];
    Adapter::new(adapters.config(), parts.into(), base)
}

#[test]
fn what_overflows_with_one_adapter_leaves_other_sequences_alone() {
    let adapters = Adapters::read("tied");
    let mut attached = Attached::new(&adapters, DType::Float16);
    let packed = attached.backend.adapter_packer().pack(&huge(&adapters));
    let id = AdapterId::new(1000);
    attached.backend.attach(id, packed.unwrap()).unwrap();
    attached.ids.insert("huge".to_owned(), id);
    let tokens = adapters.tokens();
    let stacks: [&Stack; 3] = [&[("huge", 1.0)], &[("rslora", 1.0)], &[]];
    let mixed = attached.together(tokens, &stacks);
    // So that the test is one of what it says.
    assert!(mixed[0].iter().flatten().any(|x| !x.is_finite()));
    for (index, stack) in stacks.iter().enumerate().skip(1) {
        let alone = attached.together(tokens, &[stack]).remove(0);
        let off = worst(&mixed[index], &alone);
        assert!(off < 0.02, "{stack:?} is off by {off} beside it");
    }
}

/// One sequence with the adapter of this name.
fn one(id: AdapterId) -> StepBatch {
    StepBatch {
        sequences: vec![SequenceStep {
            tokens: vec![1, 2, 3],
            blocks: vec![0],
            adapters: vec![(id, 1.0)],
            ..SequenceStep::default()
        }],
    }
}

#[test]
fn an_adapter_that_is_not_attached_fails_the_step_and_nothing_else() {
    let adapters = Adapters::read("tied");
    let mut attached = Attached::new(&adapters, DType::Float32);
    let tokens = adapters.tokens();
    let stacks: [&Stack; 2] = [&[("rslora", 1.0)], &[("all-linear", 1.0)]];
    let before = attached.together(tokens, &stacks);
    let gone = attached.ids["dora"];
    attached.backend.detach(gone);
    match attached.backend.step(&one(gone)) {
        Err(BackendError::Step(why)) => assert!(why.contains("not attached"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(attached.together(tokens, &stacks) == before);
    // One of those that lie beside each other goes, and its name with it.
    let gone = attached.ids["rslora"];
    attached.backend.detach(gone);
    assert!(attached.backend.step(&one(gone)).is_err());
    let alone = attached.together(tokens, &stacks[1..]).remove(0);
    assert!(worst(&alone, &before[1]) < ADAPTER_TOLERANCE);
}

#[test]
fn what_was_packed_for_another_model_is_not_attached() {
    let adapters = Adapters::read("tied");
    let mut f32 = Attached::new(&adapters, DType::Float32);
    let bf16 = Attached::new(&adapters, DType::BFloat16);
    let adapter = adapters.adapter("rslora");
    let packed = bf16.backend.adapter_packer().pack(&adapter).unwrap();
    for packed in [packed, PackedAdapter::new("something else", 0)] {
        let refused = f32.backend.attach(AdapterId::new(77), packed);
        match refused {
            Err(BackendError::Step(why)) => assert!(why.contains("another"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn adapters_that_do_not_fit_or_are_not_finite_are_refused_by_place() {
    let adapters = Adapters::read("tied");
    let dir = adapters.merged(&[]);
    let packer = backend(dir.path(), DType::Float16).adapter_packer();
    let other = Adapters::read("gemma2").adapter("all-linear");
    let error = packer.pack(&other).unwrap_err();
    assert!(
        matches!(error, AdapterError::Shape { .. } | AdapterError::Absent(_)),
        "{error}"
    );
    let query = Site::Layer(0, Linear::Query);
    let base = adapters.adapter("rslora");
    let with = |change: &dyn Fn(&mut LowRank)| {
        let mut part = base.get(query).unwrap().clone();
        change(&mut part);
        let parts = [(query, part)].into();
        packer.pack(&Adapter::new(adapters.config(), parts, base.base().clone()))
    };
    assert!(with(&|_| ()).is_ok());
    let (outputs, _) = query.size(adapters.config());
    for scaling in [1e9, f32::INFINITY, f32::NAN] {
        let refused = with(&|part| part.scaling = scaling);
        assert!(
            matches!(refused, Err(AdapterError::NotFinite(site)) if site == query),
            "{scaling}: {refused:?}"
        );
    }
    let refused = with(&|part| part.magnitude = Some(vec![f32::MAX; outputs].into()));
    assert!(
        matches!(refused, Err(AdapterError::NotFinite(site)) if site == query),
        "{refused:?}"
    );
}
