use serde_json::{Map, Value, json};

use super::*;
use crate::{Activation, AttentionKind, WeightNames};

const SMOL: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05, "rope_theta": 100000, "rope_scaling": null, "vocab_size": 49152,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "rope_interleaved": false,
    "is_llama_config": true, "_name_or_path": "x", "transformers_version": "4.42.3"
}"#;

/// The outcome of reading [`SMOL`] with some options set anew, or taken away where null is set.
#[allow(clippy::needless_pass_by_value)]
fn with(changes: Value) -> Result<DecoderConfig, LoadError> {
    let mut options: Map<String, Value> = serde_json::from_str(SMOL).unwrap();
    options.extend(changes.as_object().unwrap().clone());
    DecoderConfig::parse(&Value::Object(options).to_string()).map(|(config, _)| config)
}

/// The options of a family on top of [`SMOL`]'s.
fn family(architecture: &str, model_type: &str, more: &Value) -> Value {
    let mut options = json!({
        "architectures": [architecture], "model_type": model_type,
        "rope_interleaved": null, "num_hidden_layers": 4,
    });
    let more = more.as_object().unwrap().clone();
    options.as_object_mut().unwrap().extend(more);
    options
}

fn qwen2(more: &Value) -> Value {
    family("Qwen2ForCausalLM", "qwen2", more)
}

fn gemma3(more: &Value) -> Value {
    let mut options = family("Gemma3ForCausalLM", "gemma3_text", more);
    for (name, value) in [
        ("head_dim", json!(256)),
        ("query_pre_attn_scalar", json!(256)),
        ("sliding_window", json!(512)),
        ("hidden_act", Value::Null),
    ] {
        options
            .as_object_mut()
            .unwrap()
            .entry(name)
            .or_insert(value);
    }
    options
}

#[track_caller]
fn refused(changes: Value, reason: &str, named: &str) {
    let error = with(changes).unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    assert!(error.to_string().contains(named), "{error}");
}

fn windows(config: &DecoderConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn a_published_configuration_is_read() {
    let (config, saved_as) = DecoderConfig::parse(SMOL).unwrap();
    assert_eq!(saved_as, Some(StoredType::BF16));
    assert_eq!(
        (config.head_dim, config.num_kv_heads, config.max_positions),
        (64, 3, 8192)
    );
    assert_eq!(config.num_layers(), 30);
    assert!(config.tied_head && !config.qkv_bias);
    let frequencies = &config.ropes[0].frequencies;
    assert_eq!((frequencies.len(), frequencies[0]), (32, 1.0));
    assert!((frequencies[31] - 1e5f32.powf(-62.0 / 64.0)).abs() < 1e-9);
}

#[test]
fn scaling_is_read_in_both_spellings() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let old = with(json!({"rope_scaling": llama3, "rope_theta": 5e5})).unwrap();
    let mut new = llama3;
    new["rope_theta"] = 500_000.0.into();
    let new = with(json!({"rope_parameters": new})).unwrap();
    assert_eq!(old.ropes, new.ropes);
    let linear = with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    assert!((linear.ropes[0].frequencies[0] - 0.5).abs() < 1e-9);
}

#[test]
fn qwen2_uses_its_window_above_max_window_layers_and_only_if_told_to() {
    let window = json!({"sliding_window": 128, "max_window_layers": 3});
    let unused = with(qwen2(&window)).unwrap();
    assert_eq!(windows(&unused), [None; 4]);
    assert!(unused.qkv_bias && !unused.output_bias);
    let mut used = window;
    used["use_sliding_window"] = true.into();
    assert_eq!(
        windows(&with(qwen2(&used)).unwrap()),
        [None, None, None, Some(128)]
    );
    used["layer_types"] = json!([
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention"
    ]);
    assert_eq!(
        windows(&with(qwen2(&used)).unwrap()),
        [None, Some(128), None, None]
    );
    used["use_sliding_window"] = false.into();
    refused(qwen2(&used), "InvalidConfig", "layer_types");
}

#[test]
fn gemma3_has_a_rotary_embedding_for_each_kind_of_layer_in_both_spellings() {
    let old = with(gemma3(&json!({
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    })))
    .unwrap();
    let new = with(gemma3(&json!({
        "rope_theta": null,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    })))
    .unwrap();
    assert_eq!(old, new);
    let [global, local] = &old.ropes[..] else {
        panic!("two embeddings");
    };
    assert_eq!((global.frequencies[0], local.frequencies[0]), (0.125, 1.0));
    let local = AttentionKind {
        window: Some(512),
        rope: 1,
    };
    let global = AttentionKind {
        window: None,
        rope: 0,
    };
    assert_eq!(old.layers, [local, global, local, global]);
    assert_eq!(old.activation, Activation::GeluTanh);
    assert!(old.qk_norm && old.sandwich_norms && old.norm_plus_one);
    assert!((old.embedding_scale - 24.0).abs() < 1e-12);
    assert!((old.attention_scale - 1.0 / 16.0).abs() < 1e-12);
}

#[test]
fn phi3_turns_a_part_of_each_head() {
    let phi3 = |more: Value| family("Phi3ForCausalLM", "phi3", &more);
    let part = with(phi3(
        json!({"partial_rotary_factor": 0.75, "sliding_window": 99}),
    ))
    .unwrap();
    assert_eq!((part.ropes[0].frequencies.len(), part.head_dim), (24, 64));
    assert_eq!(part.names, WeightNames::Fused);
    assert_eq!(windows(&part), [Some(99); 4]);
    let long = json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}});
    refused(phi3(long), "InvalidConfig", "longrope");
    refused(
        phi3(json!({"partial_rotary_factor": 2.0})),
        "InvalidConfig",
        "partial_rotary_factor",
    );
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    for (changes, named) in [
        (json!({"hidden_act": "relu"}), "relu"),
        (json!({"sliding_window": 4096}), "sliding_window"),
        (
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config",
        ),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
            "dynamic",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default", "beta": 1}}),
            "rope_scaling.beta",
        ),
        (
            json!({"rope_scaling": {"factor": 2}}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {}}),
            "both",
        ),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"num_key_value_heads": 2}), "evenly"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        (
            json!({"num_hidden_layers": 1_000_000_000_000_u64}),
            "num_hidden_layers",
        ),
        (json!({"hidden_size": -1}), "hidden_size"),
        (json!({"head_dim": 63}), "odd"),
        (json!({"vocab_size": null}), "vocab_size"),
        (json!({"rms_norm_eps": null}), "rms_norm_eps"),
        (json!({"torch_dtype": "int8"}), "int8"),
        (json!({"logit_scale": 0.5}), "logit_scale"),
        (qwen2(&json!({"use_mrope": true})), "use_mrope"),
        (
            qwen2(&json!({"use_sliding_window": true})),
            "sliding_window",
        ),
        (
            qwen2(&json!({"layer_types": ["full_attention"]})),
            "layer_types",
        ),
        (
            family("MistralForCausalLM", "mistral", &json!({})),
            "sliding_window",
        ),
        (family("Qwen3ForCausalLM", "qwen3", &json!({})), "head_dim"),
        (
            family(
                "MistralForCausalLM",
                "mistral",
                &json!({"sliding_window": 0}),
            ),
            "sliding_window",
        ),
        (
            gemma3(&json!({"attn_logit_softcapping": 50.0})),
            "attn_logit_softcapping",
        ),
        (
            gemma3(&json!({"final_logit_softcapping": 0.0})),
            "final_logit_softcapping",
        ),
        (
            gemma3(&json!({"use_bidirectional_attention": true})),
            "use_bidirectional_attention",
        ),
        (
            gemma3(&json!({"sliding_window_pattern": 0})),
            "sliding_window_pattern",
        ),
        (
            gemma3(&json!({"layer_types": ["chunked_attention", "", "", ""]})),
            "chunked_attention",
        ),
        (
            gemma3(&json!({"rope_parameters": {"rope_type": "default"}})),
            "rope_type",
        ),
    ] {
        refused(changes, "InvalidConfig", named);
    }
    for (changes, named) in [
        (
            json!({"architectures": ["MixtralForCausalLM"]}),
            "MixtralForCausalLM",
        ),
        (
            json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}),
            "Gemma3ForConditionalGeneration",
        ),
        (json!({"model_type": "mistral"}), "mistral"),
    ] {
        refused(changes, "UnsupportedArchitecture", named);
    }
    assert_eq!(
        DecoderConfig::parse("{").unwrap_err().reason(),
        "InvalidConfig"
    );
}

#[test]
fn numbers_that_only_python_writes_matter_only_where_they_count() {
    let with = |option: &str| DecoderConfig::parse(&SMOL.replacen('{', &format!("{{{option},"), 1));
    with(r#""initializer_range": Infinity, "max_length": NaN"#).unwrap();
    let error = with(r#""head_dim": -Infinity"#).unwrap_err().to_string();
    assert!(error.contains("head_dim"), "{error}");
}
