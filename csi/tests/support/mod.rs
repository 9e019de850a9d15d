//! A registry, a node and a kubelet for tests of the real program with real mounts.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used
)]

pub mod kubelet;
pub mod program;
pub mod registry;
#[path = "../../../crates/git2db/tests/support/mod.rs"]
pub mod remote;

use std::process::Command;

const INSIDE: &str = "HYPRSTREAM_TEST_IN_PRIVATE_MOUNTS";

/// Runs `body` where mounts are seen by nobody else and end with the process: this test program
/// calls itself again in a mount namespace of its own, for the one test
/// `name` in `module`, which is `module_path!()`.
#[track_caller]
pub fn in_private_mounts(module: &str, name: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        return runtime.unwrap().block_on(body);
    }
    // The harness names tests without the crate.
    let name = match module.split_once("::") {
        Some((_, module)) => format!("{module}::{name}"),
        None => name.to_owned(),
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare of util-linux is needed");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
    // A wrong name would run nothing.
    assert!(text.contains("test result: ok. 1 passed"), "{text}");
}
