#![allow(clippy::unwrap_used)]

mod learners;
mod rig;

use std::{fs, path::Path};

use serde_json::{Value, json};

use self::rig::{NAME, Rig, lines};
use super::*;

fn gate(metric: Metric) -> Gate {
    Gate {
        metric,
        max: None,
        min: None,
        baseline: Baseline::Value,
        path: None,
        max_records: 200,
        max_tokens: 16,
        schema: None,
    }
}

/// Exchanges the tensors of two names of one length in a file.
fn exchange(file: &Path, [one, other]: [&str; 2]) {
    let mut bytes = fs::read(file).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + len].to_vec()).unwrap();
    assert!(header.contains(one) && header.contains(other), "{header}");
    let aside = "~".repeat(one.len());
    let header = header
        .replace(one, &aside)
        .replace(other, one)
        .replace(&aside, other);
    bytes[8..8 + len].copy_from_slice(header.as_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn answers_that_were_learnt_by_heart_are_counted() {
    let rig = Rig::new();
    let exact = gate(Metric::ExactMatch);
    let verdicts = rig.judge(&[
        Gate {
            min: Some(1.0),
            ..exact.clone()
        },
        Gate {
            min: Some(0.5),
            baseline: Baseline::Base,
            ..exact.clone()
        },
        Gate {
            min: Some(1.0),
            ..gate(Metric::StopRate)
        },
        Gate {
            min: Some(0.0),
            max_tokens: 1,
            ..gate(Metric::StopRate)
        },
        Gate {
            min: Some(0.75),
            ..gate(Metric::JsonSchema)
        },
        Gate {
            max: Some(0.2),
            schema: Some(json!({"type": "object", "required": ["a"]})),
            ..gate(Metric::JsonSchema)
        },
        Gate {
            min: Some(1.0),
            max_records: 2,
            ..gate(Metric::JsonSchema)
        },
        Gate {
            max: Some(0.0),
            baseline: Baseline::Base,
            ..gate(Metric::EvalLoss)
        },
    ]);
    for verdict in &verdicts {
        println!("{}", verdict.message);
    }
    let values: Vec<f64> = verdicts.iter().map(|found| found.value.unwrap()).collect();
    assert_eq!(values[..7], [1.0, 1.0, 1.0, 0.0, 0.75, 0.25, 0.5]);
    assert_eq!(verdicts[1].baseline, Some(0.0));
    let passed: Vec<bool> = verdicts.iter().map(|found| found.passed).collect();
    assert_eq!(passed, [true, true, true, true, true, false, false, true]);
    assert_eq!(
        verdicts[1].message,
        "ExactMatch 1.0000, 1.0000 above the base's 0.0000: passes min 0.5"
    );
    assert_eq!(verdicts[5].message, "JsonSchema 0.2500: fails max 0.2");
    assert!(values[7] < 0.1, "{values:?}");
    assert!(
        verdicts[7].message.contains("below the base's"),
        "{}",
        verdicts[7].message
    );
}

#[test]
fn another_adapter_than_the_trained_one_is_not_in_parity() {
    let mut rig = Rig::new();
    let right = rig.parity(&rig.path("out/adapter"));
    assert!(right.passed, "{}", right.message);

    let scaled = rig.copy("scaled");
    let config = scaled.join("adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["lora_alpha"] = json!(18.0);
    fs::write(&config, settings.to_string()).unwrap();

    let swapped = rig.copy("swapped");
    let names = [
        "layers.0.self_attn.v_proj.lora_B",
        "layers.1.self_attn.v_proj.lora_B",
    ];
    exchange(&swapped.join("adapter_model.safetensors"), names);
    for adapter in [scaled, swapped] {
        let wrong = rig.parity(&adapter);
        println!("{}", wrong.message);
        assert!(!wrong.passed, "{}", wrong.message);
        assert!(wrong.value.is_some(), "{}", wrong.message);
    }

    let missing = rig.parity(&rig.path("nowhere"));
    assert!(
        !missing.passed && missing.value.is_none(),
        "{}",
        missing.message
    );

    // Another base under the same adapter.
    let other = rig.path("other");
    fs::create_dir(&other).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(rig.path("model").join(name), other.join(name)).unwrap();
    }
    let names = [
        "layers.0.mlp.down_proj.weight",
        "layers.1.mlp.down_proj.weight",
    ];
    exchange(&other.join("model.safetensors"), names);
    rig.job.model = other;
    let wrong = rig.parity(&rig.path("out/adapter"));
    println!("{}", wrong.message);
    assert!(!wrong.passed, "{}", wrong.message);
}

#[test]
fn the_last_known_good_is_the_adapter_of_the_name_or_else_the_base() {
    let rig = Rig::new();
    let gate = Gate {
        max: Some(0.0),
        baseline: Baseline::LastKnownGood,
        ..gate(Metric::EvalLoss)
    };
    let before = rig.judge(std::slice::from_ref(&gate)).remove(0);
    assert!(before.passed, "{}", before.message);
    assert!(
        before.message.contains("no adapter answers yet"),
        "{}",
        before.message
    );

    let files = AdapterFiles::numbered(&rig.path("model"), 3, NAME);
    fs::create_dir(rig.path("model/adapters")).unwrap();
    let from = rig.path("out/adapter");
    fs::copy(from.join("adapter_model.safetensors"), files.tensors).unwrap();
    fs::copy(from.join("adapter_config.json"), files.config).unwrap();
    let after = rig.judge(&[gate]).remove(0);
    assert_eq!(after.value, after.baseline);
    assert!(after.passed, "{}", after.message);
    assert!(
        after.message.contains("which is the last known good's too"),
        "{}",
        after.message
    );
}

#[test]
fn the_last_known_good_is_what_is_served_where_that_is_said() {
    let rig = Rig::new();
    let gate = Gate {
        max: Some(0.0),
        baseline: Baseline::LastKnownGood,
        ..gate(Metric::EvalLoss)
    };
    let (control, adapter) = (Control::default(), rig.path("out/adapter"));
    let served = rig.copy("served");
    let verdict = |good| {
        let gates = [gate.clone()];
        let judging = Judging {
            good,
            ..rig.judging(&gates, &control, &|_| {}, &adapter)
        };
        judge(judging).unwrap().remove(1)
    };
    let found = verdict(Ok(Some(served.as_path())));
    assert_eq!(found.value, found.baseline);
    assert!(found.passed, "{}", found.message);
    let lost = verdict(Err("it lies elsewhere"));
    assert!(!lost.passed && lost.message.contains("it lies elsewhere"));
}

#[test]
fn the_perplexity_of_a_text_is_that_of_its_windows() {
    let rig = Rig::new();
    let text = "abcdefgh".repeat(9);
    fs::write(rig.path("text.txt"), &text).unwrap();
    let windows = text.as_bytes().chunks(32).map(|window| {
        let ids: Vec<u32> = window
            .iter()
            .map(|byte| u32::from(byte - b'a') + 3)
            .collect();
        json!({ "input_ids": ids })
    });
    lines(&rig.path("windows.jsonl"), windows);
    let at = |metric, name: &str| Gate {
        max: Some(1e9),
        path: Some(rig.path(name).display().to_string()),
        ..gate(metric)
    };
    let verdicts = rig.judge(&[
        at(Metric::Perplexity, "text.txt"),
        at(Metric::Perplexity, "windows.jsonl"),
        at(Metric::EvalLoss, "windows.jsonl"),
        Gate {
            max_records: 1,
            ..at(Metric::Perplexity, "text.txt")
        },
    ]);
    let values: Vec<f64> = verdicts.iter().map(|found| found.value.unwrap()).collect();
    assert!(
        (values[0] - values[1]).abs() < 1e-9 * values[0],
        "{values:?}"
    );
    assert!((values[0].ln() - values[2]).abs() < 1e-9, "{values:?}");
    assert!((values[0] - values[3]).abs() > 1e-9, "{values:?}");
}

#[test]
fn what_cannot_be_measured_is_not_passed_and_says_why() {
    let rig = Rig::new();
    lines(
        &rig.path("texts.jsonl"),
        [json!({"text": "abc"}), json!({"text": "de"})],
    );
    fs::write(rig.path("empty.jsonl"), "").unwrap();
    fs::write(
        rig.path("bad.jsonl"),
        "{\"prompt\": \"ab=\", \"completion\": \"{\\\"a\\\":1}\"}\nnonsense\n",
    )
    .unwrap();
    let at = |metric, name: &str| Gate {
        min: Some(0.0),
        path: Some(rig.path(name).display().to_string()),
        ..gate(metric)
    };
    let mut gates = vec![
        at(Metric::ExactMatch, "texts.jsonl"),
        at(Metric::StopRate, "empty.jsonl"),
        at(Metric::EvalLoss, "missing.jsonl"),
        Gate {
            schema: Some(json!({"type": 3})),
            ..at(Metric::JsonSchema, "bad.jsonl")
        },
        gate(Metric::ServingParity),
    ];
    let count = gates.len();
    gates.push(at(Metric::ExactMatch, "bad.jsonl"));
    let mut verdicts = rig.judge(&gates);
    let usable = verdicts.remove(count);
    assert_eq!((usable.value, usable.passed), (Some(1.0), true));
    assert!(
        usable.message.contains("1 of 2 records are bad"),
        "{}",
        usable.message
    );
    let expected = [
        "none of 2 records has a prompt",
        "no sample is left of 0 records",
        "missing.jsonl",
        "the schema cannot be used",
        "remove it from the gates",
    ];
    for (verdict, expected) in verdicts.iter().zip(expected) {
        assert!(
            !verdict.passed && verdict.value.is_none(),
            "{}",
            verdict.message
        );
        assert!(verdict.message.contains(expected), "{}", verdict.message);
        assert!(!verdict.message.contains('\n'), "{}", verdict.message);
    }
}

#[test]
fn it_ends_wherever_the_control_wishes_it() {
    let rig = Rig::new();
    let adapter = rig.path("out/adapter");
    let gates = [Gate {
        baseline: Baseline::Base,
        ..gate(Metric::StopRate)
    }];
    for at in [
        "ServingParity of the trainer",
        "opening the model",
        "ServingParity of the engine",
        "StopRate of the adapter",
        "StopRate of the base",
    ] {
        let control = Control::default();
        let tell = |text: &str| {
            if text.starts_with(at) {
                control.suspend();
            }
        };
        let found = judge(rig.judging(&gates, &control, &tell, &adapter));
        assert!(found.is_err() && control.is_ended(), "{at}: {found:?}");
    }
}

#[test]
fn no_number_passes_nothing() {
    let figure = |value| Figure {
        value,
        notes: Vec::new(),
    };
    let free = gate(Metric::EvalLoss);
    let bounded = Gate {
        max: Some(1.0),
        min: Some(-1.0),
        ..free.clone()
    };
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for gate in [&free, &bounded] {
            let found = verdict(gate, &figure(value), None);
            assert!(!found.passed && found.value.is_none(), "{}", found.message);
        }
        let compared = Compared {
            figure: value,
            whose: "the base's",
            note: None,
        };
        let found = verdict(&bounded, &figure(1.0), Some(&compared));
        assert!(
            !found.passed && found.baseline.is_none(),
            "{}",
            found.message
        );
        for (engine, trainer) in [(value, 1.0), (1.0, value), (value, value)] {
            let found = parity::compared(engine, trainer, "float32");
            assert!(!found.passed, "{}", found.message);
        }
    }
}

#[test]
fn a_bound_is_on_the_difference_from_the_baseline() {
    let gate = Gate {
        max: Some(0.0),
        min: Some(-0.1),
        ..gate(Metric::EvalLoss)
    };
    let message = |value, base| {
        let figure = Figure {
            value,
            notes: vec!["2 are cut".to_owned()],
        };
        let compared = Compared {
            figure: base,
            whose: "the base's",
            note: None,
        };
        verdict(&gate, &figure, Some(&compared)).message
    };
    assert_eq!(
        message(1.5, 1.5625),
        "EvalLoss 1.5000, 0.0625 below the base's 1.5625: passes max 0 and min -0.1; 2 are cut"
    );
    assert_eq!(
        message(1.5, 1.25),
        "EvalLoss 1.5000, 0.2500 above the base's 1.2500: fails max 0; 2 are cut"
    );
    assert_eq!(
        message(1.0, 1.25),
        "EvalLoss 1.0000, 0.2500 below the base's 1.2500: fails min -0.1; 2 are cut"
    );
}
