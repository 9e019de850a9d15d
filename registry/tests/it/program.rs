//! The program itself, which can be killed.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    cluster::Secure,
    server::{ADMIN, token_files},
};

/// The program itself, which can be killed.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Program {
    pub(crate) fn start(dir: &Path, port: u16) -> Self {
        Self::run(
            Command::new(env!("CARGO_BIN_EXE_hyprstream-registry")),
            dir,
            port,
        )
    }

    /// Starts it with a log of all that it can say.
    pub(crate) fn start_talking(dir: &Path) -> Self {
        Self::run(Self::talking(), dir, 0)
    }

    /// The same with the tokens of a cluster, which listens at `secure` with TLS and has left its
    /// files in `dir`.
    pub(crate) fn start_talking_in_cluster(dir: &Path, secure: &Secure) -> Self {
        let mut command = Self::talking();
        command
            .env("HYPRSTREAM_KUBERNETES_TOKENS", "true")
            .env("KUBERNETES_SERVICE_HOST", "localhost")
            .env("KUBERNETES_SERVICE_PORT", secure.port().to_string())
            .env("HYPRSTREAM_KUBERNETES_TOKEN_FILE", &secure.token_file)
            .env("HYPRSTREAM_KUBERNETES_CA_FILE", &secure.ca_file);
        Self::run(command, dir, 0)
    }

    fn talking() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-registry"));
        let filter = "debug,hyprstream_registry=trace,hyprstream_git2db=trace";
        command.env("HYPRSTREAM_LOG", filter);
        command
    }

    /// What it has said since it serves.
    pub(crate) fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Starts it with a root of `size_mib`, of which `filler` takes `filler_mib`. The root is
    /// mounted for this process alone, so that nothing stays when it ends.
    pub(crate) fn start_with_small_disk(dir: &Path, size_mib: u32, filler_mib: u32) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-ec"])
            .arg(
                "mkdir -p \"$1/root\"; mount -t tmpfs -o size=\"$2\"m small \"$1/root\"; \
             head -c \"$3\"m /dev/zero > \"$1/root/filler\"; program=$4; shift 4; \
             exec \"$program\" \"$@\"",
            );
        command
            .arg("sh")
            .arg(dir)
            .args([size_mib.to_string(), filler_mib.to_string()]);
        command.arg(env!("CARGO_BIN_EXE_hyprstream-registry"));
        Self::run(command, dir, 0)
    }

    pub(crate) fn run(mut command: Command, dir: &Path, port: u16) -> Self {
        let files = token_files(dir);
        let child = command
            .arg("serve")
            .arg("--root")
            .arg(dir.join("root"))
            .arg("--admin-token-file")
            .arg(files.admin)
            .arg("--node-token-file")
            .arg(files.node)
            .arg("--signing-key-file")
            .arg(files.signing_key)
            .arg("--node-token-reads-all")
            .args(["--min-free-bytes", "0", "--min-backoff", "100ms"])
            .args(["--allow-upstream", "127.0.0.0/8"])
            .args(["--admin-listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Dropped if what follows panics, so that the process does not stay.
        let mut program = Self {
            child,
            address: "127.0.0.1:1".parse().unwrap(),
            log: Arc::default(),
        };
        let child = &mut program.child;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("\"serving\""));
        let line: Value = serde_json::from_str(&serving.expect("it says that it serves")).unwrap();
        // Whoever closes the pipe would end a program that logs.
        let log = Arc::clone(&program.log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = log.lock();
                log.push_str(&line);
                log.push('\n');
            }
        });
        program.address = line["listen"].as_str().unwrap().parse().unwrap();
        program
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn git_url(&self, path: &str) -> String {
        format!("http://any:{ADMIN}@{}/{path}", self.address)
    }

    /// A file below its root as the process itself sees it.
    pub(crate) fn own_file(&self, dir: &Path, name: &str) -> std::path::PathBuf {
        let file = dir.join("root").join(name);
        format!("/proc/{}/root{}", self.child.id(), file.display()).into()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
