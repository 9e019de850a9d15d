//! Sources that cannot be read: each with its own reason, healed by mending the cause.

use std::time::Duration;

use anyhow::{Context, Result};
use hyprstream_e2e::{Cluster, Namespace, Repository, TinyModel};

use crate::{PATIENCE, tiny_spec};

/// A repository with a tiny model in a namespace of its own, as the upstream of another one.
struct Upstream {
    cluster: Cluster,
    namespace: Namespace,
    commit: String,
    /// URL for other namespaces: the registry's git door, which wants a password.
    url: String,
}

impl Upstream {
    fn new(hint: &str) -> Result<(Self, Repository)> {
        let cluster = Cluster::from_env()?;
        let namespace = cluster.namespace(hint)?;
        let repository = Repository::new(&cluster, &namespace.name, "private")?;
        TinyModel::new(1).write(&repository)?;
        let commit = repository.publish("first")?;
        let (scheme, _) = cluster.registry.split_once("://").context("registry URL")?;
        let url = format!(
            "{scheme}://hyprstream-registry.{}.svc/git/{}/private.git",
            cluster.system, namespace.name
        );
        Ok((
            Self {
                cluster,
                namespace,
                commit,
                url,
            },
            repository,
        ))
    }

    fn secret(&self, password: &str) -> Result<()> {
        self.cluster.apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: upstream, namespace: {}}}\n\
             type: kubernetes.io/basic-auth\n\
             stringData: {{username: e2e, password: {password:?}}}\n",
            self.namespace.name
        ))
    }
}

fn private_spec(url: &str) -> String {
    let mut spec = tiny_spec(url, "");
    spec = spec.replace(
        "ref: {branch: main}",
        "ref: {branch: main}, secretRef: {name: upstream}",
    );
    spec
}

#[test]
fn s04_a_missing_secret_and_then_a_wrong_password_are_told_apart_and_healed() -> Result<()> {
    let (upstream, _repository) = Upstream::new("creds")?;
    let model = upstream
        .namespace
        .apply_model("tiny", &private_spec(&upstream.url))?;
    let message =
        model.wait_condition("SourceResolved", "False", Some("SecretNotFound"), PATIENCE)?;
    assert!(message.contains("upstream"), "{message}");
    upstream.secret("wrong")?;
    model.wait_condition(
        "SourceResolved",
        "False",
        Some("AuthenticationFailed"),
        PATIENCE,
    )?;
    upstream.secret(&upstream.cluster.registry_token)?;
    model.wait_ready_on(&upstream.commit, PATIENCE)
}

#[test]
fn s04_what_one_namespace_mirrored_another_cannot_read_without_credentials() -> Result<()> {
    let (upstream, _repository) = Upstream::new("owner")?;
    upstream.secret(&upstream.cluster.registry_token)?;
    let model = upstream
        .namespace
        .apply_model("tiny", &private_spec(&upstream.url))?;
    model.wait_ready_on(&upstream.commit, PATIENCE)?;
    let other = upstream.cluster.namespace("thief")?;
    let thief = other.apply_model("tiny", &tiny_spec(&upstream.url, ""))?;
    thief.wait_condition(
        "SourceResolved",
        "False",
        Some("AuthenticationFailed"),
        PATIENCE,
    )?;
    let url = format!("hyprstream://{}/private", upstream.namespace.name);
    let sneak = other.apply_model("sneak", &tiny_spec(&url, ""))?;
    sneak.wait_condition("Ready", "False", Some("AccessDenied"), PATIENCE)?;
    Ok(())
}

#[test]
fn s04_an_unreachable_host_a_missing_repository_and_a_missing_branch_have_their_reasons()
-> Result<()> {
    let (upstream, repository) = Upstream::new("sources")?;
    upstream.secret(&upstream.cluster.registry_token)?;
    let host = upstream
        .namespace
        .apply_model("host", &tiny_spec("https://no-such-host.invalid/m.git", ""))?;
    // Where clouds keep the keys of machines; not asked at all.
    let metadata = upstream
        .namespace
        .apply_model("metadata", &tiny_spec("https://169.254.169.254/m.git", ""))?;
    let missing = upstream.namespace.apply_model(
        "missing",
        &private_spec(&upstream.url.replace("private.git", "none.git")),
    )?;
    let branch = upstream.namespace.apply_model(
        "branch",
        &private_spec(&upstream.url).replace("branch: main", "branch: later"),
    )?;
    host.wait_condition("SourceResolved", "False", Some("HostUnreachable"), PATIENCE)?;
    metadata.wait_condition("SourceResolved", "False", Some("HostUnreachable"), PATIENCE)?;
    missing.wait_condition(
        "SourceResolved",
        "False",
        Some("RepositoryNotFound"),
        PATIENCE,
    )?;
    let message = branch.wait_condition(
        "SourceResolved",
        "False",
        Some("ReferenceNotFound"),
        PATIENCE,
    )?;
    assert!(message.contains("later"), "{message}");
    repository.git(&["push", "--quiet", "origin", "HEAD:later"])?;
    upstream.cluster.kubectl(&[
        "-n",
        &upstream.namespace.name,
        "annotate",
        "model/branch",
        "hyprstream.io/reconcile-at=now",
    ])?;
    branch.wait_ready_on(&upstream.commit, PATIENCE)?;
    host.patch(&format!(
        r#"{{"spec":{{"source":{{"url":{:?},"secretRef":{{"name":"upstream"}}}}}}}}"#,
        upstream.url
    ))?;
    host.wait_ready_on(&upstream.commit, PATIENCE)
}

#[test]
fn s04_an_upstream_is_served_without_a_ref_and_with_only_a_commit() -> Result<()> {
    let (upstream, _repository) = Upstream::new("defaults")?;
    upstream.secret(&upstream.cluster.registry_token)?;
    let spec = private_spec(&upstream.url);
    let spec_with = |reference: &str| spec.replace("ref: {branch: main}, ", reference);
    let default = upstream.namespace.apply_model("default", &spec_with(""))?;
    let pinned = format!("ref: {{commit: {}}}, ", upstream.commit);
    let pinned = upstream
        .namespace
        .apply_model("pinned", &spec_with(&pinned))?;
    default.wait_ready_on(&upstream.commit, PATIENCE)?;
    pinned.wait_ready_on(&upstream.commit, PATIENCE)
}

#[test]
fn s04_weights_whose_path_has_a_space_come_from_git_lfs() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let namespace = cluster.namespace("space")?;
    let repository = Repository::new(&cluster, &namespace.name, "tiny")?;
    let tiny = TinyModel::new(1);
    tiny.write(&repository)?;
    // As git-lfs writes the pattern: `my[[:space:]]weights.safetensors`.
    repository.write(".gitattributes", b"")?;
    repository.git(&["lfs", "track", "my weights.safetensors"])?;
    repository.write("my weights.safetensors", &tiny.weights()?)?;
    std::fs::remove_file(repository.path().join("model.safetensors"))?;
    repository.write(
        "model.safetensors.index.json",
        tiny.index("my weights.safetensors")?.as_bytes(),
    )?;
    let commit = repository.publish("a path with a space")?;
    let pointer = repository.git(&["cat-file", "-p", "HEAD:my weights.safetensors"])?;
    assert!(pointer.starts_with("version https://git-lfs"), "{pointer}");
    let model = namespace.apply_model("tiny", &tiny_spec(&repository.url, ""))?;
    model.wait_ready_on(&commit, PATIENCE)
}

#[test]
fn s04_an_invalid_spec_is_refused_by_kubectl_apply() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let namespace = cluster.namespace("invalid")?;
    for (spec, words) in [
        ("  source: {url: \"ftp://example.org/m\"}\n", "url"),
        (
            "  source: {url: \"https://example.org/m\", ref: {branch: a, tag: b}}\n",
            "ref",
        ),
        (
            "  source: {url: \"https://example.org/m\", ref: {commit: abc}}\n",
            "commit",
        ),
        (
            "  source: {url: \"https://example.org/m\"}\n  replicas: -1\n",
            "replicas",
        ),
        (
            "  source: {url: \"https://example.org/m\", interval: soon}\n",
            "interval",
        ),
        (
            "  source: {url: \"https://example.org/m\"}\n  rollout: {maxSurge: 3000000000}\n",
            "maxSurge",
        ),
        (
            "  source: {url: \"hyprstream://invalid/m\", secretRef: {name: a}}\n",
            "secretRef",
        ),
    ] {
        let output = cluster.try_apply(&namespace.manifest("invalid", spec))?;
        assert!(!output.success, "{spec} must be refused");
        assert!(output.stderr.contains(words), "{spec}: {}", output.stderr);
    }
    let unknown = namespace.manifest("invalid", "  source: {url: \"https://a.b/m\", depth: 1}\n");
    let output = cluster.try_apply(&unknown)?;
    assert!(
        !output.success && output.stderr.contains("depth"),
        "{}",
        output.stderr
    );
    Ok(())
}

#[test]
fn s04_a_suspended_model_ignores_pushes_until_it_is_resumed() -> Result<()> {
    let tiny = crate::Tiny::serve("suspend")?;
    tiny.model.patch(r#"{"spec":{"suspend":true}}"#)?;
    tiny.model
        .wait_condition("Progressing", "False", Some("Suspended"), PATIENCE)?;
    let second = tiny.push_seed(2)?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(tiny.model.commit()?, tiny.commit);
    tiny.model.patch(r#"{"spec":{"suspend":false}}"#)?;
    tiny.model.wait_ready_on(&second, PATIENCE)
}
