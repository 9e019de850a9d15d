//! Signatures by ssh keys, as `git commit -S` makes them with `gpg.format=ssh`.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use super::CommitError;

/// The signature of `content` in ssh's armor. OpenSSH makes it: keys of every kind that it knows,
/// hardware's included, sign in the one way that `git verify-commit` accepts.
pub(super) fn by_ssh(content: &[u8], key: &Path) -> Result<String, CommitError> {
    let failed = |detail: String| CommitError::Sign {
        key: key.to_owned(),
        detail,
    };
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", "git", "-f"])
        .arg(key)
        // Nobody is asked for a passphrase, and no agent signs with another key.
        .env_remove("SSH_AUTH_SOCK")
        .env("SSH_ASKPASS_REQUIRE", "force")
        .env("SSH_ASKPASS", "false")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("ssh-keygen cannot be started: {e}")))?;
    // A child that ends early says why on its standard error, which is told below. What it writes
    // fits into a pipe, so that nobody waits for the other.
    let fed = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(content),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(said.trim().to_owned()));
    }
    fed.map_err(|e| failed(e.to_string()))?;
    match String::from_utf8(output.stdout) {
        Ok(text) if text.starts_with("-----BEGIN SSH SIGNATURE-----") => Ok(text),
        _ => Err(failed("ssh-keygen wrote no signature".to_owned())),
    }
}
