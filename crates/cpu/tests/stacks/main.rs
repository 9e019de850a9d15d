//! Adapters in the step, with every set of kernels that this processor has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod folder;

use folder::{Folder, Parts};
use hyprstream_cpu::{AdapterError, CpuBackend, Kernels, LoadOptions, Quantization, load};
use hyprstream_engine::{
    AdapterId, Backend, BackendError, LogitsWanted, PackedAdapter, SequenceStep, StepBatch,
};
use hyprstream_models::{
    DType,
    adapter::{Adapter, Linear, Matrix, Site},
};

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

fn attach(backend: &mut CpuBackend, number: u64, adapter: &Adapter) -> AdapterId {
    let packer = backend.adapter_packer();
    let packed = packer.pack(adapter).unwrap();
    assert!((1..=packer.bytes_of(adapter)).contains(&packed.bytes()));
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
            let adapter = folder.adapter(&Linear::ALL, rank, 3);
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
        for map in Linear::ALL {
            let adapter = folder.adapter(&[map], 8, 4);
            let theirs = in_f32(&folder.changed(&adapter, 1.0), Kernels::best());
            let theirs = logits(&mut { theirs }, &tokens, &[], 20);
            let mut ours = in_f32(&folder, Kernels::best());
            let base = logits(&mut ours, &tokens, &[], 20);
            let id = attach(&mut ours, 1, &adapter);
            let with = logits(&mut ours, &tokens, &[(id, 1.0)], 20);
            agree(&with, &theirs, &format!("{name} {map:?}"));
            assert!(worst(&with, &base) > 1e-3, "{name} {map:?}");
        }
    }
}

#[test]
fn embedding_and_head_are_changed_too() {
    let tokens = tokens(20, 2);
    // The embedding of the second is multiplied, and its logits are capped.
    for name in ["yarn", "gemma2"] {
        let folder = Folder::of(name).untied();
        let both = vec![Site::Embedding, Site::Head];
        let with_others = [both.clone(), folder.sites(&[Linear::Query])].concat();
        for sites in [vec![Site::Embedding], vec![Site::Head], both, with_others] {
            let what = format!("{name} {sites:?}");
            let adapter = folder.adapter_of(sites, 5, 4);
            for kernels in sets() {
                let mut theirs = in_f32(&folder.changed(&adapter, 0.7), kernels);
                let mut ours = in_f32(&folder, kernels);
                let id = attach(&mut ours, 1, &adapter);
                let with = logits(&mut ours, &tokens, &[(id, 0.7)], 20);
                let theirs = logits(&mut theirs, &tokens, &[], 20);
                agree(&with, &theirs, &format!("{what} {kernels}"));
            }
        }
    }
}

#[test]
fn with_dora_rows_of_the_changed_weights_have_other_lengths() {
    let tokens = tokens(40, 1);
    for name in MODELS {
        let folder = Folder::of(name).untied();
        let mut sites = folder.sites(&Linear::ALL);
        sites.extend([Site::Embedding, Site::Head]);
        let parts = Folder::with_magnitudes(folder.parts(sites, 5, 3), 4);
        let adapter = folder.with_parts(parts);
        for (kernels, scale) in sets().flat_map(|set| [(set, 1.0), (set, 0.4)]) {
            let mut theirs = in_f32(&folder.changed(&adapter, scale), kernels);
            let mut ours = in_f32(&folder, kernels);
            let id = attach(&mut ours, 1, &adapter);
            let with = logits(&mut ours, &tokens, &[(id, scale)], 40);
            let theirs = logits(&mut theirs, &tokens, &[], 40);
            agree(&with, &theirs, &format!("{name} {kernels} {scale}"));
        }
    }
}

#[test]
fn an_adapter_may_leave_layers_alone() {
    let (folder, tokens) = (Folder::of("gemma3"), tokens(20, 2));
    let sites = [
        Site::Layer(1, Linear::Up),
        Site::Layer(2, Linear::Query),
        Site::Layer(2, Linear::Up),
    ];
    let adapter = folder.adapter_of(sites.to_vec(), 8, 4);
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
        let one = folder.adapter(&Linear::ALL, 8, 5);
        let two = folder.adapter(&[Linear::Query, Linear::Value, Linear::Down], 20, 6);
        let three = folder.adapter(&[Linear::Key, Linear::Gate], 3, 7);
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
    let (attention, rest) = Linear::ALL.split_at(4);
    let mut ends = folder.sites(&[rest[0], rest[2]]);
    ends.extend([Site::Embedding, Site::Head]);
    let all = folder.parts(folder.sites(&Linear::ALL), 5, 11);
    let others = [
        folder.adapter(&Linear::ALL, 16, 10),
        folder.with_parts(Folder::with_magnitudes(all, 14)),
        folder.adapter(attention, 40, 12),
        folder.adapter_of(ends, 8, 13),
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
    let mut parts = folder.parts(folder.sites(&Linear::ALL), 16, 10);
    for part in parts.values_mut() {
        let numbers = part.a.values().iter().map(|number| number * 1e-6);
        part.a = Matrix::new(part.rank(), numbers.collect());
        part.scaling *= 1e6;
    }
    let adapter = folder.with_parts(parts);
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

/// `matrix` with one number changed.
fn with_number(matrix: &Matrix, at: usize, number: f32) -> Matrix {
    let mut numbers = matrix.values().to_vec();
    numbers[at] = number;
    Matrix::new(matrix.rows(), numbers)
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_wrong() {
    let folder = Folder::of("tied");
    let mut backend = in_f32(&folder, Kernels::best());
    let packer = backend.adapter_packer();
    let parts = folder.parts(folder.sites(&Linear::ALL), 4, 1);
    let good = folder.with_parts(parts.clone());
    let refused = |change: &dyn Fn(&mut Parts)| {
        let mut bad = parts.clone();
        change(&mut bad);
        packer.pack(&folder.with_parts(bad)).unwrap_err()
    };
    let (key, gate) = (Site::Layer(1, Linear::Key), Site::Layer(0, Linear::Gate));
    let shape = refused(&|bad| {
        let part = bad.get_mut(&key).unwrap();
        part.b = Matrix::new(part.b.rows(), vec![0.0; 3 * part.b.rows()]);
    });
    let text = "B of model.layers.1.self_attn.k_proj has 16 rows of 3, but 16 of 4 are needed";
    assert_eq!(shape.to_string(), text);
    for bad in [f32::NAN, f32::INFINITY] {
        for factor in ["a", "b", "scaling"] {
            let error = refused(&|parts| {
                let part = parts.get_mut(&key).unwrap();
                match factor {
                    "a" => part.a = with_number(&part.a, 3, bad),
                    "b" => part.b = with_number(&part.b, 3, bad),
                    _ => part.scaling = bad,
                }
            });
            let is_it = matches!(error, AdapterError::NotFinite(site) if site == key);
            assert!(is_it, "{factor}: {error}");
        }
    }
    let large = refused(&|bad| {
        let part = bad.get_mut(&gate).unwrap();
        part.b = with_number(&part.b, 0, 10.0);
        part.scaling = 1e38;
    });
    let is_it = matches!(large, AdapterError::NotFinite(site) if site == gate);
    assert!(is_it, "{large}");

    // A row of 0 that is to have a length.
    let mut holed = folder.clone();
    let inputs = parts[&key].a.columns();
    holed.weight(key)[5 * inputs..6 * inputs].fill(0.0);
    let mut lengths = Folder::with_magnitudes(parts.clone(), 1);
    let part = lengths.get_mut(&key).unwrap();
    for at in 20..24 {
        part.b = with_number(&part.b, at, 0.0);
    }
    let error = in_f32(&holed, Kernels::best()).adapter_packer();
    let error = error.pack(&folder.with_parts(lengths)).unwrap_err();
    let text = "row 5 of model.layers.1.self_attn.k_proj is 0 with the adapter, but has a magnitude \
                (use_dora)";
    assert_eq!(error.to_string(), text);

    // Made for a model of other sizes, and with more layers.
    let other = Folder::of("gemma3").widened();
    let sites = |index| vec![Site::Layer(index, Linear::Down)];
    let error = packer.pack(&other.adapter_of(sites(0), 4, 1)).unwrap_err();
    assert!(matches!(error, AdapterError::Shape { .. }), "{error}");
    let error = packer.pack(&other.adapter_of(sites(2), 4, 1)).unwrap_err();
    assert!(matches!(error, AdapterError::Absent(_)), "{error}");

    // Packed for another model, for other kernels, or not at all.
    let strange = in_f32(&other, Kernels::best()).adapter_packer();
    let strange = strange.pack(&other.adapter(&Linear::ALL, 4, 1)).unwrap();
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
