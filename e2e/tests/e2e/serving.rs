//! From a manifest to an answer.

use std::{env, process::Command};

use anyhow::{Context, Result};
use hyprstream_e2e::{Chat, Cluster, run};
use serde_json::Value;

use crate::{PATIENCE, Tiny, tiny_spec, tls};

#[test]
fn s01_the_openai_client_streams_paris_and_every_place_names_one_commit() -> Result<()> {
    let cluster = Cluster::from_env()?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "model/smollm2",
        "--timeout=180s",
    ])?;
    let status = cluster.get(&["model", "smollm2"])?["status"]["commit"].clone();
    let (scheme, host) = cluster.registry.split_once("://").context("registry URL")?;
    let url = format!(
        "{scheme}://e2e:{}@{host}/git/default/smollm2.git",
        cluster.registry_token
    );
    let head = run(Command::new("git").args(["ls-remote", &url, "refs/heads/main"]))?;
    let head = head.split_whitespace().next().unwrap_or_default();
    let python = env::var("HYPRSTREAM_E2E_PYTHON").context("HYPRSTREAM_E2E_PYTHON is not set")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/paris.py");
    let base = format!("{}/v1", cluster.ingress);
    let seen: Value =
        serde_json::from_str(&run(Command::new(python).args([script, &base, "smollm2"]))?)?;
    assert!(
        seen["text"]
            .as_str()
            .is_some_and(|text| text.contains("Paris")),
        "{seen}"
    );
    assert!(
        seen["pieces"].as_u64().is_some_and(|pieces| pieces > 3),
        "streamed: {seen}"
    );
    assert_eq!(seen["finish"], "stop", "{seen}");
    assert_eq!(head.len(), 40);
    for (place, commit) in [
        ("status", &status),
        ("header", &seen["commit"]),
        ("list", &seen["listed"]["hyprstream"]["commit"]),
    ] {
        assert_eq!(commit, head, "{place} must name the branch's commit");
    }
    Ok(())
}

#[test]
fn s01_both_ids_are_accepted_and_an_unknown_one_is_not_found() -> Result<()> {
    let tiny = Tiny::serve("ids")?;
    // A name that no other test has: namespaces of earlier ones may still be on their way out.
    let solo = tiny
        .namespace
        .apply_model("solo", &tiny_spec(&tiny.repository.url, ""))?;
    solo.wait_ready_on(&tiny.commit, PATIENCE)?;
    for model in ["solo".to_owned(), solo.id(), format!("{}:main", solo.id())] {
        let answer = Chat::new(&tiny.cluster.ingress, &model, "hello", 4).ask()?;
        assert_eq!(answer.commit, tiny.commit);
        assert_eq!(answer.completion_tokens, 4);
    }
    // Past the gateway nobody is answered but probes and scrapers.
    let service = if tls::is_spoken(&solo)? {
        "https:solo:8443"
    } else {
        "solo:8000"
    };
    for (path, expected) in [("v1/models", false), ("load", false), ("health", true)] {
        let path = format!(
            "/api/v1/namespaces/{}/services/{service}/proxy/{path}",
            tiny.namespace.name
        );
        let output = tiny.cluster.try_kubectl(&["get", "--raw", &path])?;
        assert_eq!(output.success, expected, "{path}: {}", output.stderr);
        let told = output.stderr.to_lowercase();
        assert!(
            expected || told.contains("unauthorized") || told.contains("logged in"),
            "{told}"
        );
    }
    let error = Chat::new(&tiny.cluster.ingress, "no-such-model", "hello", 4)
        .ask()
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("404") && !error.contains("smollm2"),
        "{error}"
    );
    Ok(())
}

#[test]
fn s01_an_ambiguous_name_is_a_400() -> Result<()> {
    let (one, two) = (Tiny::serve("twin-a")?, Tiny::serve("twin-b")?);
    let error = Chat::new(&one.cluster.ingress, "tiny", "hello", 4)
        .ask()
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("400"), "{error}");
    assert!(error.contains("model_ambiguous"), "{error}");
    assert!(
        !error.contains(&one.model.id()) && !error.contains(&two.model.id()),
        "what other namespaces have is not told: {error}"
    );
    for tiny in [&one, &two] {
        Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 4).ask()?;
    }
    Ok(())
}

#[test]
fn s01_scaling_to_zero_is_ready_and_idle_and_scaling_up_serves_again() -> Result<()> {
    let tiny = Tiny::serve("scale")?;
    let scale = |replicas: &str| {
        let arguments = [
            "-n",
            &tiny.namespace.name,
            "scale",
            "model/tiny",
            &format!("--replicas={replicas}"),
        ];
        tiny.cluster.kubectl(&arguments)
    };
    scale("0")?;
    tiny.model
        .wait_condition("Ready", "True", Some("Idle"), PATIENCE)?;
    scale("1")?;
    let answer = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "held", 4).ask()?;
    assert_eq!(
        answer.commit, tiny.commit,
        "the request is held until the worker is there"
    );
    Ok(())
}
