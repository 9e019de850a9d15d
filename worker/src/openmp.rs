//! How libtorch's OpenMP threads wait.

use std::{io, os::unix::process::CommandExt, process::Command};

/// What libgomp reads when it is loaded.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
/// Its own finer setting for the same.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// Makes OpenMP's threads sleep while they wait, unless the environment says otherwise.
///
/// libgomp's threads spin for milliseconds at every barrier, and a model has hundreds of barriers
/// a token. On a node whose processors others want too, or under a CPU quota, the thread that is
/// waited for does not get to run meanwhile: 20 tokens of SmolLM2 took 20 to 40 s on two busy
/// processors, and 2 s with sleeping threads.
///
/// libgomp reads its environment before `main`, so this program starts itself again, once, in the
/// same process.
///
/// # Errors
/// The program could not be started again; it can go on as it is.
pub fn settle() -> io::Result<()> {
    let is_set = |name| std::env::var_os(name).is_some();
    if cfg!(not(feature = "torch")) || is_set(WAIT_POLICY) || is_set(SPIN_COUNT) {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).env(WAIT_POLICY, "passive").exec())
}
