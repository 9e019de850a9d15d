//! kill -9 of every program, in turn and during a rollout.

use anyhow::Result;
use hyprstream_e2e::{Chat, Load, TinyModel, wait_until};

use crate::{PATIENCE, Tiny};

/// Kills `program` during a rollout while clients ask; the rollout completes. `harmless` says that
/// no request may fail: the program is not on the path of a request.
#[track_caller]
fn check(program: &str, harmless: bool) -> Result<()> {
    let tiny = Tiny::serve(&format!("kill-{program}"))?;
    // What an earlier test killed may not be back yet.
    tiny.cluster.wait_settled(PATIENCE)?;
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "go on", 32);
    question.ask()?;
    let load = Load::start(2, &question);
    let second = tiny.push_seed(2)?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["latestCommit"] == second.as_str()).then_some(()))
    })?;
    tiny.cluster.kill(program, PATIENCE)?;
    tiny.model.wait_ready_on(&second, PATIENCE)?;
    tiny.cluster.kill(program, PATIENCE)?;
    TinyModel::new(3).write(&tiny.repository)?;
    tiny.cluster.wait_registry(PATIENCE)?;
    let third = tiny.repository.publish("third")?;
    tiny.model.wait_ready_on(&third, PATIENCE)?;
    wait_until(PATIENCE, || {
        Ok(load.report().answers.contains_key(&third).then_some(()))
    })?;
    let report = load.stop()?;
    println!(
        "{program}: {:?}, failures {:?}",
        report.answers,
        report.causes()
    );
    if harmless {
        let causes = report.causes();
        assert!(
            causes.is_empty(),
            "{program} is not on the path: {causes:?}"
        );
    }
    wait_until(PATIENCE, || {
        Ok(question.ask().ok().filter(|answer| answer.commit == third))
    })?;
    tiny.cluster.wait_whole(PATIENCE)?;
    tiny.cluster.wait_registry(PATIENCE)
}

#[test]
fn s05_the_operator_may_die_at_any_time() -> Result<()> {
    check("hyprstream-operator", true)
}

#[test]
fn s05_the_registry_may_die_at_any_time() -> Result<()> {
    check("hyprstream-registry", true)
}

#[test]
fn s05_the_node_plugin_may_die_at_any_time() -> Result<()> {
    check("hyprstream-csi", true)
}

#[test]
fn s05_the_kubelet_may_die_at_any_time() -> Result<()> {
    check("kubelet", true)
}

#[test]
fn s05_the_gateway_may_die_and_only_its_requests_with_it() -> Result<()> {
    check("hyprstream-gateway", false)
}

#[test]
fn s05_a_storm_of_kills_costs_only_what_the_killed_held() -> Result<()> {
    let tiny = Tiny::serve_with("storm", "  replicas: 2\n")?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 2).then_some(()))
    })?;
    // It fails when a request is lost that no killed gateway or worker held.
    let said = tiny
        .cluster
        .xtask(&["chaos", "storm", "--model", &tiny.model.id()]);
    // Whatever it says, other tests need what was killed. The kubelet waits longer before each start
    // of a container that has been killed, and not for those of new pods.
    tiny.cluster.renew(PATIENCE)?;
    tiny.cluster.wait_registry(PATIENCE)?;
    let said = said?;
    println!("{said}");
    assert!(said.contains("whole answers"), "{said}");
    Ok(())
}

#[test]
fn s05_a_worker_may_die_and_only_its_requests_with_it() -> Result<()> {
    let tiny = Tiny::serve_with("kill-worker", "  replicas: 2\n")?;
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 2).then_some(()))
    })?;
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "go on", 64);
    let load = Load::start(4, &question);
    wait_until(PATIENCE, || Ok((load.report().total() >= 20).then_some(())))?;
    let pod = tiny.model.pods()?[0]["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    tiny.cluster
        .xtask(&["chaos", "kill", "hyprstream-worker", "--pod-uid", &pod])?;
    let before = load.report().total();
    wait_until(PATIENCE, || {
        Ok((load.report().total() >= before + 40).then_some(()))
    })?;
    let report = load.stop()?;
    println!(
        "worker: {:?}, failures {:?}",
        report.answers, report.failures
    );
    assert!(
        report.failures.len() <= 4,
        "at most what each of the four clients had in flight: {:?}",
        report.failures
    );
    wait_until(PATIENCE, || {
        Ok((tiny.model.get()?["status"]["readyReplicas"] == 2).then_some(()))
    })
}
