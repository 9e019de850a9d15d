//! Who may do what.

use std::os::unix::fs::MetadataExt;

use hyprstream_contract::registry::{
    ChangeKind, EVENTS_PATH, EventPage, MirrorState, RESOLVE_PATH, Reference, ResolveRequest,
    reason,
};

use crate::{
    client::{Workspace, ask, batch, call, noise, oid, upstream},
    server::{ADMIN, NODE, Server, token},
};

const REFS: &str = "/git/a/m.git/info/refs?service=";

#[test]
fn nothing_is_served_without_a_token() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 1);
    work.git(
        "a",
        &["push", "-q", &server.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let oid = oid(&noise(1000, 1));
    for path in [
        "/git/a/m.git/info/refs?service=git-upload-pack",
        "/git/a/missing.git/info/refs?service=git-upload-pack",
        &format!("/git/a/m.git/info/lfs/objects/{oid}"),
        "/git/a/m.git/HEAD",
        "/git/a/m.git/objects/info/packs",
        "/mirror/x.git/info/refs?service=git-upload-pack",
        "/api/v1/events",
    ] {
        for token in ["", "wrong-token-of-the-tests"] {
            let answer = call("GET", &server.url(path), token, &[], None);
            assert_eq!(answer.status, 401, "{path}");
            assert!(
                answer.header("www-authenticate").starts_with("Basic "),
                "{path}"
            );
        }
    }
    assert_eq!(
        call("GET", &server.url("/healthz"), "", &[], None).status,
        200
    );
    let anonymous = server.url("/git/a/m.git");
    assert!(
        !work
            .run("", &["clone", "-q", &anonymous, "b"])
            .status
            .success()
    );
}

#[test]
fn git_asks_for_a_token_when_it_is_told_to() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 2);
    work.git(
        "a",
        &["push", "-q", &server.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let askpass = work.path("askpass");
    std::fs::write(&askpass, format!("#!/bin/sh\necho {}\n", token("a", false))).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&askpass, executable).unwrap();
    let mut clone = work.command("", &["clone", "-q", &server.url("/git/a/m.git"), "b"]);
    assert!(
        clone
            .env("GIT_ASKPASS", &askpass)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(work.read("b/weights.bin"), noise(1000, 2));
    // As a bearer token too.
    let header = format!(
        "http.extraHeader=Authorization: Bearer {}",
        token("a", false)
    );
    work.git(
        "",
        &[
            "-c",
            &header,
            "clone",
            "-q",
            &server.url("/git/a/m.git"),
            "c",
        ],
    );
    assert_eq!(work.read("c/weights.bin"), noise(1000, 2));
}

#[test]
fn each_token_opens_what_it_is_for() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 3);
    work.git(
        "a",
        &["push", "-q", &server.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let status = |token: &str, service: &str| {
        call(
            "GET",
            &server.url(&format!("{REFS}{service}")),
            token,
            &[],
            None,
        )
        .status
    };
    let (reader, writer, other) = (token("a", false), token("a", true), token("b", true));
    for (who, read, write) in [
        (ADMIN, 200, 200),
        (NODE, 200, 403),
        (reader.as_str(), 200, 403),
        (writer.as_str(), 200, 200),
        (other.as_str(), 403, 403),
    ] {
        assert_eq!(status(who, "git-upload-pack"), read);
        assert_eq!(status(who, "git-receive-pack"), write);
        let lfs = batch(
            &server,
            who,
            "git/a/m",
            "download",
            &oid(&noise(1000, 3)),
            1000,
        );
        assert_eq!(lfs.status, read);
        let lfs = batch(&server, who, "git/a/m", "upload", &oid(b"new"), 3);
        assert_eq!(lfs.status, write);
        let api = call("GET", &server.url("/api/v1/events?after=0"), who, &[], None);
        assert_eq!(api.status, if who == ADMIN { 200 } else { 403 });
    }
    // Not even the admin writes a mirror.
    let id = "0".repeat(64);
    let refs = server.url(&format!(
        "/mirror/{id}.git/info/refs?service=git-receive-pack"
    ));
    assert_eq!(call("GET", &refs, ADMIN, &[], None).status, 403);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let server = Server::start();
    for path in [
        "/git/a/..%2F..%2Fx.git/info/refs?service=git-receive-pack",
        "/git/%2E%2E/x.git/info/refs?service=git-receive-pack",
        "/git/A/x.git/info/refs?service=git-receive-pack",
        "/git/a/.git/info/refs?service=git-receive-pack",
        "/git/a/x%00.git/info/refs?service=git-receive-pack",
        "/mirror/..%2Fgit%2Fa%2Fx.git/info/refs?service=git-upload-pack",
        "/mirror/abc.git/info/refs?service=git-upload-pack",
    ] {
        let status = call("GET", &server.url(path), ADMIN, &[], None).status;
        assert_eq!(status, 400, "{path}");
    }
    for oid in ["..%2F..%2Flock", &"A".repeat(64), "abc"] {
        let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{oid}?size=1"));
        assert_eq!(
            call("PUT", &url, ADMIN, &[], Some(b"x")).status,
            422,
            "{oid}"
        );
    }
}

#[test]
fn a_pointer_to_somebody_elses_object_gives_no_access_to_it() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 4);
    work.git(
        "a",
        &[
            "push",
            "-q",
            &server.git_url(&token("a", true), "git/a/m.git"),
            "main",
        ],
    );
    // The same commit, pushed without its objects to a repository of another namespace.
    let thief = token("b", true);
    let mut push = work.command(
        "a",
        &["push", &server.git_url(&thief, "git/b/m.git"), "main"],
    );
    assert!(
        push.env("GIT_LFS_SKIP_PUSH", "1")
            .status()
            .unwrap()
            .success()
    );
    let bytes = noise(1000, 4);
    let oid = oid(&bytes);
    let answer = batch(&server, &thief, "git/b/m", "download", &oid, 1000).json();
    assert_eq!(answer["objects"][0]["error"]["code"], 404, "{answer}");
    let url = server.url(&format!("/git/b/m.git/info/lfs/objects/{oid}"));
    assert_eq!(call("GET", &url, &thief, &[], None).status, 404);
    // An upload asks for the bytes, although the store has them, and checks them.
    let answer = batch(&server, &thief, "git/b/m", "upload", &oid, 1000).json();
    let href = answer["objects"][0]["actions"]["upload"]["href"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        call("PUT", &href, &thief, &[], Some(&noise(1000, 5))).status,
        422
    );
    assert_eq!(call("GET", &url, &thief, &[], None).status, 404);
    assert_eq!(call("PUT", &href, &thief, &[], Some(&bytes)).status, 200);
    assert_eq!(call("GET", &url, &thief, &[], None).body, bytes);
    // And it lies on the disk once.
    let lfs = format!("hyprstream/lfs/{}/{}/{oid}", &oid[..2], &oid[2..4]);
    let inode = |repository: &str| {
        std::fs::metadata(server.root().join("git").join(repository).join(&lfs))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("a/m.git"), inode("b/m.git"));
}

#[test]
fn a_pushed_repository_is_a_source_for_its_own_namespace() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = work.model("a", 1000, 6);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let resolve = |namespace: &str, reference: Reference| {
        let upstream = upstream("hyprstream://a/m", namespace, None);
        let body = serde_json::to_vec(&ResolveRequest {
            upstream,
            reference,
        })
        .unwrap();
        call("POST", &server.url(RESOLVE_PATH), ADMIN, &[], Some(&body)).json()
    };
    let branch = |name: &str| Reference::Branch(name.into());
    assert_eq!(resolve("a", branch("main"))["commit"], commit);
    assert_eq!(resolve("a", Reference::Head)["commit"], commit);
    assert_eq!(
        resolve("a", branch("nope"))["reason"],
        reason::REFERENCE_NOT_FOUND
    );
    assert_eq!(
        resolve("b", branch("main"))["reason"],
        reason::ACCESS_DENIED
    );

    let ours = ask(
        &server.address,
        &upstream("hyprstream://a/m", "a", None),
        &commit,
        &[],
    );
    assert_eq!(
        (ours.state, ours.repository.as_str()),
        (MirrorState::Ready, "git/a/m")
    );
    assert_eq!((ours.bytes_done, ours.bytes_total), (1000, 1000));
    let failed = |url: &str, namespace: &str, commit: &str| {
        let status = ask(
            &server.address,
            &upstream(url, namespace, None),
            commit,
            &[],
        );
        assert_eq!(status.state, MirrorState::Failed);
        status.error.unwrap()
    };
    assert_eq!(
        failed("hyprstream://a/m", "b", &commit).reason,
        reason::ACCESS_DENIED
    );
    assert_eq!(
        failed("hyprstream://a/n", "a", &commit).reason,
        reason::REPOSITORY_NOT_FOUND
    );
    let unknown = "0".repeat(40);
    assert_eq!(
        failed("hyprstream://a/m", "a", &unknown).reason,
        reason::REFERENCE_NOT_FOUND
    );

    // A commit stays when its branch goes.
    work.git("a", &["commit", "-q", "--amend", "-m", "another"]);
    work.git("a", &["push", "-q", "--force", &url, "main"]);
    let bare = server.root().join("git/a/m.git");
    let bare = bare.to_str().unwrap();
    work.git(
        "",
        &[
            "--git-dir",
            bare,
            "-c",
            "safe.directory=*",
            "gc",
            "-q",
            "--prune=now",
        ],
    );
    let kept = ask(
        &server.address,
        &upstream("hyprstream://a/m", "a", None),
        &commit,
        &[],
    );
    assert_eq!(kept.state, MirrorState::Ready, "{kept:?}");
}

#[test]
fn a_pushed_commit_without_its_objects_is_named_with_file_and_object() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = work.model("a", 1000, 7);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    let mut push = work.command("a", &["push", &url, "main"]);
    assert!(
        push.env("GIT_LFS_SKIP_PUSH", "1")
            .status()
            .unwrap()
            .success()
    );
    let source = upstream("hyprstream://a/m", "a", None);
    let status = ask(&server.address, &source, &commit, &[]);
    let error = status.error.unwrap();
    assert_eq!(error.reason, reason::MISSING_OBJECT);
    assert!(error.message.contains("weights.bin"), "{error}");
    assert!(error.message.contains(&oid(&noise(1000, 7))), "{error}");
    // Files that are not included are not missed.
    assert_eq!(
        ask(&server.address, &source, &commit, &["*.json"]).state,
        MirrorState::Ready
    );
    work.git("a", &["lfs", "push", "--all", &url]);
    assert_eq!(
        ask(&server.address, &source, &commit, &[]).state,
        MirrorState::Ready
    );
}

#[test]
fn a_push_is_announced_to_those_who_wait() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 8);
    let page = |after: u64| -> EventPage {
        let url = server.url(&format!("{EVENTS_PATH}?after={after}"));
        serde_json::from_slice(&call("GET", &url, ADMIN, &[], None).body).unwrap()
    };
    let first = page(0);
    assert!(first.reset);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| page(first.last));
        work.git(
            "a",
            &["push", "-q", &server.git_url(ADMIN, "git/a/m.git"), "main"],
        );
        let events = waiting.join().unwrap().events;
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].namespace.as_str(), events[0].name.as_str()),
            ("a", "m")
        );
        let change = events[0].change.as_ref().unwrap();
        assert_eq!(
            (change.kind, change.subject.as_str(), change.is_default),
            (ChangeKind::Push, "admin token", true)
        );
        assert_eq!(change.reference.as_deref(), Some("refs/heads/main"));
        assert_eq!(change.old.as_deref(), Some("0".repeat(40).as_str()));
        let tip = work.git("a", &["rev-parse", "main"]);
        assert_eq!(change.new.as_deref(), Some(tip.trim()));
        assert!(change.bytes.unwrap() > 0);
    });
    let server = server.restart();
    let url = server.url(&format!("{EVENTS_PATH}?after={}", first.last + 1));
    let page: EventPage =
        serde_json::from_slice(&call("GET", &url, ADMIN, &[], None).body).unwrap();
    assert!(page.reset);
}

#[test]
fn bodies_and_batches_have_limits_and_errors_are_json() {
    let server = Server::start();
    let url = server.url("/git/a/m.git/info/lfs/objects/batch");
    let answer = call("POST", &url, ADMIN, &[], Some(b"{"));
    assert_eq!(answer.status, 400);
    assert!(answer.json()["message"].is_string());
    assert_eq!(
        answer.header("content-type"),
        "application/vnd.git-lfs+json"
    );
    assert!(oversized(&server).starts_with("HTTP/1.1 413 "));
    let answer = call(
        "POST",
        &server.url("/api/v1/mirrors"),
        ADMIN,
        &[],
        Some(b"{\"x\": \"secret\"}"),
    );
    assert_eq!(answer.status, 400);
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    let locks = server.url("/git/a/m.git/info/lfs/locks/verify");
    assert_eq!(call("POST", &locks, ADMIN, &[], Some(b"{}")).status, 404);
}

/// The answer to a batch call of 5 MiB, which the server need not read to its end.
fn oversized(server: &Server) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "POST /git/a/m.git/info/lfs/objects/batch HTTP/1.1\r\nhost: x\r\n\
         content-length: 5242880\r\nauthorization: Bearer {ADMIN}\r\n\r\n"
    )
    .unwrap();
    let mut sender = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let _ = sender.write_all(&vec![b' '; (4 << 20) + 1]);
    });
    let mut head = [0; 13];
    stream.read_exact(&mut head).unwrap();
    sending.join().unwrap();
    String::from_utf8_lossy(&head).into_owned()
}

#[test]
fn a_repository_can_be_removed_by_those_who_may_push_to_it() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 9);
    let (ours, theirs) = (token("a", true), token("b", true));
    let url = server.git_url(&ours, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let remove = |token: &str| call("DELETE", &server.url("/git/a/m.git"), token, &[], None).status;
    assert_eq!(
        [
            remove(""),
            remove(NODE),
            remove(&theirs),
            remove(&token("a", false))
        ],
        [401, 403, 403, 403]
    );
    assert_eq!([remove(&ours), remove(&ours)], [204, 404]);
    assert!(!work.run("", &["clone", "-q", &url, "b"]).status.success());
    assert_eq!(
        std::fs::read_dir(server.root().join("trash"))
            .unwrap()
            .count(),
        0
    );
    work.git("a", &["push", "-q", &url, "main"]);
    work.git("", &["clone", "-q", &url, "c"]);
    assert_eq!(work.read("c/weights.bin"), noise(1000, 9));
}
