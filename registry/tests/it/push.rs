//! Pushes and clones with stock git and git-lfs.

use crate::{
    client::{Workspace, batch, call, noise, oid},
    server::{ADMIN, NODE, Server, token},
};

#[test]
fn what_is_pushed_is_cloned_byte_for_byte() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = work.model("a", 3_000_000, 1);
    let url = server.git_url(&token("team-a", true), "git/team-a/m.git");
    let pushed = work.run("a", &["push", &url, "main"]);
    let complaint = String::from_utf8_lossy(&pushed.stderr).into_owned();
    assert!(pushed.status.success(), "{complaint}");
    assert!(
        !complaint.contains("error") && !complaint.contains("warning"),
        "{complaint}"
    );

    let read = server.git_url(&token("team-a", false), "git/team-a/m.git");
    for (folder, version) in [("b", "2"), ("c", "0")] {
        let protocol = format!("protocol.version={version}");
        work.git("", &["-c", &protocol, "clone", "-q", &read, folder]);
        assert_eq!(work.git(folder, &["rev-parse", "HEAD"]), commit);
        assert_eq!(
            work.read(&format!("{folder}/weights.bin")),
            noise(3_000_000, 1)
        );
        work.git(folder, &["lfs", "fsck"]);
        work.git(folder, &["fsck", "--strict"]);
    }
    // What the node plugin and the control plane do.
    for reader in [NODE, ADMIN] {
        let folder = &format!("by-{reader}");
        let url = server.git_url(reader, "git/team-a/m.git");
        work.git("", &["clone", "-q", "--depth", "1", &url, folder]);
        assert_eq!(
            work.read(&format!("{folder}/weights.bin")),
            noise(3_000_000, 1)
        );
    }
    assert_eq!(server.metric("hyprstream_registry_push_total"), 1);
    assert_eq!(
        server.metric("hyprstream_registry_lfs_received_bytes_total"),
        3_000_000
    );
    assert_eq!(
        server.metric("hyprstream_registry_lfs_served_bytes_total"),
        4 * 3_000_000
    );
}

#[test]
fn objects_can_be_pulled_after_a_clone_without_them() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 100_000, 2);
    let url = server.git_url(&token("a", true), "git/a/m");
    work.git("a", &["push", "-q", &url, "main"]);
    let skipped = work
        .command("", &["clone", "-q", &url, "b"])
        .env("GIT_LFS_SKIP_SMUDGE", "1")
        .status()
        .unwrap();
    assert!(skipped.success());
    assert!(
        work.read("b/weights.bin")
            .starts_with(b"version https://git-lfs")
    );
    work.git("b", &["lfs", "pull"]);
    assert_eq!(work.read("b/weights.bin"), noise(100_000, 2));
}

#[test]
fn later_commits_tags_forced_and_deleted_branches_are_taken() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 3);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["remote", "add", "origin", &url]);
    work.git("a", &["push", "-q", "origin", "main"]);
    std::fs::write(work.path("a/weights.bin"), noise(2000, 4)).unwrap();
    let second = work.commit("a");
    work.git("a", &["tag", "-am", "a tag", "v1"]);
    work.git(
        "a",
        &[
            "push",
            "-q",
            "origin",
            "main",
            "v1",
            "main:refs/heads/other",
        ],
    );
    work.git("", &["clone", "-q", "--branch", "v1", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), second);
    work.git("a", &["reset", "-q", "--hard", "HEAD~1"]);
    let refused = work.run("a", &["push", "-q", "origin", "main"]);
    assert!(!refused.status.success());
    work.git("a", &["push", "-q", "--force", "origin", "main"]);
    work.git("a", &["push", "-q", "origin", ":other"]);
    let refs = work.git("a", &["ls-remote", "origin"]);
    assert!(
        !refs.contains("other") && !refs.contains("refs/hyprstream"),
        "{refs}"
    );
    // A commit that no branch names any more can still be fetched by name.
    work.git("b", &["fetch", "-q", &url, &second]);
}

#[test]
fn a_first_push_of_another_branch_becomes_the_default() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = work.model("a", 1000, 5);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main:master"]);
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), commit);
}

#[test]
fn a_large_pack_is_streamed_and_hooks_do_not_run() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 6);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let hook = server.root().join("git/a/m.git/hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, executable).unwrap();
    // Above http.postBuffer, so that git sends it in chunks.
    std::fs::write(work.path("a/large.dat"), noise(12_000_000, 7)).unwrap();
    work.commit("a");
    work.git("a", &["push", "-q", &url, "main"]);
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/large.dat"), noise(12_000_000, 7));
}

#[test]
fn a_compressed_request_is_understood() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 8);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    // Many refs make a fetch long enough for git to compress it.
    for index in 0..200 {
        work.git(
            "a",
            &[
                "commit",
                "-q",
                "--allow-empty",
                "-m",
                &format!("commit {index}"),
            ],
        );
        work.git("a", &["branch", &format!("branch-{index}")]);
    }
    work.git("a", &["push", "-q", "--all", &url]);
    let output = work
        .command("", &["clone", "-q", &url, "b"])
        .env("GIT_TRACE_CURL", "1")
        .env("GIT_LFS_SKIP_SMUDGE", "1")
        .output()
        .unwrap();
    let trace = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(output.status.success(), "{trace}");
    assert!(
        trace.contains("content-encoding: gzip"),
        "the request was not compressed"
    );
    assert_eq!(work.git("b", &["branch", "-r"]).lines().count(), 202);
}

#[test]
fn many_clients_push_and_clone_at_once() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 200_000, 9);
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (server, work) = (&server, &work);
            scope.spawn(move || {
                let url = server.git_url(ADMIN, &format!("git/a/m{}.git", index % 4));
                let branch = format!("main:refs/heads/b{index}");
                work.git("a", &["push", "-q", &url, &branch]);
                let (name, folder) = (format!("b{index}"), format!("clone{index}"));
                work.git("", &["clone", "-q", "--branch", &name, &url, &folder]);
                assert_eq!(
                    work.read(&format!("{folder}/weights.bin")),
                    noise(200_000, 9)
                );
            });
        }
    });
}

#[test]
fn objects_are_served_in_parts() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 10);
    work.git(
        "a",
        &["push", "-q", &server.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let bytes = noise(1000, 10);
    let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{}", oid(&bytes)));
    let whole = call("GET", &url, NODE, &[], None);
    assert_eq!((whole.status, &whole.body), (200, &bytes));
    assert_eq!(whole.header("content-length"), "1000");
    let part = call("GET", &url, NODE, &[("range", "bytes=900-")], None);
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[900..]));
    assert_eq!(part.header("content-range"), "bytes 900-999/1000");
    let stale = [("range", "bytes=900-"), ("if-range", "\"other\"")];
    assert_eq!(call("GET", &url, NODE, &stale, None).status, 200);
    let beyond = call("GET", &url, NODE, &[("range", "bytes=1000-")], None);
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, "bytes */1000")
    );
}

#[test]
fn a_download_that_broke_off_is_resumed_by_git_lfs() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 500_000, 11);
    let url = server.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let mut clone = work.command("", &["clone", "-q", &url, "b"]);
    assert!(
        clone
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .status()
            .unwrap()
            .success()
    );
    let bytes = noise(500_000, 11);
    let folder = work.path("b/.git/lfs/incomplete");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join(format!("{}.part", oid(&bytes))),
        &bytes[..400_000],
    )
    .unwrap();
    work.git("b", &["lfs", "pull"]);
    assert_eq!(work.read("b/weights.bin"), bytes);
    assert_eq!(
        server.metric("hyprstream_registry_lfs_served_bytes_total"),
        100_000
    );
}

#[test]
fn uploads_of_one_object_at_once_all_succeed() {
    let server = Server::start();
    let bytes = noise(2_000_000, 12);
    let oid = oid(&bytes);
    let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{oid}?size=2000000"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(call("PUT", &url, ADMIN, &[], Some(&bytes)).status, 200);
            });
        }
    });
    let answer = batch(&server, NODE, "git/a/m", "download", &oid, 2_000_000).json();
    let href = answer["objects"][0]["actions"]["download"]["href"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(call("GET", &href, NODE, &[], None).body, bytes);
}

#[test]
fn bytes_that_are_not_what_they_claim_to_be_are_not_kept() {
    let server = Server::start();
    let bytes = noise(1000, 13);
    let oid = oid(&bytes);
    let put = |query: &str, body: &[u8]| {
        let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{oid}{query}"));
        call("PUT", &url, ADMIN, &[], Some(body)).status
    };
    assert_eq!(put("?size=1000", &noise(1000, 14)), 422);
    assert_eq!(put("?size=999", &bytes), 422);
    assert_eq!(put("", &bytes[..500]), 422);
    let verify = |size: usize| {
        let url = server.url("/git/a/m.git/info/lfs/objects/verify");
        let body = serde_json::json!({"oid": oid, "size": size}).to_string();
        call("POST", &url, ADMIN, &[], Some(body.as_bytes())).status
    };
    assert_eq!(verify(1000), 404);
    assert_eq!(put("", &bytes), 200);
    assert_eq!((verify(1000), verify(999)), (200, 422));
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    use std::io::{Read, Write};
    let server = Server::start();
    let bytes = noise(100_000, 15);
    let oid = oid(&bytes);
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "PUT /git/a/m.git/info/lfs/objects/{oid} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\
         authorization: Bearer {ADMIN}\r\n\r\n"
    )
    .unwrap();
    stream.write_all(&bytes[..50_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    let answer = batch(&server, ADMIN, "git/a/m", "download", &oid, 100_000).json();
    assert_eq!(answer["objects"][0]["error"]["code"], 404, "{answer}");
    let folders = ["store/tmp", "tmp"].map(|folder| server.root().join(folder));
    let is_empty =
        |folder: &std::path::PathBuf| std::fs::read_dir(folder).unwrap().next().is_none();
    let empty = || folders.iter().all(is_empty);
    let start = std::time::Instant::now();
    while !empty() {
        assert!(start.elapsed().as_secs() < 10, "a temporary file stays");
        std::thread::yield_now();
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_comes() {
    let (server, work) = (
        Server::with(|limits| limits.min_free_bytes = 1 << 60),
        Workspace::new(),
    );
    let bytes = noise(1000, 16);
    let answer = batch(&server, ADMIN, "git/a/m", "upload", &oid(&bytes), 1000).json();
    assert_eq!(answer["objects"][0]["error"]["code"], 507, "{answer}");
    let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{}", oid(&bytes)));
    let put = call("PUT", &url, ADMIN, &[], Some(&bytes));
    assert_eq!(put.status, 507);
    assert!(
        put.json()["message"]
            .as_str()
            .unwrap()
            .contains("no space is left")
    );
    work.model("a", 1000, 16);
    let push = work.run(
        "a",
        &["push", &server.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let complaint = String::from_utf8_lossy(&push.stderr).into_owned();
    assert!(
        !push.status.success() && complaint.contains("no space is left"),
        "{complaint}"
    );
}
