//! Repositories made out of others.

use std::{os::unix::fs::MetadataExt, path::Path, time::Instant};

use hyprstream_contract::{
    registry::MirrorState,
    repositories::{ALREADY_EXISTS, FORKS_PATH},
};
use serde_json::json;

use crate::{
    client::{Answer, Workspace, ask, call, noise, oid, ready, upstream},
    cluster::Cluster,
    program::Program,
    server::{ADMIN, NODE, Server, token},
    upstream::Door,
};

fn fork(server: &Server, who: &str, from: &str, to: &str) -> Answer {
    let body = json!({"from": from, "to": to}).to_string();
    let url = server.url(FORKS_PATH);
    call("POST", &url, who, &[], Some(body.as_bytes()))
}

/// A server with `team-a/m`, which has two commits, two branches and a tag. The later commit.
fn with_model(work: &Workspace, server: &Server) -> String {
    work.model("a", 200_000, 61);
    work.git("a", &["tag", "-am", "first", "v1"]);
    work.git("a", &["branch", "x"]);
    std::fs::write(work.path("a/config.json"), "{\"a\": 1}").unwrap();
    let commit = work.commit("a");
    let url = server.git_url(ADMIN, "git/team-a/m.git");
    work.git("a", &["push", "-q", &url, "main", "x", "v1"]);
    commit
}

fn member(server: &Server, repository: &str, bytes: &[u8]) -> std::path::PathBuf {
    let oid = oid(bytes);
    let below = format!("hyprstream/lfs/{}/{}/{oid}", &oid[..2], &oid[2..4]);
    server
        .root()
        .join(format!("git/{repository}.git"))
        .join(below)
}

fn fsck(work: &Workspace, bare: &Path) {
    let bare = bare.to_str().unwrap();
    let safe = ["-c", "safe.directory=*"];
    let all = [
        &["--git-dir", bare],
        &safe[..],
        &["fsck", "--strict", "--full"],
    ]
    .concat();
    work.git("", &all);
}

#[test]
fn a_fork_has_everything_at_once_and_nothing_twice() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = with_model(&work, &server);
    let made = fork(&server, ADMIN, "team-a/m", "team-b/n");
    assert_eq!(made.status, 201, "{:?}", made.json());
    assert_eq!(made.json()["repository"], "git/team-b/n");
    assert_eq!(made.json()["objects"], 1);
    assert!(made.json()["sharedBytes"].as_u64().unwrap() > 200_000);
    let weights = noise(200_000, 61);
    let inode = |repository| {
        std::fs::metadata(member(&server, repository, &weights))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("team-a/m"), inode("team-b/n"));
    fsck(&work, &server.root().join("git/team-b/n.git"));
    let url = server.git_url(&token("team-b", true), "git/team-b/n.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), commit);
    assert_eq!(work.read("b/weights.bin"), weights);
    let source = server.git_url(ADMIN, "git/team-a/m.git");
    let refs = |url: &str| work.git("", &["ls-remote", url]);
    assert_eq!(refs(&url), refs(&source));
    // A push to the fork brings what is new, and the source knows nothing of it.
    let received = server.metric("hyprstream_registry_lfs_received_bytes_total");
    work.git("b", &["lfs", "install", "--local"]);
    std::fs::write(work.path("b/more.bin"), noise(5000, 62)).unwrap();
    work.commit("b");
    work.git("b", &["push", "-q", &url, "main"]);
    let now = server.metric("hyprstream_registry_lfs_received_bytes_total");
    assert_eq!(now - received, 5000);
    assert!(refs(&source).contains(&commit));
    assert!(!member(&server, "team-a/m", &noise(5000, 62)).exists());
}

#[test]
fn a_fork_outlives_its_source() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = with_model(&work, &server);
    assert_eq!(fork(&server, ADMIN, "team-a/m", "team-a/n").status, 201);
    // Git joins the packs of the source, and drops what they held.
    let bare = server.root().join("git/team-a/m.git");
    let bare = bare.to_str().unwrap();
    let gc = ["-c", "safe.directory=*", "gc", "-q", "--prune=now"];
    work.git("", &[&["--git-dir", bare], &gc[..]].concat());
    let url = server.url("/git/team-a/m.git");
    assert_eq!(call("DELETE", &url, ADMIN, &[], None).status, 204);
    let server = server.restart();
    fsck(&work, &server.root().join("git/team-a/n.git"));
    let url = server.git_url(ADMIN, "git/team-a/n.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/weights.bin"), noise(200_000, 61));
    // It is a source of Models like any other.
    let source = upstream("hyprstream://team-a/n", "team-a", None);
    let status = ask(&server.address, &source, &commit, &[]);
    assert_eq!(status.state, MirrorState::Ready, "{status:?}");
    assert_eq!(
        std::fs::read_dir(server.root().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_mirror_is_forked_by_those_who_read_it() {
    let (origin, server, work) = (Server::start(), Server::start(), Workspace::new());
    let commit = with_model(&work, &origin);
    let source = upstream(&origin.url("/git/team-a/m.git"), "team-a", Some(ADMIN));
    let mirror = ready(&server, &source, &commit, &[]).repository;
    assert!(mirror.starts_with("mirror/"), "{mirror}");
    // It was fetched with credentials of team-a, and is nobody else's.
    for (who, to, expected) in [
        (token("team-b", true).as_str(), "team-b/m", 403),
        (token("team-a", false).as_str(), "team-a/m", 403),
        (NODE, "team-a/m", 403),
        (token("team-a", true).as_str(), "team-a/m", 201),
        (ADMIN, "team-a/n", 201),
    ] {
        assert_eq!(fork(&server, who, &mirror, to).status, expected, "{to}");
    }
    fsck(&work, &server.root().join("git/team-a/m.git"));
    let url = server.git_url(&token("team-a", true), "git/team-a/m.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), commit);
    assert_eq!(work.read("b/weights.bin"), noise(200_000, 61));
    work.git("b", &["push", "-q", &url, "HEAD:refs/heads/train/x"]);
}

#[test]
fn a_mirror_of_what_is_public_is_forked_by_whoever_may_make_the_fork() {
    let cluster = Cluster::start();
    let (origin, work) = (Server::start(), Workspace::new());
    let commit = with_model(&work, &origin);
    let door = Door::open(origin.address, true);
    let server = Server::in_cluster_with_upstreams(&cluster, &["127.0.0.0/8"]);
    let source = upstream(&door.url("git/team-a/m.git"), "team-a", None);
    let public = ready(&server, &source, &commit, &[]).repository;
    let source = upstream(&origin.url("/git/team-a/m.git"), "team-a", Some(ADMIN));
    let private = ready(&server, &source, &commit, &[]).repository;
    let maker = cluster.user("bob").may(&["create repositories team-b n"]);
    let one = ["create repositories team-b o", "get repositories team-a m"];
    let of_one = cluster.user("carol").may(&one);
    let of_all = cluster
        .user("dave")
        .may(&["create repositories team-b o", "get repositories team-a *"]);
    let try_as = |who: &str, from: &str, to: &str| fork(&server, who, from, to).status;
    assert_eq!(try_as(&maker.token, &public, "team-b/other"), 403);
    assert_eq!(try_as(&maker.token, &public, "team-b/n"), 201);
    assert_eq!(try_as(&maker.token, &private, "team-b/n"), 403);
    assert_eq!(try_as(&of_one.token, &private, "team-b/o"), 403);
    assert_eq!(try_as(&of_all.token, &private, "team-b/o"), 201);
    let nowhere = format!("mirror/{}", "0".repeat(64));
    assert_eq!(try_as(&maker.token, &nowhere, "team-b/n"), 403);
}

#[test]
fn a_fork_whose_registry_is_killed_is_whole_or_not_there() {
    let (dir, work) = (tempfile::tempdir().unwrap(), Workspace::new());
    let mut program = Program::start(dir.path(), 0);
    work.model("a", 1000, 63);
    work.git(
        "a",
        &["push", "-q", &program.git_url("git/a/m.git"), "main"],
    );
    let root = dir.path().join("root");
    // Many objects, so that there is a middle to be killed in.
    let known = oid(&noise(1000, 63));
    let lfs = |repository: &str, oid: &str| {
        let bare = root.join(format!("git/{repository}.git/hyprstream/lfs"));
        bare.join(&oid[..2]).join(&oid[2..4]).join(oid)
    };
    let many: Vec<_> = (0..200u32).map(|n| oid(&n.to_le_bytes())).collect();
    for oid in &many {
        let link = lfs("a/m", oid);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::hard_link(lfs("a/m", &known), link).unwrap();
    }
    let make = |program: &Program, to: &str| {
        let body = json!({"from": "a/m", "to": to}).to_string();
        let url = program.url(FORKS_PATH);
        // It hears nothing if the registry is killed first.
        std::thread::spawn(move || {
            let token = format!("Bearer {ADMIN}");
            let answer = ureq::post(&url).header("authorization", &token).send(&body);
            answer.map(|answer| answer.status().as_u16())
        })
    };
    // How long one takes here says where the middle is; nothing that is asserted depends on it.
    let began = Instant::now();
    assert_eq!(make(&program, "a/first").join().unwrap().unwrap(), 201);
    let whole_time = began.elapsed();
    let mut whole = 0;
    for round in 0..10 {
        let to = format!("a/n{round}");
        let asking = make(&program, &to);
        std::thread::sleep(whole_time * round / 4);
        program.kill();
        let answer = asking.join().unwrap();
        program = Program::start(dir.path(), 0);
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        let bare = root.join(format!("git/{to}.git"));
        if !bare.exists() {
            assert!(answer.is_err(), "{to} was promised");
            continue;
        }
        whole += 1;
        fsck(&work, &bare);
        assert!(many.iter().all(|oid| lfs(&to, oid).exists()));
        let url = program.git_url(&format!("git/{to}.git"));
        work.git("", &["clone", "-q", &url, &to]);
        assert_eq!(work.read(&format!("{to}/weights.bin")), noise(1000, 63));
    }
    println!("{whole} of 10 were whole, the others not there");
    assert_eq!(make(&program, "a/last").join().unwrap().unwrap(), 201);
    assert!(many.iter().all(|oid| lfs("a/last", oid).exists()));
}

#[test]
fn forks_take_places_of_their_namespace_alone() {
    let server = Server::with(|limits| limits.git.processes = 2);
    let work = Workspace::new();
    with_model(&work, &server);
    // All at once they take turns; none fails, and a clone of another namespace gets through.
    std::thread::scope(|scope| {
        for number in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let to = format!("team-a/n{number}");
                assert_eq!(
                    fork(server, &token("team-a", true), "team-a/m", &to).status,
                    201
                );
            });
        }
    });
}

#[test]
fn a_fork_needs_the_rights_on_both_ends() {
    let cluster = Cluster::start();
    let (server, work) = (Server::in_cluster(&cluster), Workspace::new());
    with_model(&work, &server);
    let (read, make) = ("get repositories team-a m", "create repositories team-b n");
    let reader = cluster.user("alice").may(&[read]);
    let maker = cluster.user("bob").may(&[make]);
    let both = cluster.user("carol").may(&[read, make]);
    let try_as = |who: &str, from: &str, to: &str| fork(&server, who, from, to).status;
    assert_eq!(try_as(&reader.token, "team-a/m", "team-b/n"), 403);
    assert_eq!(try_as(&maker.token, "team-a/m", "team-b/n"), 403);
    assert_eq!(try_as(&both.token, "team-a/m", "team-b/other"), 403);
    assert_eq!(try_as(&both.token, "team-a/m", "team-b/n"), 201);
    let again = fork(&server, &both.token, "team-a/m", "team-b/n");
    assert_eq!(
        (again.status, &again.json()["reason"]),
        (409, &json!(ALREADY_EXISTS))
    );
    assert_eq!(try_as(ADMIN, "team-a/none", "team-b/x"), 404);
    for (from, to) in [
        ("m", "team-b/x"),
        ("team-a/m", "../x"),
        ("team-a/m", &format!("mirror/{}", "0".repeat(64))),
    ] {
        assert_eq!(try_as(ADMIN, from, to), 400, "{from} {to}");
    }
}

#[test]
fn a_source_that_is_not_whole_makes_no_fork() {
    let (server, work) = (Server::start(), Workspace::new());
    with_model(&work, &server);
    let packs = server.root().join("git/team-a/m.git/objects/pack");
    for entry in std::fs::read_dir(&packs).unwrap().flatten() {
        std::fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(fork(&server, ADMIN, "team-a/m", "team-a/n").status, 500);
    assert!(!server.root().join("git/team-a/n.git").exists());
    assert_eq!(
        std::fs::read_dir(server.root().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}
