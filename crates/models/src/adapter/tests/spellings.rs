//! One adapter, however its files are spelled.

use super::*;

const TARGETS: [&str; 3] = ["q_proj", "v_proj", "down_proj"];

#[track_caller]
fn same(a: &Files, b: &Files, base: &Base) {
    let (a, b) = (a.read(base), b.read(base));
    assert!(a.parts == b.parts);
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn the_parts_are_those_of_the_file() {
    let files = Files::peft(&TIED, &TARGETS);
    let adapter = files.read(&TIED);
    assert_eq!(adapter.parts().count(), 6);
    assert_eq!(adapter.rank(), 2);
    let part = adapter.get(Site::Layer(1, Linear::Down)).unwrap();
    let a = files.tensor("layers.1.mlp.down_proj.lora_A.weight");
    let b = files.tensor("layers.1.mlp.down_proj.lora_B.weight");
    assert_eq!((part.a.values(), part.b.values()), (&*a.values, &*b.values));
    assert_eq!((part.size(), part.scaling), ((32, 48), 2.0));
    assert!(part.magnitude.is_none());
    assert!(adapter.get(Site::Layer(0, Linear::Key)).is_none());
    let each = [32 + 32, 32 + 16, 48 + 32];
    assert_eq!(adapter.bytes(), 2 * 2 * 4 * each.iter().sum::<u64>());
}

#[test]
fn names_of_modules_are_read_as_each_trainer_writes_them() {
    let peft = Files::peft(&TIED, &TARGETS);
    for (from, to) in [
        ("lora_A.weight", "lora_A.default.weight"),
        ("base_model.model.", ""),
        ("model.model.layers", "model.layers"),
        ("model.model.layers", "model.model.language_model.layers"),
        ("model.model.layers", "model.language_model.model.layers"),
        ("model.model.layers", "model.language_model.layers"),
    ] {
        same(
            &peft.clone().renamed(|name| name.replace(from, to)),
            &peft,
            &TIED,
        );
    }
}

#[test]
fn targets_are_matched_against_the_names_that_the_trained_model_had() {
    let peft = Files::peft(&TIED, &TARGETS);
    let seeing = peft
        .clone()
        .renamed(|name| name.replace("model.layers", "model.language_model.layers"))
        .with(
            "target_modules",
            r"model\.language_model\.layers\.\d+\..*(q_proj|v_proj|down_proj)",
        );
    same(&seeing, &peft, &TIED);
    let error = seeing
        .with("target_modules", r"model\.layers\..*_proj")
        .try_read(&TIED)
        .unwrap_err();
    assert_eq!(error.reason(), "Untargeted", "{error}");
}

#[test]
fn types_and_order_of_tensors_do_not_matter() {
    let peft = Files::peft(&TIED, &TARGETS);
    for dtype in [StoredType::F16, StoredType::BF16] {
        let mut other = peft.clone();
        other.tensors.reverse();
        for (_, tensor) in &mut other.tensors {
            tensor.dtype = dtype;
        }
        same(&other, &peft, &TIED);
    }
}

#[test]
fn mlx_has_matrices_the_other_way_round_and_a_scale_that_is_not_divided() {
    let peft = Files::peft(&TIED, &TARGETS);
    same(&as_mlx(&peft), &peft, &TIED);
    let mut dora = peft.with("use_dora", true);
    let modules: Vec<_> = dora.tensors.iter().map(|(name, _)| name.clone()).collect();
    for name in modules.iter().filter(|name| name.contains("lora_B")) {
        let rows = dora.tensor(name).shape[0];
        let name = name.replace("lora_B.weight", "lora_magnitude_vector");
        dora = dora.with_tensor(&name, Stored::new(&name, &[rows]));
    }
    let mut mlx = as_mlx(&dora).with("fine_tune_type", "dora");
    mlx.config["lora_parameters"]["keys"] = json!(["self_attn.q_proj"]);
    same(&mlx, &dora, &TIED);
}

#[test]
fn mlx_changes_a_tied_head_with_the_embedding() {
    let peft = Files::peft(&TIED, &["embed_tokens"]);
    let mlx = as_mlx(&peft).read(&TIED);
    let embedding = mlx.get(Site::Embedding).unwrap();
    assert_eq!(embedding, peft.read(&TIED).get(Site::Embedding).unwrap());
    let head = mlx.get(Site::Head).unwrap();
    assert_eq!((head.size(), embedding.size()), ((64, 32), (32, 64)));
    let transposed = Matrix::new(32, embedding.delta(&[])).transposed();
    let head = head.delta(&[]);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
    assert!(head.iter().zip(transposed.values()).all(close));
    // Where the head is another tensor, MLX leaves it alone.
    let phi = as_mlx(&Files::peft(&PHI3, &["embed_tokens"])).read(&PHI3);
    assert!(phi.get(Site::Head).is_none());
}

#[test]
fn what_is_fused_may_be_separate_and_the_other_way_round() {
    for base in [&*TIED, &*PHI3] {
        let fused = {
            let mut files = Files::peft(base, &["o_proj"]);
            for layer in 0..base.config.num_layers() {
                for module in ["self_attn.qkv_proj", "mlp.gate_up_proj"] {
                    files.add(base, &format!("model.layers.{layer}.{module}"), 2);
                }
            }
            files.with(
                "target_modules",
                json!(["o_proj", "qkv_proj", "gate_up_proj"]),
            )
        };
        let mut separate = fused.clone().without("qkv_proj").without("gate_up_proj");
        for (module, parts) in [
            ("self_attn.qkv_proj", &["q_proj", "k_proj", "v_proj"][..]),
            ("mlp.gate_up_proj", &["gate_proj", "up_proj"]),
        ] {
            for layer in 0..base.config.num_layers() {
                let a = fused.tensor(&key(layer, &format!("{module}.lora_A.weight")));
                let b = fused.tensor(&key(layer, &format!("{module}.lora_B.weight")));
                let mut rest = &b.values[..];
                let rows = |part: &str| match part {
                    "k_proj" | "v_proj" => 16,
                    "q_proj" => 32,
                    _ => 48,
                };
                for part in parts {
                    let name = module.replace(module.split('.').next_back().unwrap(), part);
                    let (mine, others) = rest.split_at(2 * rows(part));
                    rest = others;
                    let b = Stored::of(&[rows(part), 2], mine.to_vec());
                    let name = key(layer, &name);
                    separate = separate
                        .with_tensor(&format!("{name}.lora_A.weight"), a.clone())
                        .with_tensor(&format!("{name}.lora_B.weight"), b);
                }
            }
        }
        // Which names a configuration has beside those of the file is not ours to judge: all of
        // these are common, and PEFT takes what exists.
        let separate = separate.with(
            "target_modules",
            json!([
                "o_proj",
                "q_proj",
                "k_proj",
                "v_proj",
                "gate_proj",
                "up_proj"
            ]),
        );
        same(&separate, &fused, base);
        let fused = fused.read(base);
        let part = |linear| fused.get(Site::Layer(0, linear)).unwrap();
        assert!(part(Linear::Query).a.is(&part(Linear::Value).a));
        assert_eq!(part(Linear::Value).size(), (16, 32));
        let all = separate.with("target_modules", "all-linear").try_read(base);
        // Nothing was trained for `down_proj`.
        assert_eq!(all.unwrap_err().reason(), "Incomplete");
    }
}

#[test]
fn copies_of_the_base_are_dropped() {
    let files = Files::peft(&PHI3, &["lm_head", "embed_tokens", "qkv_proj"]);
    let plain = files.read(&PHI3).digest();
    let weights = &PHI3.weights;
    let copy = |tensor: &crate::StoredTensor, dtype| Stored {
        dtype,
        shape: tensor.shape().to_vec(),
        values: tensor.to_f32(),
    };
    let layer = &weights.layers[1];
    let rows = [&layer.query, &layer.key, &layer.value].map(|linear| linear.weight.to_f32());
    let fused = Stored::of(&[64, 32], rows.concat());
    let head = weights.head.as_ref().unwrap();
    let with_copies = files
        .with_tensor(
            "base_model.model.model.embed_tokens.base_layer.weight",
            copy(&weights.embedding, StoredType::F16),
        )
        .with_tensor(
            "base_model.model.lm_head.base_layer.weight",
            // Rounded: the training was in bf16.
            copy(head, StoredType::BF16),
        )
        .with_tensor(&key(1, "self_attn.qkv_proj.base_layer.weight"), fused)
        .with_tensor(
            &key(0, "input_layernorm.weight"),
            copy(&weights.layers[0].attention_norm, StoredType::F32),
        );
    assert_eq!(with_copies.read(&PHI3).digest(), plain);
    // A tied head is the embedding.
    let tied = Files::peft(&TIED, &["lm_head"]);
    let copied = tied.clone().with_tensor(
        "base_model.model.lm_head.base_layer.weight",
        copy(&TIED.weights.embedding, StoredType::F32),
    );
    same(&copied, &tied, &TIED);
}

#[test]
fn an_adapter_does_not_need_its_files_any_more() {
    let (dir, files) = Files::peft(&TIED, &TARGETS).save();
    let adapter = Adapter::read(
        &files,
        &TIED.config,
        &TIED.weights,
        AdapterLimits::default(),
    );
    fs::write(&files.tensors, "").unwrap();
    drop(dir);
    assert_eq!(
        AdapterDigest::of(&adapter.as_ref().unwrap().parts),
        adapter.unwrap().digest()
    );
}

#[test]
fn what_it_was_trained_on_is_told() {
    let files = Files::peft(&TIED, &TARGETS)
        .with("base_model_name_or_path", "unsloth/llama-3-8b-bnb-4bit")
        .with("revision", "abc");
    let base = files.read(&TIED).base().clone();
    assert_eq!(base.name.as_deref(), Some("unsloth/llama-3-8b-bnb-4bit"));
    assert_eq!(base.revision.as_deref(), Some("abc"));
}
