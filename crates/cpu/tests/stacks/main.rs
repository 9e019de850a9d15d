//! Adapters in the step, with every set of kernels that this processor has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod folder;

use folder::{Folder, MAPS, place};
use hyprstream_cpu::{
    AdapterError, AdapterLayer, AdapterWeights, CpuBackend, Kernels, LoadOptions, LowRank,
    Quantization, load,
};
use hyprstream_engine::{
    AdapterId, Backend, BackendError, LogitsWanted, PackedAdapter, SequenceStep, StepBatch,
};
use hyprstream_models::DType;

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|set| set.available())
}

/// What computes in the type of the model, and in fewer bits.
const FORMS: [(DType, Quantization); 4] = [
    (DType::Float32, Quantization::None),
    (DType::BFloat16, Quantization::None),
    (DType::BFloat16, Quantization::Int8),
    (DType::BFloat16, Quantization::Int4),
];

fn backend(
    folder: &Folder,
    (dtype, quantization): (DType, Quantization),
    kernels: Kernels,
) -> CpuBackend {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let options = LoadOptions {
        dtype,
        quantization,
        kernels: Some(kernels),
        threads: Some(2),
        kv_cache_bytes: Some(16 << 20),
        ..LoadOptions::default()
    };
    load(dir.path(), &options).unwrap()
}

fn in_f32(folder: &Folder, kernels: Kernels) -> CpuBackend {
    backend(folder, FORMS[0], kernels)
}

fn attach(backend: &mut CpuBackend, number: u64, adapter: &AdapterWeights) -> AdapterId {
    let packed = backend.adapter_packer().pack(adapter).unwrap();
    assert!(packed.bytes() > 0);
    let id = AdapterId::new(number);
    backend.attach(id, packed).unwrap();
    id
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.u32(..64)).collect()
}

/// The logits of all of `tokens`, `size` of them in a step.
fn logits(
    backend: &mut CpuBackend,
    tokens: &[u32],
    adapters: &[(AdapterId, f32)],
    size: usize,
) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(size).enumerate() {
        let step = SequenceStep {
            tokens: piece.to_vec(),
            position: index * size,
            blocks: (0..8).collect(),
            logits: LogitsWanted::All,
            adapters: adapters.to_vec(),
        };
        let sequences = vec![step];
        let mut out = backend.step(&StepBatch { sequences }).unwrap();
        rows.extend(out.rows_mut().map(|row| row.to_vec()));
    }
    rows
}

fn worst(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let each = ours.iter().flatten().zip(theirs.iter().flatten());
    let differences = each.map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

#[track_caller]
fn agree(ours: &[Vec<f32>], theirs: &[Vec<f32>], what: &str) {
    let worst = worst(ours, theirs);
    assert!(worst < 1e-4, "{what}: off by {worst}");
}

/// With norms on both sides, norms of heads, biases, windows, and a head of its own among them.
const MODELS: [&str; 5] = ["tied", "qwen2", "qwen3", "gemma2", "gemma3"];

#[test]
fn a_model_with_an_adapter_is_one_whose_weights_have_changed() {
    let tokens = tokens(40, 1);
    for name in MODELS {
        let folder = Folder::of(name);
        // Ranks of less and of more than a panel, and one that is odd.
        for (rank, scale) in [(1, 1.0), (7, -1.5), (16, 0.5), (21, 1.0)] {
            let adapter = folder.adapter(&MAPS, rank, 3);
            for kernels in sets() {
                let changed = folder.changed(&adapter, scale);
                let theirs = logits(&mut in_f32(&changed, kernels), &tokens, &[], 40);
                let mut ours = in_f32(&folder, kernels);
                let base = logits(&mut ours, &tokens, &[], 40);
                let id = attach(&mut ours, 1, &adapter);
                let with = logits(&mut ours, &tokens, &[(id, scale)], 40);
                agree(&with, &theirs, &format!("{name} {kernels} rank {rank}"));
                assert!(worst(&with, &base) > 0.01, "{name}: it changes something");
                assert!(
                    logits(&mut ours, &tokens, &[], 40) == base,
                    "{name}: only where asked"
                );
            }
        }
    }
}

#[test]
fn each_map_is_changed_for_itself() {
    let tokens = tokens(20, 2);
    for name in ["tied", "gemma3"] {
        let folder = Folder::of(name);
        for map in MAPS {
            let adapter = folder.adapter(&[map], 8, 4);
            let theirs = in_f32(&folder.changed(&adapter, 1.0), Kernels::best());
            let theirs = logits(&mut { theirs }, &tokens, &[], 20);
            let mut ours = in_f32(&folder, Kernels::best());
            let base = logits(&mut ours, &tokens, &[], 20);
            let id = attach(&mut ours, 1, &adapter);
            let with = logits(&mut ours, &tokens, &[(id, 1.0)], 20);
            agree(&with, &theirs, &format!("{name} {map}"));
            assert!(worst(&with, &base) > 1e-3, "{name} {map}");
        }
    }
}

#[test]
fn embedding_and_head_are_changed_too() {
    let tokens = tokens(20, 2);
    // The embedding of the second is multiplied, and its logits are capped.
    for name in ["yarn", "gemma2"] {
        let folder = Folder::of(name).untied();
        for maps in [
            &["embedding"][..],
            &["head"],
            &["query", "embedding", "head"],
        ] {
            let adapter = folder.adapter(maps, 5, 4);
            for kernels in sets() {
                let mut theirs = in_f32(&folder.changed(&adapter, 0.7), kernels);
                let mut ours = in_f32(&folder, kernels);
                let id = attach(&mut ours, 1, &adapter);
                let with = logits(&mut ours, &tokens, &[(id, 0.7)], 20);
                let theirs = logits(&mut theirs, &tokens, &[], 20);
                agree(&with, &theirs, &format!("{name} {maps:?} {kernels}"));
            }
        }
    }
}

#[test]
fn an_adapter_may_leave_layers_alone() {
    let (folder, tokens) = (Folder::of("gemma3"), tokens(20, 2));
    let mut adapter = folder.adapter(&["query", "up"], 8, 4);
    for layer in [0, 3] {
        for map in MAPS {
            *place(&mut adapter.layers[layer], map) = None;
        }
    }
    adapter.layers[1].query = None;
    let mut theirs = in_f32(&folder.changed(&adapter, 1.0), Kernels::best());
    let mut ours = in_f32(&folder, Kernels::best());
    let id = attach(&mut ours, 1, &adapter);
    let with = logits(&mut ours, &tokens, &[(id, 1.0)], 20);
    agree(&with, &logits(&mut theirs, &tokens, &[], 20), "two layers");
}

#[test]
fn stacks_are_sums() {
    let tokens = tokens(40, 1);
    for name in ["tied", "gemma2"] {
        let folder = Folder::of(name);
        let one = folder.adapter(&MAPS, 8, 5);
        let two = folder.adapter(&["query", "value", "down"], 20, 6);
        let three = folder.adapter(&["key", "gate"], 3, 7);
        let changed = folder.changed(&one, 0.7).changed(&two, -1.2);
        let changed = changed.changed(&three, 1.0);
        for kernels in sets() {
            let mut ours = in_f32(&folder, kernels);
            let each = [(&one, 0.7), (&two, -1.2), (&three, 1.0)];
            let stack: Vec<_> = (0..)
                .zip(each)
                .map(|(number, (adapter, scale))| (attach(&mut ours, number, adapter), scale))
                .collect();
            let theirs = logits(&mut in_f32(&changed, kernels), &tokens, &[], 40);
            agree(&logits(&mut ours, &tokens, &stack, 40), &theirs, name);
        }
    }
}

/// What a sequence gives: logits, and hidden states.
type Given = (Vec<Vec<f32>>, Vec<Vec<f32>>);

fn step(backend: &mut CpuBackend, sequences: &[SequenceStep]) -> Vec<Given> {
    let batch = StepBatch {
        sequences: sequences.to_vec(),
    };
    let mut out = backend.step(&batch).unwrap();
    let (mut logits, mut hidden) = out.rows();
    let mut given = Vec::new();
    for sequence in sequences {
        let logits = logits.by_ref().take(sequence.num_rows());
        let logits = logits.map(|row| row.to_vec()).collect();
        let hidden = hidden.by_ref().take(sequence.num_hidden_rows());
        given.push((logits, hidden.map(<[f32]>::to_vec).collect()));
    }
    given
}

#[test]
fn an_answer_has_the_same_bits_alone_and_among_31_others() {
    let folder = Folder::of("gemma3").widened();
    let others = [
        folder.adapter(&MAPS, 16, 10),
        folder.adapter(&MAPS, 5, 11),
        folder.adapter(&["query", "key", "value", "output"], 40, 12),
        folder.adapter(&["gate", "down", "embedding", "head"], 8, 13),
    ];
    for kernels in sets() {
        for form in FORMS {
            let mut backend = backend(&folder, form, kernels);
            let each = (0..).zip(&others);
            let ids: Vec<_> = each
                .map(|(n, adapter)| attach(&mut backend, n, adapter))
                .collect();
            let mut random = fastrand::Rng::with_seed(9);
            let wanted = [
                LogitsWanted::All,
                LogitsWanted::Last,
                LogitsWanted::Hidden,
                LogitsWanted::None,
            ];
            let prompts: Vec<_> = (0..32_u32)
                .map(|number| {
                    let depth = random.usize(..4);
                    let one = |_| (ids[random.usize(..4)], random.f32() * 4.0 - 2.0);
                    let adapters = (0..depth).map(one).collect();
                    SequenceStep {
                        tokens: tokens(random.usize(1..40), u64::from(number)),
                        position: 0,
                        blocks: (4 * number..4 * number + 4).collect(),
                        logits: wanted[random.usize(..4)],
                        adapters,
                    }
                })
                .collect();
            // Then each goes on with one token.
            let next: Vec<_> = prompts
                .iter()
                .map(|prompt| SequenceStep {
                    tokens: vec![7],
                    position: prompt.tokens.len(),
                    logits: LogitsWanted::Last,
                    ..prompt.clone()
                })
                .collect();
            let prompts_together = step(&mut backend, &prompts);
            let next_together = step(&mut backend, &next);
            for (at, (prompt, next)) in prompts.iter().zip(&next).enumerate() {
                let alone = step(&mut backend, std::slice::from_ref(prompt));
                assert!(
                    alone[0] == prompts_together[at],
                    "{kernels} {form:?} prompt {at}"
                );
                let alone = step(&mut backend, std::slice::from_ref(next));
                assert!(
                    alone[0] == next_together[at],
                    "{kernels} {form:?} token {at}"
                );
                // And some of them token by token.
                if at % 4 != 0 {
                    continue;
                }
                for (position, token) in prompt.tokens.iter().enumerate() {
                    let piece = SequenceStep {
                        tokens: vec![*token],
                        position,
                        ..next.clone()
                    };
                    step(&mut backend, &[piece]);
                }
                let alone = step(&mut backend, std::slice::from_ref(next));
                assert!(
                    alone[0] == next_together[at],
                    "{kernels} {form:?} pieces {at}"
                );
            }
        }
    }
}

#[test]
fn fewer_bits_change_answers_as_f32_does() {
    let folder = Folder::of("qwen3").widened();
    let tokens = tokens(40, 1);
    // As small as the numbers of real ones are.
    let mut adapter = folder.adapter(&MAPS, 16, 10);
    for layer in &mut adapter.layers {
        for map in MAPS {
            let change = place(layer, map).as_mut().unwrap();
            change.a.iter_mut().for_each(|number| *number *= 1e-6);
            change.scale *= 1e6;
        }
    }
    let change = |form, kernels| {
        let mut backend = backend(&folder, form, kernels);
        let base = logits(&mut backend, &tokens, &[], 40);
        let id = attach(&mut backend, 1, &adapter);
        let with = logits(&mut backend, &tokens, &[(id, 0.2)], 40);
        let each = base.into_iter().flatten().zip(with.into_iter().flatten());
        each.map(|(base, with)| with - base).collect::<Vec<f32>>()
    };
    for kernels in sets() {
        let exact = change(FORMS[0], kernels);
        let size = exact.iter().map(|x| x * x).sum::<f32>();
        for (form, most) in FORMS[1..].iter().zip([0.05, 0.2, 0.4]) {
            let ours = change(*form, kernels);
            let error = ours.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b));
            let error = (error.sum::<f32>() / size).sqrt();
            assert!(error < most, "{kernels} {form:?}: {error}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_wrong() {
    let folder = Folder::of("tied");
    let mut backend = in_f32(&folder, Kernels::best());
    let packer = backend.adapter_packer();
    let good = folder.adapter(&MAPS, 4, 1);
    let refused = |change: &dyn Fn(&mut AdapterWeights)| {
        let mut bad = good.clone();
        change(&mut bad);
        packer.pack(&bad).unwrap_err()
    };
    let layers = refused(&|bad| bad.layers.truncate(1));
    assert!(
        matches!(
            layers,
            AdapterError::Layers {
                found: 1,
                expected: 2
            }
        ),
        "{layers}"
    );
    let nothing = refused(&|bad| bad.layers.fill(AdapterLayer::default()));
    assert!(matches!(nothing, AdapterError::Nothing), "{nothing}");
    let shape = refused(&|bad| bad.layers[1].key.as_mut().unwrap().b.truncate(9));
    let text = "B of key (layer 1) has 9 numbers, but 64 are needed";
    assert_eq!(shape.to_string(), text);
    let empty = refused(&|bad| bad.layers[0].up = Some(LowRank::default()));
    assert!(
        matches!(empty, AdapterError::Shape { map: "up", .. }),
        "{empty}"
    );
    for bad in [f32::NAN, f32::INFINITY] {
        for factor in ["a", "b", "scale"] {
            let error = refused(&|adapter| {
                let change = adapter.layers[1].down.as_mut().unwrap();
                match factor {
                    "a" => change.a[3] = bad,
                    "b" => change.b[3] = bad,
                    _ => change.scale = bad,
                }
            });
            let is_it = matches!(
                error,
                AdapterError::NotFinite {
                    layer: 1,
                    map: "down"
                }
            );
            assert!(is_it, "{factor}: {error}");
        }
    }
    let large = refused(&|bad| {
        let change = bad.layers[0].gate.as_mut().unwrap();
        change.scale = 1e38;
        change.b.fill(10.0);
    });
    assert!(
        matches!(
            large,
            AdapterError::NotFinite {
                layer: 0,
                map: "gate"
            }
        ),
        "{large}"
    );

    // Packed for another model, for other kernels, or not at all.
    let other = Folder::of("gemma3");
    let strange = in_f32(&other, Kernels::best()).adapter_packer();
    let strange = strange.pack(&other.adapter(&MAPS, 4, 1)).unwrap();
    let mut bad = vec![strange, PackedAdapter::new(5_u8, 1)];
    if Kernels::best() != Kernels::Portable {
        let portable = in_f32(&folder, Kernels::Portable).adapter_packer();
        bad.push(portable.pack(&good).unwrap());
    }
    for packed in bad {
        let error = backend.attach(AdapterId::new(3), packed).unwrap_err();
        assert!(matches!(error, BackendError::Step(_)), "{error}");
    }
    let unknown = SequenceStep {
        tokens: vec![1],
        blocks: vec![0],
        adapters: vec![(AdapterId::new(3), 1.0)],
        ..SequenceStep::default()
    };
    let batch = StepBatch {
        sequences: vec![unknown],
    };
    let error = backend.step(&batch).unwrap_err();
    assert!(matches!(error, BackendError::Step(_)), "{error}");
    let id = attach(&mut backend, 3, &good);
    assert!(backend.step(&batch).is_ok());
    backend.detach(id);
    assert!(backend.step(&batch).is_err());
}
