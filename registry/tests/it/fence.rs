//! Addresses that the registry does not call.

use axum::{Router, http::StatusCode};
use hyprstream_contract::registry::{MirrorState, RESOLVE_PATH, Reference, ResolveRequest, reason};

use crate::{
    client::{Workspace, call, settle, upstream},
    listen::Listening,
    server::{ADMIN, Server},
    upstream::{Door, Mode},
};

fn resolve(registry: &Server, url: &str) -> serde_json::Value {
    let question = ResolveRequest {
        upstream: upstream(url, "default", None),
        reference: Reference::Head,
    };
    let body = serde_json::to_vec(&question).unwrap();
    let url = registry.url(RESOLVE_PATH);
    call("POST", &url, ADMIN, &[], Some(&body)).json()
}

#[test]
fn an_address_that_is_not_on_the_internet_is_not_called() {
    let (registry, work, origin) = (Server::fenced(&[]), Workspace::new(), Server::start());
    let commit = work.model("a", 1000, 41);
    let url = origin.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let door = Door::open(origin.address, true);
    let mut answers = Vec::new();
    for url in [
        door.url("git/a/m.git"),
        // Who answers and who does not is not to be told apart.
        "http://127.0.0.1:1/m.git".to_owned(),
        "http://169.254.169.254/m.git".to_owned(),
        "http://[::1]:1/m.git".to_owned(),
        "http://2130706433/m.git".to_owned(),
        "http://host.invalid/m.git".to_owned(),
        "ssh://git@10.96.0.1/m.git".to_owned(),
    ] {
        let answer = resolve(&registry, &url);
        let host = url.split("://").nth(1).unwrap();
        let host = host.split('/').next().unwrap().to_owned();
        assert_eq!(
            answer["reason"],
            reason::HOST_UNREACHABLE,
            "{host}: {answer}"
        );
        let message = answer["message"].as_str().unwrap();
        answers.push(
            message
                .split_once("cannot be reached")
                .unwrap()
                .1
                .to_owned(),
        );
        let status = settle(&registry, &upstream(&url, "default", None), &commit, &[]);
        assert_eq!(status.error.unwrap().reason, reason::HOST_UNREACHABLE);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(door.requests(), 0);
    // What runs the cluster may open it.
    let open = Server::fenced(&["localhost", "127.0.0.1/32"]);
    assert_eq!(resolve(&open, &door.url("git/a/m.git"))["commit"], commit);
}

#[test]
fn a_redirect_and_an_action_lead_to_no_address_that_is_not_allowed() {
    let (work, origin) = (Workspace::new(), Server::start());
    let commit = work.model("a", 1000, 42);
    let url = origin.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    // The upstream is 127.0.0.1, and what it leads to is 127.0.0.2.
    let secret = Door::open_at("127.0.0.2", origin.address, true);
    let registry = Server::fenced(&["127.0.0.1"]);
    let to = secret.url("");
    let redirecting = Listening::app(Router::new().fallback(move |uri: axum::http::Uri| {
        let to = format!("{}{}", to.trim_end_matches('/'), uri);
        async move { (StatusCode::FOUND, [("location", to)]) }
    }));
    let url = format!("http://{}/git/a/m.git", redirecting.address);
    let answer = resolve(&registry, &url);
    assert_eq!(answer["reason"], reason::UPSTREAM_ERROR, "{answer}");
    assert_eq!(secret.requests(), 0);
    // LFS: the batch answer names the other host.
    let upstream_door = Door::open(origin.address, true);
    upstream_door.set(Mode::LeadTo(secret.address()));
    let source = upstream(&upstream_door.url("git/a/m.git"), "default", None);
    let status = settle(&registry, &source, &commit, &[]);
    assert_eq!(status.state, MirrorState::Failed);
    assert_eq!(secret.requests(), 0);
    // The same leads to the bytes where it is allowed.
    let open = Server::fenced(&["127.0.0.0/8"]);
    crate::client::ready(&open, &source, &commit, &[]);
    assert!(secret.requests() > 0);
}

#[test]
fn what_a_server_says_stays_with_the_registry() {
    let registry = Server::start();
    for status in [400, 403, 404, 418, 500, 503] {
        let app = Router::new().fallback(move || async move {
            let status = StatusCode::from_u16(status).unwrap();
            (status, "the-inner-secret")
        });
        let server = Listening::app(app);
        let answer = resolve(&registry, &format!("http://{}/m.git", server.address));
        let message = answer["message"].as_str().unwrap();
        let message = message.replace(&server.address.to_string(), "");
        assert!(!message.contains("the-inner-secret"), "{message}");
        assert!(!message.contains(&status.to_string()), "{message}");
    }
}
