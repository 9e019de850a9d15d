//! Ways to a single pod, past the gateway.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdout, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hyprstream_tls::Trust;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::{Tiny, tls};

/// How long a worker may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// A way to a port of a pod.
pub(crate) struct Forward {
    child: Child,
    /// The end of it on this machine.
    pub(crate) address: SocketAddr,
    /// Where kubectl tells of each connection; it would end where nobody could hear it.
    _told: BufReader<ChildStdout>,
}

impl Forward {
    pub(crate) fn to(tiny: &Tiny, pod: &str, port: u16) -> Result<Self> {
        let port = format!(":{port}");
        let mut child = tiny
            .cluster
            .kubectl_command(&["-n", &tiny.namespace.name, "port-forward", pod, &port])
            .stdout(Stdio::piped())
            .spawn()
            .context("start kubectl port-forward")?;
        let mut line = String::new();
        let mut told = BufReader::new(child.stdout.take().context("stdout")?);
        told.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:40000 -> 8443
        let address = line.split_whitespace().nth(2).map(str::parse);
        let Some(Ok(address)) = address else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("no address in {line:?}");
        };
        Ok(Self {
            child,
            address,
            _told: told,
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One worker of a tiny model, asked with the Model's key and over TLS where it speaks that.
pub(crate) struct Worker {
    forward: Forward,
    key: String,
    /// How to speak TLS, and the name that the certificate must have.
    tls: Option<(Arc<ClientConfig>, String)>,
}

impl Worker {
    pub(crate) fn of(tiny: &Tiny, pod: &str) -> Result<Self> {
        let namespace = &tiny.namespace.name;
        let key = "go-template={{index .data \"key\" | base64decode}}";
        let secret = ["get", "secret", "tiny-worker-key", "-o", key];
        let key = tiny
            .cluster
            .kubectl(&[&["-n", namespace], &secret[..]].concat())?;
        let (tls, port) = if tls::is_spoken(&tiny.model)? {
            let authorities = tls::secret(tiny, "ca.crt")?;
            let trust = Trust::fixed(authorities.as_bytes(), "the bundle")?;
            let name = format!("tiny.{namespace}.workers.hyprstream.internal");
            (Some((Arc::new(trust.client_config()), name)), tls::PORT)
        } else {
            (None, 8000)
        };
        Ok(Self {
            forward: Forward::to(tiny, pod, port)?,
            key: key.trim().to_owned(),
            tls,
        })
    }

    /// Status and body of the answer to a GET.
    pub(crate) fn get(&self, path: &str) -> Result<(u16, String)> {
        let socket = TcpStream::connect(self.forward.address)?;
        socket.set_read_timeout(Some(SILENCE))?;
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: worker\r\nAuthorization: Bearer {}\r\n\r\n",
            self.key
        );
        let answer = match &self.tls {
            None => exchange(socket, &request)?,
            Some((config, name)) => {
                let name = name.clone().try_into()?;
                let tls = ClientConnection::new(Arc::clone(config), name)?;
                exchange(StreamOwned::new(tls, socket), &request)?
            }
        };
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    }
}

/// What comes back until the end.
fn exchange(mut stream: impl Read + Write, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
