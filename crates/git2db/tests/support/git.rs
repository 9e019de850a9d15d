//! Repositories made with real git, served by `git http-backend`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::http::{Request, Response, Server};

/// Runs git and returns what it wrote.
#[track_caller]
pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = command(dir).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "git {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// git without anybody's configuration.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.org")
        .stdin(Stdio::null());
    command
}

/// A working copy beside a bare repository that it pushes to.
pub struct Work {
    pub dir: tempfile::TempDir,
}

impl Work {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        git(
            dir.path(),
            &["init", "-q", "--bare", "-b", "main", "origin.git"],
        );
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        let work = Self { dir };
        work.git(&["remote", "add", "origin", "../origin.git"]);
        work
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn origin(&self) -> PathBuf {
        self.dir.path().join("origin.git")
    }

    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        git(&self.work(), args)
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.work().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Commits all and pushes; returns the commit.
    #[track_caller]
    pub fn commit(&self) -> hyprstream_git2db::CommitId {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        self.git(&["push", "-q", "--no-verify", "origin", "HEAD"]);
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }
}

/// Serves every repository below a folder with `git http-backend`.
pub struct GitServer {
    pub http: Server,
}

impl GitServer {
    pub fn start(root: &Path) -> Self {
        Self::with_auth(root, None)
    }

    /// With a user name and password that are wanted for everything.
    pub fn with_auth(root: &Path, auth: Option<(&str, &str)>) -> Self {
        let root = root.to_owned();
        let expected = auth.map(|(user, password)| basic(user, password));
        let http = Server::start(move |request| {
            if let Some(expected) = &expected
                && request.header("authorization") != Some(expected)
            {
                return Response::new(401).header("WWW-Authenticate", "Basic realm=\"git\"");
            }
            backend(&root, request)
        });
        Self { http }
    }

    pub fn url(&self, name: &str) -> hyprstream_git2db::RemoteUrl {
        hyprstream_git2db::RemoteUrl::parse(&self.http.url(&format!("/{name}"))).unwrap()
    }
}

pub fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let text = format!("{user}:{password}");
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(text)
    )
}

/// One request by CGI.
pub fn backend(root: &Path, request: &Request) -> Response {
    let mut child = command(root)
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "http.receivepack")
        .env("GIT_CONFIG_VALUE_0", "true")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env(
            "CONTENT_TYPE",
            request.header("content-type").unwrap_or_default(),
        )
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env(
            "HTTP_CONTENT_ENCODING",
            request.header("content-encoding").unwrap_or_default(),
        )
        .env(
            "GIT_PROTOCOL",
            request.header("git-protocol").unwrap_or_default(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = request.body.clone();
    let feed = std::thread::spawn(move || {
        let _ = stdin.write_all(&body);
    });
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    let split = output
        .stdout
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap_or(0);
    let head = String::from_utf8_lossy(&output.stdout[..split]).into_owned();
    let mut response =
        Response::new(200).body(&output.stdout[(split + 4).min(output.stdout.len())..]);
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        if name == "Status" {
            response.status = value[..3].parse().unwrap();
        } else {
            response.headers.push((name.to_owned(), value.to_owned()));
        }
    }
    response
}
