use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::adapter::site::Module;

const FILE: &str = "adapter_config.json";

fn peft(options: &Value) -> Value {
    let mut config =
        json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]});
    let into = config.as_object_mut().unwrap();
    into.extend(options.as_object().unwrap().clone());
    config
}

fn mlx(options: &Value) -> Value {
    let mut config = json!({"lora_parameters": {"rank": 8, "scale": 20.0}});
    let into = config.as_object_mut().unwrap();
    into.extend(options.as_object().unwrap().clone());
    config
}

fn parse(config: &Value) -> Result<Settings, AdapterError> {
    Settings::parse(Path::new(FILE), &config.to_string())
}

#[track_caller]
fn reads(config: &Value) -> Settings {
    parse(config).unwrap_or_else(|error| panic!("{config}: {error}"))
}

#[track_caller]
fn refused(config: &Value, reason: &str, words: &[&str]) {
    let error = parse(config).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.reason(), reason, "{text}");
    for word in [&[FILE], words].concat() {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

fn module(name: &str) -> Module {
    Module::parse(name).unwrap()
}

/// Every option of 0.21.2 as it is written when nothing was asked for.
fn defaults() -> Value {
    let text = r#"{
        "task_type": "CAUSAL_LM", "peft_type": "LORA", "auto_mapping": null,
        "peft_version": "0.21.2", "base_model_name_or_path": "a/b", "revision": null,
        "inference_mode": true, "r": 8, "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": null, "lora_alpha": 8, "lora_dropout": 0.0, "fan_in_fan_out": false,
        "bias": "none", "use_rslora": false, "modules_to_save": null, "init_lora_weights": true,
        "layers_to_transform": null, "layers_pattern": null, "rank_pattern": {},
        "alpha_pattern": {}, "megatron_config": null, "megatron_core": "megatron.core",
        "trainable_token_indices": null, "loftq_config": {}, "eva_config": null,
        "corda_config": null, "lora_ga_config": null, "use_dora": false, "velora_config": null,
        "alora_invocation_tokens": null, "use_qalora": false, "qalora_group_size": 16,
        "monteclora_config": null, "layer_replication": null,
        "runtime_config": {"ephemeral_gpu_offload": false}, "lora_bias": false,
        "target_parameters": null, "use_bdlora": null, "arrow_config": null, "kasa_config": null,
        "ensure_weight_tying": false
    }"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_peft_writes_by_default_is_read() {
    let settings = reads(&defaults());
    let query = module("model.layers.3.self_attn.q_proj");
    assert_eq!(settings.rank(query).unwrap(), 8);
    assert!((settings.scaling(query, 8).unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(settings.targets(query).unwrap(), Some(true));
    assert_eq!(settings.targets(module("lm_head")).unwrap(), Some(false));
    assert!(!settings.dora && !settings.is_mlx());
}

#[test]
fn options_without_effect_may_be_set() {
    for options in [
        json!({"lora_dropout": 0.5}),
        json!({"inference_mode": false, "auto_mapping": {"base_model_class": "X"}}),
        json!({"megatron_core": "x", "runtime_config": {"ephemeral_gpu_offload": true}}),
        json!({"velora_config": {"rank": 1}, "qalora_group_size": 32}),
        json!({"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"}),
        json!({"init_lora_weights": "gaussian", "task_type": "FEATURE_EXTRACTION"}),
        json!({"init_lora_weights": "orthogonal"}),
        json!({"init_lora_weights": false}),
        // Converted to LoRA: the beginning stays in the file.
        json!({"corda_config": {"a": 1}, "loftq_config": {"loftq_bits": 4}}),
        json!({"unheard_of": null, "and_this": [], "and_that": false}),
        // What Python writes.
        json!({"eva_config": {"tau": "NaN"}}),
    ] {
        reads(&peft(&options));
    }
    Settings::parse(
        Path::new(FILE),
        r#"{"peft_type": "LORA", "target_modules": ["a"], "lora_dropout": NaN}"#,
    )
    .unwrap();
}

#[test]
fn options_that_change_the_answers_are_refused_by_name() {
    for (option, value) in [
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("trainable_token_indices", json!({"embed_tokens": [1]})),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("alora_invocation_tokens", json!([1, 2, 3])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1})),
        ("monteclora_config", json!({"a": 1})),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("ensure_weight_tying", json!(true)),
        ("megatron_config", json!({"a": 1})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("task_type", json!("SEQ_CLS")),
        ("peft_type", json!("ADALORA")),
        ("peft_type", json!("IA3")),
        ("a_new_option", json!("on")),
        ("a_new_number", json!(0)),
    ] {
        let config = peft(&json!({ option: value }));
        refused(&config, "UnsupportedOption", &[option, &value.to_string()]);
    }
    let config = peft(&json!({"init_lora_weights": "pissa"}));
    refused(
        &config,
        "UnsupportedOption",
        &["convert the adapter", "path_initial_model"],
    );
    let long = peft(&json!({"another": "x".repeat(500)}));
    refused(
        &long,
        "UnsupportedOption",
        &["xxx...: this option is not known"],
    );
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    for (options, words) in [
        (json!({"peft_type": null}), &["peft_type is missing"][..]),
        (
            json!({"target_modules": null}),
            &["target_modules is missing"],
        ),
        (
            json!({"target_modules": []}),
            &["target_modules is missing"],
        ),
        (json!({"target_modules": 3}), &["target_modules"]),
        (
            json!({"target_modules": "("}),
            &["target_modules", r#""(""#],
        ),
        (
            json!({"exclude_modules": "[[a"}),
            &["exclude_modules", "Python"],
        ),
        (json!({"r": 0}), &["0 is no rank"]),
        (json!({"r": -1}), &["r: "]),
        (json!({"r": "8"}), &["r: "]),
        (json!({"rank_pattern": {"q_proj": 0}}), &["0 is no rank"]),
        (
            json!({"rank_pattern": {"q_proj": "x"}}),
            &["rank_pattern", "q_proj"],
        ),
        (json!({"rank_pattern": {"q(": 1}}), &["rank_pattern", "q("]),
        (
            json!({"alpha_pattern": {"q_proj": []}}),
            &["alpha_pattern", "q_proj"],
        ),
        (json!({"lora_alpha": "NaN"}), &["lora_alpha"]),
        (
            json!({"layers_pattern": "layers"}),
            &["layers_to_transform is not"],
        ),
        (
            json!({"layers_to_transform": [1], "target_modules": "all-linear"}),
            &["target_modules to be a list"],
        ),
        (
            json!({"layers_to_transform": [1], "layers_pattern": "(a"}),
            &["layers_pattern", "parenthesis"],
        ),
    ] {
        refused(&peft(&options), "InvalidConfig", words);
    }
    for text in ["", "[]", "{\"a\":", "nothing"] {
        let error = Settings::parse(Path::new(FILE), text).unwrap_err();
        assert_eq!(error.reason(), "InvalidConfig", "{error}");
    }
}

#[test]
fn targets_are_those_of_peft() {
    let check = |options: Value, name: &str, expected: bool| {
        let settings = reads(&peft(&options));
        let found = settings.targets(module(name)).unwrap();
        assert_eq!(found, Some(expected), "{options} {name}");
    };
    let (query, up) = (
        "model.layers.1.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
    );
    check(json!({}), query, true);
    check(json!({}), up, false);
    check(json!({"target_modules": [query]}), query, true);
    check(json!({"target_modules": ["proj"]}), query, false);
    check(json!({"target_modules": "ALL-linear"}), up, true);
    check(json!({"target_modules": "all-linear"}), "lm_head", false);
    check(
        json!({"target_modules": "all-linear"}),
        "model.embed_tokens",
        false,
    );
    check(json!({"target_modules": "lm_head"}), "lm_head", true);
    check(json!({"target_modules": ".*q_proj"}), query, true);
    check(json!({"target_modules": "q_proj"}), query, false);
    check(
        json!({"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj"]}),
        up,
        false,
    );
    check(
        json!({"target_modules": "all-linear", "exclude_modules": "mlp.up_proj"}),
        up,
        true,
    );
    check(json!({"exclude_modules": ".*"}), query, false);
    check(json!({"layers_to_transform": 1}), query, true);
    check(json!({"layers_to_transform": [0, 2]}), query, false);
    check(json!({"layers_to_transform": []}), query, true);
    check(
        json!({"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}),
        query,
        true,
    );
    check(
        json!({"layers_to_transform": [1], "layers_pattern": "h"}),
        query,
        false,
    );
    // What is named in full is taken whatever its layer.
    check(
        json!({"layers_to_transform": [0], "target_modules": [query]}),
        query,
        true,
    );
}

#[test]
fn the_first_pattern_counts_and_scales_follow_the_rank() {
    let settings = reads(&peft(&json!({
        "use_rslora": true,
        "rank_pattern": {"layers.1.self_attn.q_proj": 4, "q_proj": 16},
        "alpha_pattern": {"q_proj": 3.5, "layers.1.self_attn.q_proj": 100},
    })));
    let check = |name: &str, rank: usize, scaling: f64| {
        let module = module(name);
        assert_eq!(settings.rank(module).unwrap(), rank);
        let found = f64::from(settings.scaling(module, rank).unwrap());
        assert!((found - scaling).abs() < 1e-6, "{found}");
    };
    check("model.layers.1.self_attn.q_proj", 4, 3.5 / 2.0);
    check("model.layers.0.self_attn.q_proj", 16, 3.5 / 4.0);
    check("model.layers.0.self_attn.v_proj", 8, 16.0 / 8.0_f64.sqrt());
    let plain = reads(&peft(&json!({})));
    let query = module("model.layers.0.self_attn.q_proj");
    assert!((plain.scaling(query, 8).unwrap() - 2.0).abs() < 1e-9);
}

#[test]
fn a_pattern_that_takes_too_long_is_refused_where_it_does() {
    let settings = reads(&peft(&json!({"target_modules": r"(?=.)((.*)*\2)*x"})));
    let error = settings
        .targets(module("model.layers.0.self_attn.q_proj"))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("target_modules") && text.contains("q_proj"),
        "{text}"
    );
}

#[test]
fn options_of_mlx_are_read() {
    let settings = reads(&mlx(&json!({
        "model": "mlx/model", "train": true, "fine_tune_type": "dora", "num_layers": 16,
        "lr_schedule": {"name": "cosine_decay"}, "optimizer_config": {"adam": {}}, "seed": 0,
        "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.1, "alpha": 16, "keys": ["a"]},
    })));
    let query = module("model.layers.0.self_attn.q_proj");
    assert!(settings.dora && settings.is_mlx());
    assert_eq!(settings.targets(query).unwrap(), None);
    assert!((settings.scaling(query, 8).unwrap() - 20.0).abs() < 1e-9);
    assert_eq!(settings.base.name.as_deref(), Some("mlx/model"));
    assert!(reads(&mlx(&json!({"use_dora": true, "lora_layers": 4}))).dora);
}

#[test]
fn options_of_mlx_that_are_not_served_are_refused() {
    let refused_option = |options: Value, option: &str| {
        refused(&mlx(&options), "UnsupportedOption", &[option]);
    };
    refused_option(json!({"fine_tune_type": "full"}), "fine_tune_type");
    refused_option(json!({"something": 1}), "something");
    refused_option(
        json!({"lora_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0, "alpha": 16}}),
        "lora_parameters.alpha",
    );
    refused_option(
        json!({"lora_parameters": {"rank": 8, "scale": 20.0, "other": 1}}),
        "other",
    );
    for parameters in [json!({"rank": 8}), json!({"scale": 1.0}), json!(null)] {
        let config = json!({"fine_tune_type": "lora", "lora_parameters": parameters});
        refused(
            &config,
            "InvalidConfig",
            &["lora_parameters lacks rank or scale"],
        );
    }
    let zero = json!({"lora_parameters": {"rank": 0, "scale": 1.0}});
    refused(&zero, "InvalidConfig", &["0 is no rank"]);
}
