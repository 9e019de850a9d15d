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
use hyprstream_contract::registry::{Credentials, MirrorState, Upstream, reason};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    client::{Workspace, ready, settle, upstream},
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
