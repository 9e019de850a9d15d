//! What libtorch and its libraries read from the environment when they are loaded.

use std::{io, os::unix::process::CommandExt, process::Command};

/// How libgomp's threads wait. They spin for milliseconds at every barrier, and a model has
/// hundreds of barriers a token. On a node whose processors others want too, or under a CPU quota,
/// the thread that is waited for does not get to run meanwhile: 20 tokens of SmolLM2 took 20 to
/// 40 s on two busy processors, and 2 s with sleeping threads.
const WAIT_POLICY: (&str, &str) = ("OMP_WAIT_POLICY", "passive");
/// libgomp's own finer setting for the same.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";
/// Attention by cuDNN, which libtorch 2.11 prefers on new GPUs, plans anew for every length that
/// it has not seen; the other ways do not.
const CUDNN_LAST: (&str, &str) = ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1");

/// Sets what libtorch needs, unless the environment says otherwise.
///
/// libgomp reads its environment before `main`, so this program starts itself again, once, in the
/// same process.
///
/// # Errors
/// The program could not be started again; it can go on as it is.
pub fn settle() -> io::Result<()> {
    if cfg!(not(feature = "torch")) {
        return Ok(());
    }
    let missing = missing(|name| std::env::var_os(name).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).envs(missing).exec())
}

/// What is to be set.
fn missing(is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![CUDNN_LAST];
    if !is_set(SPIN_COUNT) {
        all.push(WAIT_POLICY);
    }
    all.retain(|(name, _)| !is_set(name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_set_is_set() {
        assert_eq!(missing(|_| false), [CUDNN_LAST, WAIT_POLICY]);
        assert_eq!(missing(|name| name == SPIN_COUNT), [CUDNN_LAST]);
        assert_eq!(missing(|name| name == WAIT_POLICY.0), [CUDNN_LAST]);
        assert_eq!(missing(|name| name == CUDNN_LAST.0), [WAIT_POLICY]);
        assert!(missing(|_| true).is_empty());
    }
}
