//! An upstream that is nothing but `git http-backend`, with or without a password.

use std::{path::PathBuf, process::Stdio, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_contract::registry::{Credentials, MirrorState, Reference, Upstream, reason};
use hyprstream_git2db as git2db;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    client::{Workspace, ask_for, ready, settle, upstream},
    listen::Listening,
    server::{NODE, Server},
};

struct Backend(Listening);

struct Shared {
    root: PathBuf,
    password: Option<String>,
}

impl Backend {
    fn start(root: PathBuf, password: Option<&str>) -> Self {
        let password =
            password.map(|password| format!("Basic {}", STANDARD.encode(format!("u:{password}"))));
        let state = Arc::new(Shared { root, password });
        Self(Listening::app(
            Router::new().fallback(serve).with_state(state),
        ))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.0.address)
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let text = |headers: &HeaderMap, name: header::HeaderName| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let authorization = text(&parts.headers, header::AUTHORIZATION);
    if shared
        .password
        .as_ref()
        .is_some_and(|password| *password != authorization)
    {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"x\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    let body = to_bytes(body, 1 << 24).await.unwrap();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &shared.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", text(&parts.headers, header::CONTENT_TYPE))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env(
            "HTTP_CONTENT_ENCODING",
            text(&parts.headers, header::CONTENT_ENCODING),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (written, output) = tokio::join!(
        async move { stdin.write_all(&body).await.and(stdin.shutdown().await) },
        child.wait_with_output(),
    );
    let _ = written;
    let output = output.unwrap().stdout;
    let end = output
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap().parse::<u16>().unwrap()),
            name => response.header(name, value),
        };
    }
    response
        .body(Body::from(output[end + 4..].to_vec()))
        .unwrap()
}

/// A bare repository `m.git` without LFS, and its commit.
fn repository(work: &Workspace) -> String {
    std::fs::create_dir_all(work.path("a")).unwrap();
    work.git("a", &["init", "-q"]);
    std::fs::write(work.path("a/config.json"), "{\"x\": 1}").unwrap();
    let commit = work.commit("a");
    work.git("", &["clone", "-q", "--bare", "a", "upstreams/m.git"]);
    commit
}

#[test]
fn a_plain_git_server_is_mirrored() {
    let (work, registry) = (Workspace::new(), Server::start());
    let commit = repository(&work);
    let backend = Backend::start(work.path("upstreams"), None);
    let status = ready(
        &registry,
        &upstream(&backend.url("m.git"), "default", None),
        &commit,
        &[],
    );
    let url = registry.git_url(NODE, &format!("{}.git", status.repository));
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/config.json"), b"{\"x\": 1}");
    assert_eq!((status.bytes_done, status.bytes_total), (0, 0));
}

#[test]
fn a_plain_git_server_with_a_password_is_mirrored_for_those_who_know_it() {
    let (work, registry) = (Workspace::new(), Server::start());
    let commit = repository(&work);
    let backend = Backend::start(work.path("upstreams"), Some("hunter2"));
    let source = |password: &str| Upstream {
        url: backend.url("m.git"),
        namespace: "default".into(),
        credentials: Some(Credentials::Basic {
            username: "u".into(),
            password: password.into(),
        }),
    };
    let wrong = settle(&registry, &source("wrong"), &commit, &[]);
    assert_eq!(wrong.error.unwrap().reason, reason::AUTHENTICATION_FAILED);
    let none = upstream(&backend.url("m.git"), "default", None);
    let none = settle(&registry, &none, &commit, &[]);
    assert_eq!(none.error.unwrap().reason, reason::AUTHENTICATION_FAILED);
    assert_eq!(
        ready(&registry, &source("hunter2"), &commit, &[]).state,
        MirrorState::Ready
    );
    // Afterwards as before.
    let wrong = settle(&registry, &source("wrong"), &commit, &[]);
    assert_eq!(wrong.state, MirrorState::Failed);
}

#[test]
fn what_a_model_names_without_a_ref_or_by_commit_alone_is_fetched_by_nodes() {
    let work = Workspace::new();
    let first = repository(&work);
    std::fs::write(work.path("a/config.json"), "{\"x\": 2}").unwrap();
    let tip = work.commit("a");
    work.git("a", &["push", "-q", "../upstreams/m.git", "HEAD"]);
    let backend = Backend::start(work.path("upstreams"), None);
    let source = upstream(&backend.url("m.git"), "default", None);
    for (index, reference, commit) in [
        (0, Reference::Head, &tip),
        (1, Reference::Commit(tip.parse().unwrap()), &tip),
        (2, Reference::Commit(first.parse().unwrap()), &first),
    ] {
        let registry = Server::start();
        let start = std::time::Instant::now();
        let status = loop {
            let status = ask_for(&registry.address, &source, reference.clone(), commit, &[]);
            if status.state == MirrorState::Ready {
                break status;
            }
            assert!(start.elapsed().as_secs() < 30, "{status:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        };
        // As the node plugin does it.
        let bare = work.path(&format!("node-{index}.git"));
        git2db::repo::init_bare(&bare).unwrap();
        let url = registry.url(&format!("/{}.git", status.repository));
        let commit: git2db::CommitId = commit.parse().unwrap();
        let fetch = git2db::repo::Fetch {
            url: &git2db::RemoteUrl::parse(&url).unwrap(),
            reference: &git2db::Reference::Commit(commit.clone()),
            commit: &commit,
            history: git2db::repo::History::None,
            credentials: &git2db::Credentials::Token(NODE.into()),
        };
        git2db::repo::fetch_commit(&bare, &fetch, &()).unwrap();
        assert!(git2db::repo::has_commit(&bare, &commit).unwrap());
    }
}
