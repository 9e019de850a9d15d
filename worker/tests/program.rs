//! The program as a process: what it says and how it ends when it cannot serve.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use hyprstream_contract::worker::{EXIT_MODEL_REFUSED, LastWords};
use hyprstream_engine::fake;

fn worker(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"));
    #[cfg(feature = "torch")]
    command.env("LD_LIBRARY_PATH", concat!(env!("LIBTORCH"), "/lib"));
    command.args(args).output().expect("the program starts")
}

fn serve(model: &Path, more: &[&str]) -> (Output, Option<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("termination-log");
    let (model, log_flag) = (model.display().to_string(), log.display().to_string());
    let mut args = vec![
        "serve",
        "--model",
        &model,
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ];
    args.extend(["--name", "m", "--termination-log", &log_flag]);
    args.extend(more);
    (worker(&args), std::fs::read_to_string(log).ok())
}

#[test]
fn an_unknown_flag_is_refused() {
    assert_eq!(worker(&["serve", "--nope"]).status.code(), Some(2));
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 262,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": true}"#;

#[track_caller]
fn refused(files: &[(&str, &str)], more: &[&str], reason: &str, says: &str) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let (output, words) = serve(dir.path(), more);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_MODEL_REFUSED), "{stderr}");
    let words: LastWords = serde_json::from_str(&words.expect("last words")).unwrap();
    assert_eq!(words.reason, reason, "{}", words.message);
    assert!(words.message.contains(says), "{}", words.message);
    assert!(stderr.contains(says), "{stderr}");
}

#[test]
fn each_kind_of_bad_model_is_refused_with_its_reason() {
    let tokenizer = fake::tokenizer_json().to_string();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let whole = [("config.json", CONFIG), ("tokenizer.json", &tokenizer)];
    let with = |name, content| [whole[0], whole[1], (name, content)];
    refused(&[], &[], "MissingFile", "config.json");
    refused(&[("config.json", "{")], &[], "InvalidConfig", "config.json");
    let other = CONFIG.replace("LlamaForCausalLM", "MambaForCausalLM");
    refused(
        &[("config.json", &other)],
        &[],
        "UnsupportedArchitecture",
        "MambaForCausalLM",
    );
    refused(&whole, &[], "MissingFile", "model.safetensors");
    refused(
        &with("model.safetensors", pointer),
        &[],
        "InvalidWeights",
        "pointer",
    );
    refused(
        &with("model.safetensors", "garbage"),
        &[],
        "InvalidWeights",
        "model.safetensors",
    );
    let device = ["--device", "warp"];
    refused(&whole, &device, "InvalidConfig", "--device");
    #[cfg(not(feature = "torch"))]
    refused(
        &whole,
        &["--device", "cuda:63"],
        "UnavailableDevice",
        "cuda:63",
    );
}
