//! What the disk loses, and what hostile or odd pushes leave.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyprstream_contract::registry::{MirrorState, reason};

use crate::{
    client::{Workspace, batch, call, noise, oid, ready, settle, size_of, try_get, upstream},
    server::{ADMIN, NODE, Server, token},
    upstream::Door,
};

/// Overwrites one byte of a file, or shortens it, behind the registry's back.
fn damage(path: &Path, truncate: bool) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    if truncate {
        bytes.truncate(middle);
    } else {
        bytes[middle] ^= 1;
    }
    // Objects are read-only and linked: the same file has to change.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path, mode).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn stored(server: &Server, oid: &str) -> PathBuf {
    let folder = server.root().join("store/objects");
    folder.join(&oid[..2]).join(&oid[2..4]).join(oid)
}

fn packs(server: &Server, repository: &str) -> Vec<PathBuf> {
    let folder = server.root().join(repository).join("objects/pack");
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let is_pack = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "pack");
    entries.map(|entry| entry.path()).filter(is_pack).collect()
}

#[track_caller]
fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A scrub that has read everything by the time the server is asked again.
fn scrubbed(server: Server) -> Server {
    server.restart()
}

#[test]
fn a_mirrored_object_that_went_bad_is_fetched_again() {
    for truncate in [false, true] {
        let (work, origin) = (Workspace::new(), Server::start());
        let registry = Server::start();
        let commit = work.model("a", 100_000, 51);
        let url = origin.git_url(ADMIN, "git/a/m.git");
        work.git("a", &["push", "-q", &url, "main"]);
        let door = Door::open(origin.address, true);
        let source = upstream(&door.url("git/a/m.git"), "default", None);
        ready(&registry, &source, &commit, &[]);
        let oid = oid(&noise(100_000, 51));
        damage(&stored(&registry, &oid), truncate);
        let registry = scrubbed(registry);
        let quarantine = registry.root().join("quarantine").join(&oid);
        soon("it was not found", || quarantine.exists());
        let status = ready(&registry, &source, &commit, &[]);
        assert_eq!(status.bytes_done, 100_000);
        let url = registry.git_url(NODE, &format!("{}.git", status.repository));
        work.git("", &["clone", "-q", &url, "b"]);
        assert_eq!(work.read("b/weights.bin"), noise(100_000, 51));
        assert!(registry.metric("hyprstream_registry_corrupt_total") > 0);
    }
}

#[test]
fn reading_goes_on_where_a_restart_ended_it_and_begins_anew_after_its_end() {
    let (work, server) = (Workspace::new(), Server::start());
    let url = server.git_url(&token("a", true), "git/a/m.git");
    let mut oids: Vec<String> = (61..64).map(|seed| oid(&noise(50_000, seed))).collect();
    oids.sort();
    for (name, seed) in [("a", 61), ("b", 62), ("c", 63)] {
        work.model(name, 50_000, seed);
        work.git(name, &["push", "-q", &url, &format!("main:{name}")]);
    }
    let position = server.root().join("scrub");
    let is_bad = |server: &Server, oid: &str| server.root().join("quarantine").join(oid).exists();
    soon("the first reading does not end", || !position.exists());
    damage(&stored(&server, &oids[0]), false);
    damage(&stored(&server, &oids[2]), false);
    std::fs::write(&position, &oids[1]).unwrap();
    let server = server.restart();
    soon("it does not end", || !position.exists());
    assert!(is_bad(&server, &oids[2]), "what had not been read is read");
    assert!(
        !is_bad(&server, &oids[0]),
        "what had been read is not read again"
    );
    let server = server.restart();
    soon("it was not found", || is_bad(&server, &oids[0]));
}

#[test]
fn a_pushed_object_that_went_bad_is_noticed_at_use_and_its_push_is_named() {
    // Nothing reads in the background.
    let (server, work) = (
        Server::with(|limits| limits.scrub_bytes_per_second = 0),
        Workspace::new(),
    );
    let commit = work.model("a", 100_000, 52);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let source = upstream("hyprstream://a/m", "a", None);
    ready(&server, &source, &commit, &[]);
    let oid = oid(&noise(100_000, 52));
    damage(&stored(&server, &oid), false);
    let cloned = work.run("", &["clone", "-q", &url, "b"]);
    assert!(!cloned.status.success());
    soon("it was not found", || !stored(&server, &oid).exists());
    let error = settle(&server, &source, &commit, &[]).error.unwrap();
    assert_eq!(error.reason, reason::MISSING_OBJECT);
    for part in ["weights.bin", "went bad", "git lfs push --object-id", &oid] {
        assert!(error.message.contains(part), "{error}");
    }
    work.git("a", &["lfs", "push", "--object-id", &url, &oid]);
    ready(&server, &source, &commit, &[]);
    assert_eq!(server.metric("hyprstream_registry_corrupt_total"), 1);
}

#[test]
fn many_readers_of_a_bad_object_are_one_loss_and_leave_what_is_uploaded_again() {
    let (server, work) = (
        Server::with(|limits| limits.scrub_bytes_per_second = 0),
        Workspace::new(),
    );
    work.model("a", 3_000_000, 55);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let (bytes, oid) = (noise(3_000_000, 55), oid(&noise(3_000_000, 55)));
    let object = server.url(&format!("/git/a/m.git/info/lfs/objects/{oid}"));
    for round in 1..=3 {
        damage(&stored(&server, &oid), false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                // Breaks off at the end where the object is bad.
                scope.spawn(|| try_get(&object, NODE));
            }
            // Uploaded again while the last of them still look at it.
            soon("it was not found", || !stored(&server, &oid).exists());
            assert_eq!(call("PUT", &object, ADMIN, &[], Some(&bytes)).status, 200);
        });
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(std::fs::read(stored(&server, &oid)).unwrap(), bytes);
        assert_eq!(server.metric("hyprstream_registry_corrupt_total"), round);
    }
}

#[test]
fn a_pushed_object_that_lost_its_end_is_noticed_when_it_is_asked_for() {
    let (server, work) = (
        Server::with(|limits| limits.scrub_bytes_per_second = 0),
        Workspace::new(),
    );
    let commit = work.model("a", 100_000, 53);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let oid = oid(&noise(100_000, 53));
    damage(&stored(&server, &oid), true);
    batch(&server, NODE, "git/a/m", "download", &oid, 100_000);
    soon("it was not found", || !stored(&server, &oid).exists());
    let source = upstream("hyprstream://a/m", "a", None);
    let error = settle(&server, &source, &commit, &[]).error.unwrap();
    assert!(error.message.contains("went bad"), "{error}");
    // A pointer that lies about a size takes nothing from anybody.
    let other = noise(5000, 54);
    let put = server.url(&format!(
        "/git/a/n.git/info/lfs/objects/{}",
        crate::client::oid(&other)
    ));
    assert_eq!(call("PUT", &put, ADMIN, &[], Some(&other)).status, 200);
    batch(
        &server,
        NODE,
        "git/a/n",
        "download",
        &crate::client::oid(&other),
        4999,
    );
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(call("GET", &put, NODE, &[], None).status, 200);
}

#[test]
fn a_mirror_whose_pack_went_bad_is_fetched_again() {
    let (work, origin) = (Workspace::new(), Server::start());
    let registry = Server::with(|limits| limits.scrub_bytes_per_second = 0);
    let commit = work.model("a", 50_000, 55);
    let url = origin.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let door = Door::open(origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let status = ready(&registry, &source, &commit, &[]);
    for pack in packs(&registry, &format!("{}.git", status.repository)) {
        damage(&pack, true);
    }
    // A look at the disk, as after some minutes.
    let registry = registry.restart();
    let downloads = door.downloads();
    let status = ready(&registry, &source, &commit, &[]);
    let url = registry.git_url(NODE, &format!("{}.git", status.repository));
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/weights.bin"), noise(50_000, 55));
    assert_eq!(door.downloads(), downloads, "the weights came again");
}

#[test]
fn a_pushed_repository_whose_pack_went_bad_says_what_to_do() {
    let (server, work) = (Server::start(), Workspace::new());
    let commit = work.model("a", 1000, 56);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    for pack in packs(&server, "git/a/m.git") {
        damage(&pack, true);
    }
    let source = upstream("hyprstream://a/m", "a", None);
    soon("what to do is not said", || {
        let error = settle(&server, &source, &commit, &[]).error.unwrap();
        error.reason == reason::DIGEST_MISMATCH && error.message.contains("push all of it again")
    });
    let delete = server.url("/git/a/m.git");
    assert_eq!(call("DELETE", &delete, ADMIN, &[], None).status, 204);
    work.git("a", &["push", "-q", &url, "main"]);
    ready(&server, &source, &commit, &[]);
}

#[test]
fn a_removal_during_an_upload_leaves_a_usable_repository() {
    use std::io::{Read, Write};
    let (server, work) = (Server::start(), Workspace::new());
    let bytes = noise(100_000, 57);
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "PUT /git/a/m.git/info/lfs/objects/{} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\
         authorization: Bearer {ADMIN}\r\nconnection: close\r\n\r\n",
        oid(&bytes)
    )
    .unwrap();
    stream.write_all(&bytes[..50_000]).unwrap();
    soon("the repository is made", || {
        server.root().join("git/a/m.git/HEAD").exists()
    });
    let delete = server.url("/git/a/m.git");
    assert_eq!(call("DELETE", &delete, ADMIN, &[], None).status, 204);
    stream.write_all(&bytes[50_000..]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let commit = work.model("a", 1000, 58);
    let url = server.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), commit);
}

#[test]
fn what_is_left_of_a_repository_gives_way_to_a_push() {
    let (server, work) = (Server::start(), Workspace::new());
    std::fs::create_dir_all(server.root().join("git/a/m.git/hyprstream/lfs/ab")).unwrap();
    work.model("a", 1000, 59);
    let url = server.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
}

#[test]
fn a_planned_collection_outlives_a_restart() {
    let (server, work) = (Server::start(), Workspace::new());
    work.model("a", 1000, 60);
    let url = server.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let delete = server.url("/git/a/m.git");
    assert_eq!(call("DELETE", &delete, ADMIN, &[], None).status, 204);
    let object = stored(&server, &oid(&noise(1000, 60)));
    let plan = server.root().join("collect-objects");
    assert!(object.exists() && plan.exists());
    let server = server.restart();
    assert!(object.exists() && plan.exists(), "too early");
    // Ten minutes later. The store looks at the change time, which nobody can set: an object is
    // collected by the plan after the next.
    let then = std::time::SystemTime::now() - Duration::from_mins(11);
    let file = std::fs::File::options().append(true).open(&plan).unwrap();
    file.set_modified(then).unwrap();
    drop(file);
    let _server = server.restart();
    soon("the plan is forgotten", || !plan.exists());
}

#[test]
fn a_refused_push_leaves_nothing_on_the_disk() {
    let (server, work) = (
        Server::with(|limits| limits.git.max_push_bytes = 2_000_000),
        Workspace::new(),
    );
    work.model("a", 1000, 61);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let usage = || {
        let objects = server.root().join("git/a/m.git/objects");
        let mut folders = vec![objects];
        let mut bytes = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    bytes += size_of(&path);
                }
            }
        }
        bytes
    };
    let before = usage();
    // Too large.
    std::fs::write(work.path("a/large.dat"), noise(4_000_000, 62)).unwrap();
    work.commit("a");
    assert!(
        !work
            .run("a", &["push", "-q", &url, "main"])
            .status
            .success()
    );
    soon("the pack stays", || usage() == before);
    // A ref that git does not take, after the pack has come.
    work.git("a", &["reset", "-q", "--hard", "HEAD~1"]);
    std::fs::write(work.path("a/small.dat"), noise(500_000, 63)).unwrap();
    work.commit("a");
    let refused = work.run("a", &["push", "-q", &url, "HEAD:refs/heads/main/below"]);
    assert!(!refused.status.success());
    soon("the pack stays", || usage() == before);
    // What is not refused stays.
    work.git("a", &["push", "-q", &url, "main"]);
    assert!(usage() > before + 500_000);
}

#[test]
fn a_push_that_drips_is_ended_and_leaves_nothing() {
    use std::io::Write;
    let server = Server::with(|limits| limits.git.idle = Duration::from_secs(1));
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "POST /git/a/m.git/git-receive-pack HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\
         content-type: application/x-git-receive-pack-request\r\n\
         authorization: Bearer {ADMIN}\r\n\r\n"
    )
    .unwrap();
    let line = format!(
        "{} {} refs/heads/main\0report-status",
        "0".repeat(40),
        "1".repeat(40)
    );
    write!(stream, "{:04x}{line}0000PACK", line.len() + 4).unwrap();
    stream.write_all(&[0, 0, 0, 2, 0, 0, 0, 9]).unwrap();
    soon("git has begun", || {
        server.metric("hyprstream_registry_git_processes") == 1
    });
    let start = Instant::now();
    while server.metric("hyprstream_registry_git_processes") > 0 {
        let _ = stream.write_all(b"x");
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    let objects = server.root().join("git/a/m.git/objects");
    let left = || {
        let entries = std::fs::read_dir(&objects).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp_"))
            .count()
    };
    soon("its folder stays", || left() == 0);
}

#[test]
fn old_history_with_zero_padded_modes_is_taken() {
    let (server, work) = (Server::start(), Workspace::new());
    std::fs::create_dir_all(work.path("a")).unwrap();
    work.git("a", &["init", "-q"]);
    std::fs::write(work.path("a/f"), "x").unwrap();
    let blob = work.git("a", &["hash-object", "-w", "f"]);
    let inner: Vec<u8> = [b"100644 f\0".to_vec(), hex::decode(&blob).unwrap()].concat();
    std::fs::write(work.path("a/inner"), inner).unwrap();
    let write = ["hash-object", "--literally", "-w", "-t", "tree"];
    let inner = work.git("a", &[&write[..], &["inner"]].concat());
    let outer: Vec<u8> = [b"040000 d\0".to_vec(), hex::decode(&inner).unwrap()].concat();
    std::fs::write(work.path("a/outer"), outer).unwrap();
    let outer = work.git("a", &[&write[..], &["outer"]].concat());
    let commit = work.git("a", &["commit-tree", "-m", "old", &outer]);
    let url = server.git_url(&token("a", true), "git/a/m.git");
    work.git(
        "a",
        &["push", "-q", &url, &format!("{commit}:refs/heads/main")],
    );
    let status = settle(
        &server,
        &upstream("hyprstream://a/m", "a", None),
        &commit,
        &[],
    );
    assert_eq!(status.state, MirrorState::Ready, "{status:?}");
}
