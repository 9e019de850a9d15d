//! Deletion, upgrade, uninstall.

use anyhow::Result;
use hyprstream_e2e::{Chat, Cluster, TinyAdapter, wait_until};

use crate::{
    PATIENCE, Tiny,
    adapters::{Tuned, wait_loaded},
    fresh_seed,
};

/// Everything of a namespace and of the cluster that belongs to its Models.
fn traces(cluster: &Cluster, namespace: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let here = [
        "-n",
        namespace,
        "deployments,services,pods,persistentvolumeclaims",
        "-o",
        "name",
    ];
    let selector = ["-l", "hyprstream.io/model"];
    let text = cluster.kubectl(&[&["get"][..], &here, &selector].concat())?;
    found.extend(text.lines().map(str::to_owned));
    let selector = format!("hyprstream.io/model-namespace={namespace}");
    let text = cluster.kubectl(&["get", "persistentvolumes", "-l", &selector, "-o", "name"])?;
    found.extend(text.lines().map(str::to_owned));
    Ok(found)
}

pub(crate) fn wait_no_traces(cluster: &Cluster, namespace: &str) -> Result<()> {
    let mut last = Vec::new();
    wait_until(PATIENCE, || {
        last = traces(cluster, namespace)?;
        Ok(last.is_empty().then_some(()))
    })
    .map_err(|error| error.context(format!("left: {last:?}")))
}

#[test]
fn s08_deleting_a_model_removes_all_that_it_made() -> Result<()> {
    let tiny = Tiny::serve("delete")?;
    assert!(traces(&tiny.cluster, &tiny.namespace.name)?.len() >= 5);
    tiny.cluster
        .kubectl(&["-n", &tiny.namespace.name, "delete", "model", "tiny"])?;
    wait_no_traces(&tiny.cluster, &tiny.namespace.name)
}

#[test]
fn s08_a_model_is_deleted_also_while_registry_and_operator_are_down() -> Result<()> {
    let tiny = Tiny::serve("orphan")?;
    let scale = |what: &str, replicas: &str| {
        let flag = format!("--replicas={replicas}");
        tiny.cluster
            .kubectl(&["-n", &tiny.cluster.system, "scale", what, &flag])
    };
    let registry = tiny.cluster.kubectl(&[
        "-n",
        &tiny.cluster.system,
        "get",
        "deployments,statefulsets",
        "-l",
        "app.kubernetes.io/component=registry",
        "-o",
        "name",
    ])?;
    scale(&registry, "0")?;
    scale("deployment/hyprstream-operator", "0")?;
    let deleted = tiny.cluster.kubectl(&[
        "-n",
        &tiny.namespace.name,
        "delete",
        "model",
        "tiny",
        "--timeout=60s",
    ]);
    let gone = deleted.is_ok();
    scale("deployment/hyprstream-operator", "1")?;
    let swept = wait_no_traces(&tiny.cluster, &tiny.namespace.name);
    scale(&registry, "1")?;
    tiny.cluster.kubectl(&[
        "-n",
        &tiny.cluster.system,
        "rollout",
        "status",
        &registry,
        "--timeout=120s",
    ])?;
    tiny.cluster.wait_registry(PATIENCE)?;
    assert!(gone, "the deletion must not wait for registry or operator");
    swept
}

#[test]
fn s08_an_upgrade_with_changed_values_loses_nothing() -> Result<()> {
    let tiny = Tiny::serve("upgrade")?;
    tiny.cluster
        .xtask(&["chaos", "helm", "upgrade", "--set", "operator.replicas=2"])?;
    let deployment = [
        "rollout",
        "status",
        "deployment/hyprstream-operator",
        "--timeout=120s",
    ];
    tiny.cluster
        .kubectl(&[&["-n", tiny.cluster.system.as_str()][..], &deployment].concat())?;
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 4);
    assert_eq!(question.ask()?.commit, tiny.commit);
    let second = tiny.push_seed(2)?;
    tiny.model.wait_ready_on(&second, PATIENCE)?;
    tiny.cluster
        .xtask(&["chaos", "helm", "upgrade", "--set", "operator.replicas=1"])?;
    tiny.cluster.xtask(&["chaos", "helm", "test"])?;
    assert_eq!(question.ask()?.commit, second);
    Ok(())
}

#[test]
fn s08_uninstall_leaves_nothing_running_and_install_brings_everything_back() -> Result<()> {
    let tuned = Tuned::serve("uninstall", "")?;
    let tiny = &tuned.tiny;
    for name in ["kept", "gone"] {
        TinyAdapter::new(fresh_seed()).write(&tuned.adapters, name)?;
    }
    let adapters = tuned.adapters.publish("two")?;
    let kept = tuned.apply("kept", "kept")?;
    let gone = tuned.apply("gone", "gone")?;
    for adapter in [&kept, &gone] {
        wait_loaded(adapter, &adapters, 1)?;
    }
    let (plain, with_adapter) = (tuned.ask("").ask()?, tuned.ask("+kept").ask()?);
    assert_ne!(plain.text, with_adapter.text);

    tiny.cluster.xtask(&["chaos", "helm", "uninstall"])?;
    // With the volume and the claim that show adapters.
    let cleared = wait_no_traces(&tiny.cluster, &tiny.namespace.name);
    let objects = tiny.model.get().and_then(|_| kept.get());
    // Nobody is there to take it off the Model's list.
    let deleted = gone.delete();
    let pods = wait_until(PATIENCE, || {
        let pods =
            tiny.cluster
                .kubectl(&["-n", &tiny.cluster.system, "get", "pods", "-o", "name"])?;
        Ok(pods.is_empty().then_some(()))
    });
    tiny.cluster.xtask(&["chaos", "helm", "upgrade"])?;
    tiny.cluster.wait_registry(PATIENCE)?;
    cleared?;
    pods?;
    objects?;
    deleted?;

    tiny.model.wait_ready_on(&tiny.commit, PATIENCE)?;
    let answer = wait_until(PATIENCE, || tuned.ask("").ask().map(Some))?;
    assert_eq!(answer.commit, tiny.commit, "the pushed repository was kept");
    assert_eq!(answer.text, plain.text);
    // The status may be the one of before; an answer is not.
    let answer = wait_until(PATIENCE, || tuned.ask("+kept").ask().map(Some))?;
    assert_eq!(answer.text, with_adapter.text);
    wait_loaded(&kept, &adapters, 1)?;
    wait_until(PATIENCE, || {
        let error = tuned
            .ask("+gone")
            .ask()
            .err()
            .map(|error| error.to_string());
        Ok(error.filter(|error| error.starts_with("404")).map(drop))
    })
}
