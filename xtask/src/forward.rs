//! `kubectl port-forward` as long as a value lives.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::target::Target;

/// A port of this machine that leads to a Service.
pub(crate) struct Forward {
    /// The port on 127.0.0.1.
    pub(crate) port: u16,
    child: Child,
}

impl Forward {
    /// Opens a free port for a Service's port.
    pub(crate) fn open(target: &Target, namespace: &str, name: &str, port: u16) -> Result<Self> {
        let mut child = target
            .kubectl()
            .args(["--namespace", namespace, "port-forward"])
            .args([format!("service/{name}"), format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        let mut line = String::new();
        let out = child.stdout.take().context("kubectl has no output")?;
        let mut out = BufReader::new(out);
        out.read_line(&mut line)?;
        // It tells of every connection, and ends when nobody reads that.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        if let Some(port) = parse(&line) {
            return Ok(Self { port, child });
        }
        let _ = child.kill();
        let status = child.wait()?;
        bail!("kubectl port-forward to {name} failed ({status}): {line}")
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port in `Forwarding from 127.0.0.1:40001 -> 8080`.
fn parse(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_what_kubectl_says() {
        assert_eq!(
            parse("Forwarding from 127.0.0.1:40001 -> 8080\n"),
            Some(40001)
        );
        assert_eq!(parse("error: no such service"), None);
    }
}
