//! `cargo xtask down` after kill -9 of what started and held a cluster: nothing is left of it on
//! the machine. Run by `cargo xtask test`, one test at a time, on clusters of their own.
#![allow(clippy::expect_used)]

mod local;
mod traces;

use std::time::Duration;

use anyhow::{Result, ensure};
use local::Local;

/// Long enough for a machine with two busy cores.
const PATIENCE: Duration = Duration::from_mins(3);

#[test]
fn nothing_is_left_after_up_was_killed_while_the_cluster_started() -> Result<()> {
    for phase in [
        // The supervisor has not told of itself.
        None,
        Some("starts etcd and the API server"),
        Some("starts node-1"),
    ] {
        let mut local = Local::up()?;
        match phase {
            None => local.wait_until(PATIENCE, "a supervisor", Local::is_begun)?,
            Some(phase) => local.wait_until(PATIENCE, phase, |l| l.phase() == phase)?,
        }
        local.kill_up()?;
        local.down_leaves_nothing()?;
    }
    Ok(())
}

#[test]
fn nothing_is_left_after_the_supervisor_was_killed_while_the_cluster_started() -> Result<()> {
    for phase in ["makes cgroups and namespaces", "starts node-1"] {
        let mut local = Local::up()?;
        local.wait_until(PATIENCE, phase, |l| l.phase() == phase)?;
        local.kill_supervisor()?;
        ensure!(!local.up_ends(PATIENCE)?, "`up` says that it went well");
        local.down_leaves_nothing()?;
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
