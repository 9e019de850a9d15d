//! The program on a node: started, ended, killed, started again.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// The disk of a node.
pub struct Node {
    pub folder: tempfile::TempDir,
    pub registry_url: String,
    pub flags: Vec<String>,
}

/// The program, which is killed when this is dropped.
pub struct Program {
    child: Child,
    pub admin: u16,
}

impl Node {
    pub fn new(registry_url: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("token"),
            format!("{}\n", super::registry::TOKEN),
        )
        .unwrap();
        Self {
            folder,
            registry_url,
            flags: vec![],
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub fn csi_socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    pub fn registration_socket(&self) -> PathBuf {
        self.path("registration")
            .join(hyprstream_csi::server::socket_name())
    }

    /// Starts the program and waits until it answers.
    pub async fn start(&self) -> Program {
        let admin = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_hyprstream-csi"))
            .env_clear()
            .arg(format!("--endpoint=unix://{}", self.csi_socket().display()))
            .arg(format!(
                "--registration-dir={}",
                self.path("registration").display()
            ))
            .arg(format!("--host-endpoint={}", self.csi_socket().display()))
            .arg(format!("--kubelet-dir={}", self.path("kubelet").display()))
            .arg(format!("--state-dir={}", self.path("state").display()))
            .arg(format!("--registry-url={}", self.registry_url))
            .arg(format!(
                "--registry-token-file={}",
                self.path("token").display()
            ))
            .arg(format!("--admin-listen={admin}"))
            .args(["--node-name=node-1", "--log=debug,h2=info,hyper=info"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut program = Program {
            child,
            admin: admin.port(),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while tokio::net::UnixStream::connect(self.registration_socket())
            .await
            .is_err()
        {
            let ended = program.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?} {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        program
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub async fn connect(&self, socket: &Path) -> Channel {
        let socket = socket.to_owned();
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move {
                    tokio::net::UnixStream::connect(socket)
                        .await
                        .map(TokioIo::new)
                }
            }))
            .await
            .unwrap()
    }
}

impl Program {
    /// `kill -9`, unless it has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as the kubelet does; returns its exit status.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.wait().await
    }

    pub async fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the program does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the admin port; returns status line, headers and body as they came.
    pub async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // It serves its sockets before this.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stream = loop {
            match tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await {
                Err(error) if Instant::now() < deadline => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                connected => break connected.unwrap(),
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        value
            .unwrap_or_else(|| panic!("{name} is not in {text}"))
            .parse()
            .unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
