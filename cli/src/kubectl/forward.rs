//! A port of this machine that leads to a Service, for as long as it is needed.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
};

use super::run::{Kubectl, Service, missing};
use crate::failure::{Failure, Kind};

/// A running `kubectl port-forward`; it ends with this.
#[derive(Debug)]
pub(super) struct Forward {
    child: Child,
    address: String,
}

impl Forward {
    /// Begins, on a port that is free, and waits until it is there.
    pub(super) fn to(kubectl: &Kubectl, service: &Service) -> Result<Self, Failure> {
        let mut child = kubectl
            .command()
            .args(["--namespace", &service.namespace, "port-forward"])
            .args(["--address", "127.0.0.1"])
            .arg(format!("service/{}", service.name))
            .arg(format!(":{}", service.port))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal ends an answer, not the way to the next.
            .process_group(0)
            .spawn()
            .map_err(missing)?;
        let mut line = String::new();
        let read = match child.stdout.take() {
            Some(stdout) => {
                let mut lines = BufReader::new(stdout);
                let read = lines.read_line(&mut line);
                // It goes on to write a line for every connection, and must not wait for us.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                read
            }
            None => Ok(0),
        };
        let address = read.ok().and_then(|_| address(&line));
        let Some(address) = address else {
            let mut said = String::new();
            let _ = child.kill();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            let _ = child.wait();
            return Err(Failure::new(
                Kind::Remote,
                format!("kubectl port-forward: {}", said.trim()),
            ));
        };
        if let Some(mut stderr) = child.stderr.take() {
            std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        }
        Ok(Self { child, address })
    }

    /// Host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `Forwarding from 127.0.0.1:40123 -> 8080`.
fn address(line: &str) -> Option<String> {
    let rest = line.strip_prefix("Forwarding from ")?;
    let address = rest.split_whitespace().next()?;
    address.contains(':').then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_what_kubectl_says() {
        let line = "Forwarding from 127.0.0.1:40123 -> 8080\n";
        assert_eq!(address(line).as_deref(), Some("127.0.0.1:40123"));
        assert_eq!(address("error: no pods\n"), None);
    }
}
