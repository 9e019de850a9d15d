//! Resolving and fetching against a real `git http-backend`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::path::Path;

use hyprstream_git2db::{
    Cancel, CommitId, Credentials, Observer, Reference, RemoteError, RemoteUrl, remote,
    repo::{self, Fetch, History},
};
use support::{GitServer, Response, Server, Work, git::git};

fn branch(name: &str) -> Reference {
    Reference::Branch(name.to_owned())
}

#[track_caller]
fn resolve(url: &RemoteUrl, reference: &Reference) -> Result<CommitId, RemoteError> {
    remote::resolve(url, reference, &Credentials::None)
}

/// With depth 1, as the node plugin does.
fn fetch(
    bare: &Path,
    url: &RemoteUrl,
    reference: &Reference,
    commit: &CommitId,
) -> Result<(), RemoteError> {
    fetch_with(
        bare,
        url,
        reference,
        commit,
        History::None,
        &Credentials::None,
        &(),
    )
}

fn fetch_with(
    bare: &Path,
    url: &RemoteUrl,
    reference: &Reference,
    commit: &CommitId,
    history: History,
    credentials: &Credentials,
    observer: &dyn Observer,
) -> Result<(), RemoteError> {
    repo::fetch_commit(
        bare,
        &Fetch {
            url,
            reference,
            commit,
            history,
            credentials,
        },
        observer,
    )
}

#[test]
fn head_branches_and_tags_are_resolved_and_annotated_tags_peeled() {
    let work = Work::new();
    let first = work.write("a", "1").commit();
    work.git(&["tag", "light"]);
    work.git(&["tag", "-a", "annotated", "-m", "x"]);
    work.git(&["checkout", "-q", "-b", "feature/x"]);
    let second = work.write("a", "2").commit();
    work.git(&["push", "-q", "--tags", "origin"]);
    let server = GitServer::start(work.dir.path());
    let url = server.url("origin.git");
    assert_eq!(resolve(&url, &Reference::Head).unwrap(), first);
    assert_eq!(resolve(&url, &branch("main")).unwrap(), first);
    assert_eq!(resolve(&url, &branch("feature/x")).unwrap(), second);
    assert_eq!(
        resolve(&url, &Reference::Tag("light".into())).unwrap(),
        first
    );
    assert_eq!(
        resolve(&url, &Reference::Tag("annotated".into())).unwrap(),
        first
    );
    assert_eq!(
        resolve(&url, &Reference::Commit(second.clone())).unwrap(),
        second
    );
    let error = resolve(&url, &branch("light")).unwrap_err();
    assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
}

/// The name is looked at again where it is connected to, so an answer that changes in between
/// leads nowhere.
#[test]
fn connections_go_only_where_the_guard_allows_and_it_sees_the_address() {
    let work = Work::new();
    let first = work.write("a", "1").commit();
    let server = GitServer::start(work.dir.path());
    let url = RemoteUrl::parse(&server.http.url_as_localhost("/origin.git")).unwrap();
    let ask = |allows: bool| {
        let guard = std::sync::Arc::new(move |host: &str, address: std::net::IpAddr| {
            assert!(host == "localhost" && address.is_loopback());
            allows
        });
        hyprstream_git2db::guarded(guard, || resolve(&url, &Reference::Head))
    };
    let error = ask(false).unwrap_err();
    assert_eq!(error.reason(), "HostUnreachable", "{error}");
    assert_eq!(server.http.requests().len(), 0, "nobody knocked");
    assert_eq!(ask(true).unwrap(), first);
    // What came before holds again.
    assert_eq!(resolve(&url, &Reference::Head).unwrap(), first);
}

#[test]
fn an_empty_repository_has_no_head() {
    let work = Work::new();
    let server = GitServer::start(work.dir.path());
    let error = resolve(&server.url("origin.git"), &Reference::Head).unwrap_err();
    assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
}

#[test]
fn a_repository_that_is_not_there_is_told_apart_from_a_host_that_is_not_there() {
    let work = Work::new();
    let server = GitServer::start(work.dir.path());
    let error = resolve(&server.url("other.git"), &Reference::Head).unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound", "{error}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for url in [
        format!("http://{closed}/a.git"),
        "http://no-such-host.invalid/a.git".to_owned(),
    ] {
        let error = resolve(&RemoteUrl::parse(&url).unwrap(), &Reference::Head).unwrap_err();
        assert_eq!(error.reason(), "HostUnreachable", "{error}");
    }
    // TLS to a server that speaks none.
    let url = server.http.url("/origin.git").replace("http:", "https:");
    let error = resolve(&RemoteUrl::parse(&url).unwrap(), &Reference::Head).unwrap_err();
    assert_eq!(error.reason(), "HostUnreachable", "{error}");
}

#[test]
fn answers_that_are_no_gits_are_explained() {
    for (status, reason) in [
        (403, "AuthenticationFailed"),
        (404, "RepositoryNotFound"),
        (429, "UpstreamError"),
        (500, "UpstreamError"),
        (503, "UpstreamError"),
        (200, "RepositoryNotFound"),
    ] {
        let server = Server::start(move |_| {
            Response::new(status)
                .header("Content-Type", "text/html")
                .body("<html>")
        });
        let url = RemoteUrl::parse(&server.url("/a.git")).unwrap();
        let error = resolve(&url, &Reference::Head).unwrap_err();
        assert_eq!(error.reason(), reason, "{status}: {error}");
    }
}

#[test]
fn right_credentials_are_taken_and_wrong_or_missing_ones_reported() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let server = GitServer::with_auth(work.dir.path(), Some(("me", "secret")));
    let url = server.url("origin.git");
    let basic = |password: &str| Credentials::Basic {
        username: "me".into(),
        password: password.into(),
    };
    assert_eq!(
        remote::resolve(&url, &Reference::Head, &basic("secret")).unwrap(),
        commit
    );
    for wrong in [
        basic("wrong"),
        Credentials::None,
        Credentials::Token("secret".into()),
    ] {
        let error = remote::resolve(&url, &Reference::Head, &wrong).unwrap_err();
        assert_eq!(error.reason(), "AuthenticationFailed", "{error}");
        assert!(!error.to_string().contains("wrong") || !error.to_string().contains("secret"));
    }
    let server = GitServer::with_auth(work.dir.path(), Some(("x-access-token", "t0ken")));
    let token = Credentials::Token("t0ken".into());
    let url = server.url("origin.git");
    assert_eq!(
        remote::resolve(&url, &Reference::Head, &token).unwrap(),
        commit
    );
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    fetch_with(
        &bare,
        &url,
        &Reference::Head,
        &commit,
        History::None,
        &token,
        &(),
    )
    .unwrap();
    assert!(repo::has_commit(&bare, &commit).unwrap());
}

#[test]
fn a_token_does_not_follow_a_redirect_to_another_host() {
    for challenge_first in [false, true] {
        let thief =
            Server::start(|_| Response::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
        let target = thief.url_as_localhost("/a.git/info/refs?service=git-upload-pack");
        let server = Server::start(move |request| {
            if challenge_first && request.header("authorization").is_none() {
                return Response::new(401).header("WWW-Authenticate", "Basic realm=\"x\"");
            }
            Response::new(302).header("Location", target.clone())
        });
        let url = RemoteUrl::parse(&server.url("/a.git")).unwrap();
        let token = Credentials::Token("t0ken".into());
        let error = remote::resolve(&url, &Reference::Head, &token).unwrap_err();
        assert!(error.to_string().contains("redirect"), "{error}");
        assert!(
            thief
                .requests()
                .iter()
                .all(|r| r.header("authorization").is_none())
        );
    }
}

#[test]
fn no_redirect_leads_to_another_host() {
    let inner = Server::start(|_| Response::new(404));
    let target = inner.url_as_localhost("/a.git/info/refs?service=git-upload-pack");
    let server = Server::start(move |_| Response::new(302).header("Location", target.clone()));
    let url = RemoteUrl::parse(&server.url("/a.git")).unwrap();
    let error = remote::resolve(&url, &Reference::Head, &Credentials::None).unwrap_err();
    assert_eq!(error.reason(), "UpstreamError", "{error}");
    assert!(inner.requests().is_empty());
}

#[test]
fn a_redirect_on_the_same_host_is_followed_with_the_token() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let root = work.dir.path().to_owned();
    let expected = support::git::basic("x-access-token", "t0ken");
    let server = Server::start(move |request| {
        if let Some(rest) = request.path.strip_prefix("/old/") {
            let host = request.header("host").unwrap();
            let to = format!("http://{host}/{rest}?{}", request.query);
            return Response::new(301).header("Location", to);
        }
        if request.header("authorization") != Some(&expected) {
            return Response::new(401).header("WWW-Authenticate", "Basic realm=\"git\"");
        }
        support::git::backend(&root, request)
    });
    let url = RemoteUrl::parse(&server.url("/old/origin.git")).unwrap();
    let token = Credentials::Token("t0ken".into());
    assert_eq!(
        remote::resolve(&url, &Reference::Head, &token).unwrap(),
        commit
    );
}

#[test]
fn a_tip_is_fetched_alone_and_the_next_commit_on_top() {
    let work = Work::new();
    let first = work.write("a", "1").write("d/b", "x").commit();
    let second = work.write("a", "2").commit();
    let server = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("deep/er/b.git");
    repo::init_bare(&bare).unwrap();
    repo::init_bare(&bare).unwrap();
    let url = server.url("origin.git");
    assert!(!repo::has_commit(&bare, &second).unwrap());
    fetch(&bare, &url, &branch("main"), &second).unwrap();
    assert!(repo::has_commit(&bare, &second).unwrap());
    assert!(!repo::has_commit(&bare, &first).unwrap(), "depth is 1");
    let before = server.http.requests().len();
    fetch(&bare, &url, &branch("main"), &second).unwrap();
    assert_eq!(
        server.http.requests().len(),
        before,
        "nothing is asked for what is there"
    );
    let third = work.write("a", "3").commit();
    fetch(&bare, &url, &branch("main"), &third).unwrap();
    assert_eq!(git(&bare, &["show", &format!("{third}:a")]), "3");
    git(&bare, &["fsck", "--strict"]);
}

#[test]
fn a_commit_behind_the_tip_is_fetched_by_name_or_else_through_its_history() {
    for (allowed, deep) in [("true", false), ("false", true)] {
        let work = Work::new();
        let first = work.write("a", "1").commit();
        let second = work.write("a", "2").commit();
        let third = work.write("a", "3").commit();
        git(
            &work.origin(),
            &["config", "uploadpack.allowAnySHA1InWant", allowed],
        );
        let server = GitServer::start(work.dir.path());
        let url = server.url("origin.git");
        let dir = tempfile::tempdir().unwrap();
        let bare = dir.path().join("b.git");
        repo::init_bare(&bare).unwrap();
        // Shallow first, so that the history has to be asked for again.
        fetch(&bare, &url, &branch("main"), &third).unwrap();
        fetch(&bare, &url, &branch("main"), &second).unwrap();
        assert_eq!(git(&bare, &["show", &format!("{second}:a")]), "2");
        assert_eq!(repo::has_commit(&bare, &first).unwrap(), deep);
        git(&bare, &["fsck", "--strict"]);
        let missing: CommitId = "1".repeat(40).parse().unwrap();
        let error = fetch(&bare, &url, &branch("main"), &missing).unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
    }
}

#[test]
fn a_commit_of_another_branch_or_an_annotated_tag_is_fetched() {
    let work = Work::new();
    work.write("a", "1").commit();
    work.git(&["checkout", "-q", "-b", "other"]);
    work.write("a", "2").commit();
    let behind = work.write("a", "3").commit();
    work.git(&["tag", "-a", "v1", "-m", "x"]);
    work.write("a", "4").commit();
    work.git(&["push", "-q", "--tags", "origin"]);
    git(
        &work.origin(),
        &["config", "uploadpack.allowAnySHA1InWant", "false"],
    );
    let server = GitServer::start(work.dir.path());
    let url = server.url("origin.git");
    for reference in [Reference::Tag("v1".into()), branch("main"), Reference::Head] {
        let dir = tempfile::tempdir().unwrap();
        let bare = dir.path().join("b.git");
        repo::init_bare(&bare).unwrap();
        fetch(&bare, &url, &reference, &behind).unwrap();
        assert_eq!(git(&bare, &["show", &format!("{behind}:a")]), "3");
    }
}

#[test]
fn a_mirror_can_be_cloned_from_with_stock_git() {
    let work = Work::new();
    let first = work.write("a", "1").commit();
    let second = work.write("a", "2").commit();
    let upstream = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("mirror.git");
    repo::init_bare(&bare).unwrap();
    let url = upstream.url("origin.git");
    // A shallow repository becomes whole.
    fetch(&bare, &url, &branch("trunk"), &second).unwrap();
    let (trunk, none) = (branch("trunk"), Credentials::None);
    fetch_with(&bare, &url, &trunk, &second, History::Whole, &none, &()).unwrap();
    assert!(repo::has_commit(&bare, &first).unwrap());
    repo::set_reference(&bare, &branch("trunk"), &second).unwrap();
    assert_eq!(
        repo::resolve_local(&bare, &Reference::Head).unwrap(),
        Some(second.clone())
    );
    assert_eq!(repo::resolve_local(&bare, &branch("main")).unwrap(), None);
    let mirror = GitServer::start(dir.path());
    git(
        dir.path(),
        &["clone", "-q", mirror.url("mirror.git").as_str(), "clone"],
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("clone/a")).unwrap(),
        "2"
    );
    // And with our own fetch, by name, as the node plugin does.
    let node = dir.path().join("node.git");
    repo::init_bare(&node).unwrap();
    let by_name = Reference::Commit(second.clone());
    fetch(&node, &mirror.url("mirror.git"), &by_name, &second).unwrap();
    assert!(repo::has_commit(&node, &second).unwrap());
}

#[test]
fn a_local_repository_is_fetched_without_depth() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    let url = RemoteUrl::local(&work.origin()).unwrap();
    assert_eq!(resolve(&url, &branch("main")).unwrap(), commit);
    fetch(&bare, &url, &branch("main"), &commit).unwrap();
    assert!(repo::has_commit(&bare, &commit).unwrap());
    let url = RemoteUrl::local(&work.dir.path().join("none")).unwrap();
    let error = resolve(&url, &Reference::Head).unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound", "{error}");
}

#[test]
fn a_cancelled_fetch_says_so() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let server = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let url = server.url("origin.git");
    let none = Credentials::None;
    let error = fetch_with(
        &bare,
        &url,
        &Reference::Head,
        &commit,
        History::None,
        &none,
        &cancel,
    )
    .unwrap_err();
    assert!(matches!(error, RemoteError::Cancelled), "{error}");
    assert!(!repo::has_commit(&bare, &commit).unwrap());
}

#[test]
fn many_fetches_at_once_ask_the_server_once() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let server = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    let url = server.url("origin.git");
    let alone = dir.path().join("alone.git");
    repo::init_bare(&alone).unwrap();
    fetch(&alone, &url, &Reference::Head, &commit).unwrap();
    let for_one = server.http.requests().len();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fetch(&bare, &url, &Reference::Head, &commit).unwrap());
        }
    });
    assert_eq!(server.http.requests().len(), 2 * for_one);
}
