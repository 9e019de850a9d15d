//! `cargo xtask down` after kill -9 of what started and held a cluster: nothing is left of it on
//! the machine. Run by `cargo xtask test`, one test at a time, on clusters of their own.
#![allow(clippy::expect_used)]

mod local;
mod traces;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use local::{Local, Moment};

/// Long enough for a machine with two busy cores.
const PATIENCE: Duration = Duration::from_mins(3);

#[test]
fn nothing_is_left_after_up_was_killed_while_the_cluster_started() -> Result<()> {
    for moment in [
        // It has not told of itself.
        Moment::SupervisorStarts,
        Moment::Phase("starts etcd and the API server"),
        Moment::Phase("starts node-1"),
        // `up` itself has programs in the namespaces of the node then.
        Moment::Says("base image on the nodes"),
    ] {
        let mut local = Local::up()?;
        local.wait_for(&moment, PATIENCE)?;
        local.kill_up()?;
        local
            .down_leaves_nothing()
            .with_context(|| format!("after {moment:?}"))?;
    }
    Ok(())
}

#[test]
fn nothing_is_left_after_the_supervisor_was_killed_while_the_cluster_started() -> Result<()> {
    for moment in [
        Moment::Phase("makes cgroups and namespaces"),
        Moment::Phase("starts node-1"),
    ] {
        let mut local = Local::up()?;
        local.wait_for(&moment, PATIENCE)?;
        local.kill_supervisor()?;
        ensure!(!local.up_ends(PATIENCE)?, "`up` says that it went well");
        local
            .down_leaves_nothing()
            .with_context(|| format!("after {moment:?}"))?;
    }
    Ok(())
}

#[test]
fn nothing_is_left_after_a_cluster_with_pods_lost_its_supervisor() -> Result<()> {
    let mut local = Local::up()?;
    ensure!(local.up_ends(PATIENCE)?, "`up` failed: {}", local.log());
    local.run_pod(PATIENCE)?;
    local.kill_supervisor()?;
    ensure!(
        local.traces().len() > 10,
        "the control plane outlives its supervisor"
    );
    // One that is killed too leaves the rest to the next.
    local.killed_down(Duration::from_millis(60))?;
    local.down_leaves_nothing()
}
