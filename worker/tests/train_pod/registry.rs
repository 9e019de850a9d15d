//! The registry as a process.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

const ADMIN: &str = "admin-token-of-a-test-0123456789abcdef";

/// A registry that can be killed and started again at the same address.
pub(crate) struct Registry {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    /// In a folder that keeps what it has.
    pub(crate) fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in [
            ("admin", ADMIN),
            ("node", "node-token-of-a-test-0123456789abcdef"),
            ("key", "signing-key-of-a-test-0123456789abcdef"),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        let mut registry = Self {
            folder: folder.to_owned(),
            port: free_port(),
            child: None,
        };
        registry.start();
        registry
    }

    pub(crate) fn start(&mut self) {
        let file = |name: &str| self.folder.join(name);
        let mut child = Command::new(program())
            .arg("serve")
            .arg("--root")
            .arg(file("root"))
            .arg("--admin-token-file")
            .arg(file("admin"))
            .arg("--node-token-file")
            .arg(file("node"))
            .arg("--signing-key-file")
            .arg(file("key"))
            .args(["--min-free-bytes", "0"])
            .args(["--admin-listen", "127.0.0.1:0", "--log-format", "json"])
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        self.child = Some(child);
        let serving = lines.by_ref().map(Result::unwrap);
        let serving = serving.into_iter().any(|line| line.contains("\"serving\""));
        assert!(serving, "the registry ended");
        // Whoever closes the pipe would end a program that logs.
        std::thread::spawn(move || lines.for_each(drop));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A token that may do everything in a namespace but administer it.
    pub(crate) fn token(&self, namespace: &str) -> String {
        let output = Command::new(program())
            .args(["token", "--namespace", namespace, "--write", "--ttl", "1h"])
            .arg("--signing-key-file")
            .arg(self.folder.join("key"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn git_url(&self, repository: &str) -> String {
        format!(
            "http://any:{ADMIN}@127.0.0.1:{}/git/{repository}.git",
            self.port
        )
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The program, which lies beside ours: programs do not depend on programs, so that nothing else
/// sees to it that it is built.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let ours = Path::new(env!("CARGO_BIN_EXE_hyprstream-worker"));
        let program = ours.with_file_name("hyprstream-registry");
        if !program.exists() {
            let mut build = Command::new(env!("CARGO"));
            build.args([
                "build",
                "--locked",
                "--workspace",
                "--bin",
                "hyprstream-registry",
            ]);
            build.args(["--exclude=hyprstream-torch", "--exclude=hyprstream-e2e"]);
            if !cfg!(debug_assertions) {
                build.arg("--release");
            }
            let target = ours.ancestors().nth(2).unwrap();
            build.env("CARGO_TARGET_DIR", target);
            assert!(
                build.status().unwrap().success(),
                "the registry is not built"
            );
        }
        program
    })
}
