//! The program with SmolLM2 in front of Python: OpenAI's client, and the tokens of transformers.
//!
//! `cargo xtask test` runs it. By hand: `HYPRSTREAM_PYTHON` is a Python with `openai` and
//! `transformers`, `HYPRSTREAM_SMOLLM2` the folder that `cargo xtask weights` prints, then
//! `cargo test --features torch --test clients -- --ignored`.
#![cfg(feature = "torch")]
#![allow(clippy::panic, clippy::unwrap_used)]

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_mins(2);
const NAME: &str = "smollm2";

/// A worker that is ready; killed when dropped.
struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    fn start() -> Self {
        // Free a moment ago, and nothing else of this test takes ports.
        let any = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = any.local_addr().unwrap().port();
        drop(any);
        let child = Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"))
            .env("LD_LIBRARY_PATH", concat!(env!("LIBTORCH"), "/lib"))
            .args(["serve", "--name", NAME, "--host", "127.0.0.1"])
            .args(["--log", "warn", "--port", &port.to_string(), "--model"])
            .arg(variable("HYPRSTREAM_SMOLLM2"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut worker = Self { child, port };
        let started = Instant::now();
        while !worker.is_ready() {
            let ended = worker.child.try_wait().unwrap();
            assert!(ended.is_none(), "the worker ended: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "the worker is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        worker
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }

    /// Runs a script of this folder with the worker's URL and these arguments.
    #[track_caller]
    fn is_liked_by(&self, script: &str, arguments: &[PathBuf]) {
        let status = Command::new(variable("HYPRSTREAM_PYTHON"))
            .arg(format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR")))
            .arg(format!("http://127.0.0.1:{}", self.port))
            .args(arguments)
            .env("NO_PROXY", "127.0.0.1")
            .env("HF_HUB_OFFLINE", "1")
            .status()
            .unwrap();
        assert!(status.success(), "{script} ended with {status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set; `cargo xtask test` sets it"))
        .into()
}

#[test]
#[ignore = "needs Python packages and weights; cargo xtask test runs it"]
fn openai_client_is_answered_as_by_openai() {
    Worker::start().is_liked_by("openai_client.py", &[NAME.into()]);
}

#[test]
#[ignore = "needs Python packages and weights; cargo xtask test runs it"]
fn tokens_are_those_of_transformers() {
    Worker::start().is_liked_by("tokens.py", &[NAME.into(), variable("HYPRSTREAM_SMOLLM2")]);
}
