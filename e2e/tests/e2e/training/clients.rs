//! OpenAI's fine-tuning API, by the clients that people use.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, run};
use serde_json::Value;

use super::text;

fn var(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set"))
}

fn script(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    folder.join(name)
}

/// What a script in Python says that a stock client had of the fine-tuning API.
fn by_python(name: &str) -> Result<Value> {
    let mut python = Command::new(var("HYPRSTREAM_E2E_PYTHON")?);
    python.arg(script(name));
    by_client(python)
}

/// What `client` says with the base URL, a Model and its key as arguments; the Model is SmolLM2.
fn by_client(mut client: Command) -> Result<Value> {
    let cluster = Cluster::from_env()?;
    let key = cluster.kubectl(&[
        "-n",
        &cluster.system,
        "get",
        "secret",
        "hyprstream-fine-tuning-keys",
        "-o",
        "go-template={{index .data \"default\" | base64decode}}",
    ])?;
    let ready = [
        "wait",
        "--for=condition=Ready",
        "model/smollm2",
        "--timeout=180s",
    ];
    cluster.kubectl(&ready)?;
    let base = format!("{}/v1", cluster.ingress);
    client.args([base.as_str(), "smollm2", key.trim()]);
    Ok(serde_json::from_str(&run(&mut client)?)?)
}

#[test]
fn s18_the_openai_client_uploads_fine_tunes_and_is_refused_as_by_openai() -> Result<()> {
    let seen = by_python("fine_tuning.py")?;
    assert_eq!(seen["refusals"]["anonymous"]["status"], 401, "{seen}");
    Ok(())
}

#[test]
fn s18_the_openai_client_chats_with_what_it_fine_tuned() -> Result<()> {
    let seen = by_python("fine_tuned.py")?;
    let model = text(&seen, "/model")?;
    ensure!(model.starts_with("smollm2+"), "{seen}");
    ensure!(seen["tokens"].as_i64() > Some(0), "{seen}");
    ensure!(!text(&seen, "/answer")?.is_empty(), "{seen}");
    Ok(())
}

#[test]
fn s18_the_npm_client_uploads_fine_tunes_pauses_and_cancels() -> Result<()> {
    let packages = PathBuf::from(var("HYPRSTREAM_E2E_NODE_PACKAGES")?);
    // Node looks for packages beside the file that asks for them.
    let name = "fine_tuning.mjs";
    fs::copy(script(name), packages.join(name))?;
    let mut node = Command::new("node");
    node.arg(packages.join(name));
    let seen = by_client(node)?;
    let states = seen["states"].as_array().context("states")?;
    ensure!(states.last().is_some_and(|s| s == "cancelled"), "{seen}");
    ensure!(seen["events"].as_i64() > Some(0), "{seen}");
    Ok(())
}
