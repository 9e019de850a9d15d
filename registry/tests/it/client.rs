//! Stock git, and HTTP calls.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_contract::registry::{
    Credentials, MIRRORS_PATH, MirrorRequest, MirrorState, MirrorStatus, Reference, Upstream,
};
use serde_json::Value;

use crate::server::{ADMIN, Server};

/// A folder with git repositories and a home of its own.
pub(crate) struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("gitconfig"),
            "[user]\nname = t\nemail = t@example.org\n[init]\ndefaultBranch = main\n\
             [filter \"lfs\"]\nclean = git-lfs clean -- %f\nsmudge = git-lfs smudge -- %f\n\
             process = git-lfs filter-process\nrequired = true\n[advice]\ndetachedHead = false\n",
        )
        .unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, folder: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(self.path(folder))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.path("gitconfig"))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false");
        command
    }

    pub(crate) fn run(&self, folder: &str, arguments: &[&str]) -> Output {
        self.command(folder, arguments).output().unwrap()
    }

    /// Runs git, which must succeed. Returns what it prints.
    #[track_caller]
    pub(crate) fn git(&self, folder: &str, arguments: &[&str]) -> String {
        let output = self.run(folder, arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(
            output.status.success(),
            "git {arguments:?}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// A new repository with one LFS file of `size` bytes, `weights.bin`, and `config.json`.
    /// Returns its commit.
    pub(crate) fn model(&self, folder: &str, size: usize, seed: u8) -> String {
        std::fs::create_dir_all(self.path(folder)).unwrap();
        self.git(folder, &["init", "-q"]);
        self.git(folder, &["lfs", "install", "--local"]);
        self.git(folder, &["lfs", "track", "*.bin"]);
        std::fs::write(self.path(folder).join("config.json"), "{}").unwrap();
        std::fs::write(self.path(folder).join("weights.bin"), noise(size, seed)).unwrap();
        self.commit(folder)
    }

    /// Commits everything. Returns the commit.
    pub(crate) fn commit(&self, folder: &str) -> String {
        self.git(folder, &["add", "-A"]);
        self.git(folder, &["commit", "-qm", "a commit"]);
        self.git(folder, &["rev-parse", "HEAD"])
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(size: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(crate) fn oid(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The answer to an HTTP call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// Calls with a token as the password of basic authentication; none if it is empty.
pub(crate) fn call(
    method: &str,
    url: &str,
    token: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Answer {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if !token.is_empty() {
        request = request.header("authorization", basic(token));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = match body {
        Some(body) => agent().run(request.body(body).unwrap()).unwrap(),
        None => agent().run(request.body(()).unwrap()).unwrap(),
    };
    let body = response
        .body_mut()
        .with_config()
        .limit(1 << 30)
        .read_to_vec()
        .unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    }
}

/// Reads an answer as far as it goes.
pub(crate) fn try_get(url: &str, token: &str) -> Result<Vec<u8>, ureq::Error> {
    let request = ureq::http::Request::get(url).header("authorization", basic(token));
    let mut response = agent().run(request.body(()).unwrap())?;
    response
        .body_mut()
        .with_config()
        .limit(1 << 30)
        .read_to_vec()
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_mins(1)))
        .build()
        .into()
}

fn basic(token: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("any:{token}")))
}

/// A batch call for objects with these contents.
pub(crate) fn batch(
    server: &Server,
    token: &str,
    repository: &str,
    operation: &str,
    oid: &str,
    size: usize,
) -> Answer {
    let body = serde_json::json!({
        "operation": operation, "transfers": ["basic"], "objects": [{"oid": oid, "size": size}],
    });
    let url = server.url(&format!("/{repository}.git/info/lfs/objects/batch"));
    call("POST", &url, token, &[], Some(body.to_string().as_bytes()))
}

pub(crate) fn upstream(url: &str, namespace: &str, credentials: Option<&str>) -> Upstream {
    Upstream {
        url: url.to_owned(),
        namespace: namespace.to_owned(),
        credentials: credentials.map(|token| Credentials::Token(token.to_owned())),
    }
}

/// Asks once for a mirror.
#[track_caller]
pub(crate) fn ask(
    address: &SocketAddr,
    upstream: &Upstream,
    commit: &str,
    include: &[&str],
) -> MirrorStatus {
    ask_for(
        address,
        upstream,
        Reference::Branch("main".into()),
        commit,
        include,
    )
}

/// Asks once for a mirror of what another reference names.
#[track_caller]
pub(crate) fn ask_for(
    address: &SocketAddr,
    upstream: &Upstream,
    reference: Reference,
    commit: &str,
    include: &[&str],
) -> MirrorStatus {
    let request = MirrorRequest {
        upstream: upstream.clone(),
        reference,
        commit: commit.parse().unwrap(),
        include: include.iter().map(|&glob| glob.to_owned()).collect(),
    };
    let body = serde_json::to_vec(&request).unwrap();
    let answer = call(
        "POST",
        &format!("http://{address}{MIRRORS_PATH}"),
        ADMIN,
        &[],
        Some(&body),
    );
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    serde_json::from_slice(&answer.body).unwrap()
}

/// Asks for a mirror until it is ready or has failed.
#[track_caller]
pub(crate) fn settle(
    server: &Server,
    upstream: &Upstream,
    commit: &str,
    include: &[&str],
) -> MirrorStatus {
    let start = Instant::now();
    loop {
        let status = ask(&server.address, upstream, commit, include);
        if status.state != MirrorState::Fetching {
            return status;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until the mirror is ready, whatever fails in between.
#[track_caller]
pub(crate) fn ready(
    server: &Server,
    upstream: &Upstream,
    commit: &str,
    include: &[&str],
) -> MirrorStatus {
    let start = Instant::now();
    loop {
        let status = settle(server, upstream, commit, include);
        if status.state == MirrorState::Ready {
            return status;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{status:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn size_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
