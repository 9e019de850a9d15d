//! A worker as a process of its own, for suites.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::proc;

/// Longest time for a worker to load.
const START: Duration = Duration::from_mins(2);
/// Longest time for it to drain.
const END: Duration = Duration::from_secs(30);

/// A running worker; dropping it ends it.
pub(super) struct Worker {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Worker {
    /// Starts `command` with `serve` and a free port of loopback, and waits until it is ready.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let file = proc::open_log(log)?;
        let child = command
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args([
                "--drain-delay",
                "0s",
                "--drain-timeout",
                "10s",
                "--termination-log",
            ])
            .arg(log.with_extension("last-words"))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut worker = Self {
            child,
            port,
            log: log.to_owned(),
        };
        let started = Instant::now();
        while !worker.answers("/ready") {
            if let Some(status) = worker.child.try_wait()? {
                bail!("the worker ended with {status}\n{}", proc::tail_of(log));
            }
            if started.elapsed() > START {
                bail!("the worker did not get ready\n{}", proc::tail_of(log));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(worker)
    }

    /// Its address, without a path.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails unless it still answers `/health`.
    pub(super) fn check(&self) -> Result<()> {
        if self.answers("/health") {
            return Ok(());
        }
        bail!("the worker is not healthy\n{}", proc::tail_of(&self.log))
    }

    /// Ends it as the kubelet does, and fails unless it goes in time and well.
    pub(super) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!(
                    "the worker ended with {status}\n{}",
                    proc::tail_of(&self.log)
                );
            }
            if asked.elapsed() > END {
                bail!("the worker does not end\n{}", proc::tail_of(&self.log));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether a GET is answered with 200.
    fn answers(&self, path: &str) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
