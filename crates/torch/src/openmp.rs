//! How libtorch's threads wait for work.

use std::{env, io, os::unix::process::CommandExt as _, process::Command};

/// Makes libtorch's threads on the CPU sleep while they wait, instead of spinning.
///
/// By default they spin for milliseconds after every operation. Where they do not have the cores
/// for themselves, as in a pod with a CPU limit or with busy neighbours, each then burns the time
/// that the other needs, and a model answers many times slower. OpenMP reads `OMP_WAIT_POLICY`
/// before `main`, so this replaces the program by itself with the variable set. Call it first in
/// `main`: nothing that was begun goes on, only the process id stays.
///
/// Returns, having done nothing, if the variable is set already, to whatever.
///
/// # Errors
/// When the program could not be started anew; it may go on as it is.
pub fn wait_passively() -> io::Result<()> {
    const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

    if env::var_os(WAIT_POLICY).is_some() || env::var_os("GOMP_SPINCOUNT").is_some() {
        return Ok(());
    }
    let mut args = env::args_os();
    let mut program = Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        program.arg0(name);
    }
    Err(program.args(args).env(WAIT_POLICY, "PASSIVE").exec())
}
