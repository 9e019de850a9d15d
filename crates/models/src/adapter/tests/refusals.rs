//! What is refused, and in which words.

use super::*;

#[track_caller]
fn check(error: &AdapterError, reason: &str, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.reason(), reason, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[track_caller]
fn refused(files: &Files, base: &Base, reason: &str, words: &[&str]) {
    check(&files.try_read(base).unwrap_err(), reason, words);
}

#[track_caller]
fn refused_bytes(bytes: &[u8], reason: &str, words: &[&str]) {
    let (_dir, files) = good().save();
    fs::write(&files.tensors, bytes).unwrap();
    check(&try_files(&files), reason, words);
}

fn try_files(files: &AdapterFiles) -> AdapterError {
    let limits = AdapterLimits::default();
    Adapter::read(files, &TIED.config, &TIED.weights, limits).unwrap_err()
}

fn good() -> Files {
    Files::peft(&TIED, &["q_proj", "up_proj"])
}

#[test]
fn names_that_the_model_does_not_have_are_named_with_the_nearest() {
    let files = good()
        .with_tensor(
            &key(1, "self_attn.qproj.lora_A.weight"),
            Stored::new("a", &[2, 32]),
        )
        .with_tensor(
            "base_model.model.score.lora_A.weight",
            Stored::new("b", &[2, 32]),
        );
    refused(
        &files,
        &TIED,
        "UnknownTarget",
        &[
            "2 of its tensors",
            r#""base_model.model.model.layers.1.self_attn.qproj.lora_A.weight""#,
            r#""base_model.model.score.lora_A.weight""#,
            r#"nearest that there are: "model.layers.1.self_attn.q_proj""#,
        ],
    );
    let deep = good().renamed(|name| name.replace("layers.1.", "layers.2."));
    refused(
        &deep,
        &TIED,
        "UnknownTarget",
        &[
            "4 of its tensors",
            "layers.2.",
            r#"are: "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj""#,
        ],
    );
    let gpt = good().renamed(|name| name.replace("model.layers", "transformer.h"));
    refused(
        &gpt,
        &TIED,
        "UnknownTarget",
        &["8 of its tensors", "and 4 more"],
    );
    let experts = good().with_tensor(
        &key(0, "mlp.experts.3.up_proj.lora_A.weight"),
        Stored::new("a", &[2, 32]),
    );
    refused(
        &experts,
        &TIED,
        "UnknownTarget",
        &["mlp.experts.3", "layers.0.mlp.up_proj"],
    );
    let odd = good().with_tensor("prompt_embeddings", Stored::new("a", &[2, 32]));
    refused(&odd, &TIED, "UnknownTarget", &["prompt_embeddings"]);
    let zeros = good().renamed(|name| name.replace("layers.1.", "layers.01."));
    refused(&zeros, &TIED, "UnknownTarget", &["layers.01."]);
}

#[test]
fn tensors_and_targets_must_agree() {
    refused(
        &good().with("target_modules", json!(["q_proj"])),
        &TIED,
        "Untargeted",
        &["mlp.up_proj", "adapter_config.json does not target"],
    );
    refused(
        &good().with("target_modules", json!(["q_proj", "up_proj", "o_proj"])),
        &TIED,
        "Incomplete",
        &[
            "lacks",
            "model.layers.0.self_attn.o_proj",
            "model.layers.1.self_attn.o_proj",
        ],
    );
    refused(
        &good().with("target_modules", json!(["q_proj", "up_proj", "lm_head"])),
        &TIED,
        "Incomplete",
        &[r#""lm_head""#],
    );
    refused(
        &good().with("layers_to_transform", 1),
        &TIED,
        "Untargeted",
        &["model.layers.0.self_attn.q_proj"],
    );
    refused(
        &good().with("exclude_modules", json!(["layers.1.mlp.up_proj"])),
        &TIED,
        "Untargeted",
        &["model.layers.1.mlp.up_proj"],
    );
    refused(
        &good().without("layers.1.mlp.up_proj.lora_B"),
        &TIED,
        "Incomplete",
        &["layers.1.mlp.up_proj.lora_B.weight"],
    );
    let renamed =
        good().renamed(|name| name.replace("model.layers.0", "model.language_model.layers.0"));
    refused(&renamed, &TIED, "DamagedFile", &["called in several ways"]);
}

#[test]
fn shapes_must_be_those_of_the_model() {
    let wide = good().changed("layers.0.self_attn.q_proj.lora_A.weight", |tensor| {
        *tensor = Stored::new("a", &[2, 64]);
    });
    refused(
        &wide,
        &TIED,
        "ShapeMismatch",
        &["q_proj.lora_A.weight", "[2, 64]", "[2, 32]", "rank 2"],
    );
    let tall = good().changed("layers.1.mlp.up_proj.lora_B.weight", |tensor| {
        *tensor = Stored::new("a", &[49, 2]);
    });
    refused(&tall, &TIED, "ShapeMismatch", &["[49, 2]", "[48, 2]"]);
    let flat = good().changed("layers.1.mlp.up_proj.lora_B.weight", |tensor| {
        *tensor = Stored::new("a", &[96]);
    });
    refused(&flat, &TIED, "ShapeMismatch", &["[96]", "[48, 2]"]);
    refused(
        &good().with("r", 3),
        &TIED,
        "ShapeMismatch",
        &["[2, 32]", "[3, 32]", "rank 3"],
    );
    let pattern = good().with("rank_pattern", json!({"up_proj": 4}));
    refused(
        &pattern,
        &TIED,
        "ShapeMismatch",
        &["up_proj", "[4, 32]", "rank 4"],
    );
}

#[test]
fn numbers_must_be_numbers() {
    for (bad, word) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let files = good().changed("layers.1.mlp.up_proj.lora_B.weight", |t| t.values[3] = bad);
        refused(
            &files,
            &TIED,
            "NotFinite",
            &["up_proj.lora_B.weight", word, "[1, 1]"],
        );
    }
    let endless = good().with("lora_alpha", 1e300);
    refused(
        &endless,
        &TIED,
        "InvalidConfig",
        &["the scale of model.layers.0", "inf"],
    );
}

#[test]
fn what_a_training_left_in_half_is_refused() {
    let empty = good().changed("layers.0.mlp.up_proj.lora_A.weight", |tensor| {
        *tensor = Stored::of(&[0], Vec::new());
    });
    refused(
        &empty,
        &TIED,
        "EmptyTensor",
        &["layers.0.mlp.up_proj.lora_A.weight", "ZeRO-3"],
    );
    let copies_only = good().without("lora_").with_tensor(
        &key(0, "input_layernorm.weight"),
        Stored::of(&[32], TIED.weights.layers[0].attention_norm.to_f32()),
    );
    refused(&copies_only, &TIED, "TouchesNothing", &["changes no layer"]);
}

#[test]
fn changed_weights_of_the_base_are_refused() {
    let table = Stored::of(&[64, 32], TIED.weights.embedding.to_f32());
    let name = "base_model.model.model.embed_tokens.weight";
    let mut changed = table.clone();
    changed.values[77] += 1.0;
    refused(
        &good().with_tensor(name, changed),
        &TIED,
        "ChangedBase",
        &[
            name,
            "trained as a whole, or the adapter was made for another model",
        ],
    );
    refused(
        &good().with_tensor(name, Stored::new("a", &[65, 32])),
        &TIED,
        "ChangedBase",
        &["tokens were added to the vocabulary"],
    );
    refused(
        &good().with_tensor(
            "base_model.model.lm_head.weight",
            Stored::new("a", &[64, 32]),
        ),
        &TIED,
        "ChangedBase",
        &["lm_head.weight"],
    );
    refused(
        &good().with_tensor(
            &key(0, "self_attn.q_proj.base_layer.bias"),
            Stored::new("a", &[32]),
        ),
        &TIED,
        "UnknownTarget",
        &["q_proj.base_layer.bias"],
    );
    refused(
        &good().with_tensor(
            "base_model.model.lm_head.modules_to_save.weight",
            Stored::new("a", &[64, 32]),
        ),
        &TIED,
        "UnsupportedOption",
        &["modules_to_save", "lm_head.modules_to_save.weight"],
    );
    refused(
        &good().with_tensor(
            &key(0, "self_attn.q_proj.lora_B.bias"),
            Stored::new("a", &[32]),
        ),
        &TIED,
        "UnsupportedOption",
        &["lora_bias", "q_proj.lora_B.bias"],
    );
}

#[test]
fn parts_that_do_not_belong_to_the_module_are_refused() {
    let magnitude = key(0, "mlp.up_proj.lora_magnitude_vector");
    let stray = good().with_tensor(&magnitude, Stored::new("a", &[48]));
    refused(
        &stray,
        &TIED,
        "InvalidConfig",
        &["does not speak of DoRA", &magnitude],
    );
    refused(
        &good().with("use_dora", true),
        &TIED,
        "Incomplete",
        &["layers.0.mlp.up_proj.lora_magnitude_vector"],
    );
    let linear = Files::peft(&TIED, &["embed_tokens"])
        .renamed(|name| name.replace("lora_embedding_A", "lora_A.weight"));
    refused(
        &linear,
        &TIED,
        "InvalidConfig",
        &["no place for", "embed_tokens.lora_A.weight"],
    );
    let a = good().tensor("layers.0.mlp.up_proj.lora_A.weight");
    refused(
        &good().with_tensor(&key(0, "mlp.up_proj.lora_A.second.weight"), a.clone()),
        &TIED,
        "DamagedFile",
        &["several tensors", "up_proj"],
    );
    let several = good()
        .renamed(|name| name.replace("lora_A.weight", "lora_A.one.weight"))
        .renamed(|name| name.replace("lora_B.weight", "lora_B.two.weight"));
    refused(
        &several,
        &TIED,
        "DamagedFile",
        &["several adapters", "one", "two"],
    );
    let mut twice = Files::peft(&PHI3, &["qkv_proj"]);
    twice.add(&PHI3, "model.layers.1.self_attn.k_proj", 2);
    let twice = twice.with("target_modules", json!(["qkv_proj", "k_proj"]));
    refused(
        &twice,
        &PHI3,
        "DamagedFile",
        &["changes model.layers.1.self_attn.k_proj twice"],
    );
}

#[test]
fn other_formats_are_refused_by_name() {
    let torchtune = good().renamed(|name| {
        name.replace("base_model.model.model.", "")
            .replace("self_attn", "attn")
            .replace("lora_A", "lora_a")
            .replace("lora_B", "lora_b")
    });
    refused(&torchtune, &TIED, "NotAnAdapter", &["torchtune", "export"]);
    let mlx = as_mlx(&good());
    let mut mixed = mlx.clone();
    mixed.config = good().config;
    refused(&mixed, &TIED, "InvalidConfig", &["no place for", "lora_a"]);
    mixed = good();
    mixed.config = mlx.config.clone();
    refused(&mixed, &TIED, "InvalidConfig", &["no place for", "lora_A"]);
    let dora = as_mlx(&Files::peft(&TIED, &["embed_tokens"]))
        .with_tensor("model.embed_tokens.m", Stored::new("m", &[32]))
        .with("fine_tune_type", "dora");
    refused(&dora, &TIED, "UnsupportedOption", &["DoRA of MLX"]);
}

#[test]
fn sizes_have_limits() {
    let (_dir, files) = good().save();
    let read = |limits| Adapter::read(&files, &TIED.config, &TIED.weights, limits);
    let limits = AdapterLimits::default();
    let error = read(AdapterLimits {
        max_rank: 1,
        ..limits
    })
    .unwrap_err();
    check(
        &error,
        "RankTooLarge",
        &["the rank of model.layers.0.mlp.up_proj is 2, but at most 1 is allowed"],
    );
    let bytes = fs::metadata(&files.tensors).unwrap().len();
    let error = read(AdapterLimits {
        max_bytes: bytes - 1,
        ..limits
    })
    .unwrap_err();
    check(&error, "TooLarge", &[&format!("has {bytes} bytes")]);
    read(AdapterLimits {
        max_rank: 2,
        max_bytes: bytes,
    })
    .unwrap();
}

#[test]
fn files_that_are_missing_damaged_or_pointers_are_refused() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    refused_bytes(
        pointer,
        "NotFetched",
        &["adapter_model.safetensors is a Git LFS pointer"],
    );
    refused_bytes(b"", "DamagedFile", &["it is empty"]);
    refused_bytes(
        b"short",
        "DamagedFile",
        &["shorter than a safetensors header"],
    );
    refused_bytes(&[0xff; 64], "DamagedFile", &["its header claims"]);
    let whole = good().tensor_bytes();
    refused_bytes(
        &whole[..whole.len() - 1],
        "DamagedFile",
        &["not fully covered"],
    );
    let none = [&2_u64.to_le_bytes()[..], b"{}"].concat();
    refused_bytes(&none, "DamagedFile", &["it holds 0 tensors"]);

    let (dir, files) = good().save();
    fs::write(&files.config, pointer).unwrap();
    check(
        &try_files(&files),
        "NotFetched",
        &["adapter_config.json is a Git LFS pointer"],
    );
    fs::write(&files.config, "{").unwrap();
    check(
        &try_files(&files),
        "InvalidConfig",
        &["adapter_config.json", "EOF"],
    );
    fs::write(&files.config, [0xff]).unwrap();
    check(
        &try_files(&files),
        "InvalidConfig",
        &["adapter_config.json", "not text"],
    );
    fs::remove_file(&files.config).unwrap();
    check(
        &try_files(&files),
        "MissingFile",
        &["adapter_config.json is missing"],
    );
    fs::create_dir(&files.config).unwrap();
    check(
        &try_files(&files),
        "InvalidConfig",
        &["adapter_config.json", "not a regular file"],
    );
    let (_other, good_files) = good().save();
    let folder = AdapterFiles {
        tensors: dir.path().to_owned(),
        config: good_files.config.clone(),
    };
    check(&try_files(&folder), "DamagedFile", &["not a regular file"]);
    fs::remove_file(&good_files.tensors).unwrap();
    check(
        &try_files(&good_files),
        "MissingFile",
        &["adapter_model.safetensors is missing"],
    );
}
