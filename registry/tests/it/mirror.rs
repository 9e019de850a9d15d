//! Copies of upstreams: once for all who ask, and for nobody who may not.

use hyprstream_contract::registry::{MirrorState, RESOLVE_PATH, Reference, ResolveRequest, reason};

use crate::{
    client::{Workspace, ask, batch, call, noise, oid, ready, settle, upstream},
    server::{ADMIN, NODE, Server, token},
    upstream::{Door, Mode},
};

/// An upstream with a repository `git/a/m.git` of one LFS object of `size` bytes.
struct World {
    work: Workspace,
    origin: Server,
    registry: Server,
    commit: String,
    bytes: Vec<u8>,
}

fn world(size: usize, seed: u8) -> World {
    let (work, origin, registry) = (Workspace::new(), Server::start(), Server::start());
    let commit = work.model("a", size, seed);
    work.git(
        "a",
        &["push", "-q", &origin.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    World {
        work,
        origin,
        registry,
        commit,
        bytes: noise(size, seed),
    }
}

fn member(server: &Server, repository: &str, bytes: &[u8]) -> bool {
    let answer = batch(
        server,
        NODE,
        repository,
        "download",
        &oid(bytes),
        bytes.len(),
    );
    answer.status == 200 && answer.json()["objects"][0]["actions"]["download"].is_object()
}

#[test]
fn a_public_upstream_is_mirrored_and_served_byte_for_byte() {
    let world = world(300_000, 1);
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let status = ready(&world.registry, &source, &world.commit, &[]);
    assert_eq!((status.bytes_done, status.bytes_total), (300_000, 300_000));
    assert!(status.repository.starts_with("mirror/"));
    let url = world
        .registry
        .git_url(NODE, &format!("{}.git", status.repository));
    world.work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(world.work.git("b", &["rev-parse", "HEAD"]), world.commit);
    assert_eq!(world.work.read("b/weights.bin"), world.bytes);
    assert_eq!(door.downloads(), 1);
    assert_eq!(
        world
            .registry
            .metric("hyprstream_registry_upstream_downloads_total"),
        1
    );
    assert_eq!(
        world
            .registry
            .metric("hyprstream_registry_upstream_bytes_total"),
        300_000
    );
    // Mirrors are for nodes, not for holders of namespace tokens.
    let refs = format!(
        "/{}.git/info/refs?service=git-upload-pack",
        status.repository
    );
    let stranger = call(
        "GET",
        &world.registry.url(&refs),
        &token("default", true),
        &[],
        None,
    );
    assert_eq!(stranger.status, 403);
}

#[test]
fn twenty_requests_at_once_are_one_download() {
    let world = world(2_000_000, 2);
    let door = Door::open(world.origin.address, true);
    std::thread::scope(|scope| {
        for index in 0..20 {
            let (world, door) = (&world, &door);
            scope.spawn(move || {
                let namespace = format!("team-{}", index % 3);
                // Two lists of files make two jobs, which share the object.
                let include: &[&str] = if index % 2 == 0 { &[] } else { &["*.bin"] };
                let source = upstream(&door.url("git/a/m.git"), &namespace, None);
                ready(&world.registry, &source, &world.commit, include);
            });
        }
    });
    assert_eq!((door.downloads(), door.bytes()), (1, 2_000_000));
    assert_eq!(
        world
            .registry
            .metric("hyprstream_registry_upstream_downloads_total"),
        1
    );
}

#[test]
fn only_the_objects_of_included_files_are_downloaded() {
    let world = world(100_000, 3);
    std::fs::write(world.work.path("a/other.bin"), noise(5000, 4)).unwrap();
    let commit = world.work.commit("a");
    let url = world.origin.git_url(ADMIN, "git/a/m.git");
    world.work.git("a", &["push", "-q", &url, "main"]);
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let status = ready(&world.registry, &source, &commit, &["other.*", "*.json"]);
    assert_eq!((status.bytes_done, status.bytes_total), (5000, 5000));
    assert!(!member(&world.registry, &status.repository, &world.bytes));
    let all = ready(&world.registry, &source, &commit, &[]);
    assert_eq!(
        (all.bytes_done, all.repository),
        (105_000, status.repository)
    );
    assert_eq!(door.bytes(), 105_000);
}

#[test]
fn the_next_commit_downloads_only_what_changed() {
    let world = world(100_000, 5);
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    ready(&world.registry, &source, &world.commit, &[]);
    std::fs::write(world.work.path("a/other.bin"), noise(5000, 6)).unwrap();
    let commit = world.work.commit("a");
    let url = world.origin.git_url(ADMIN, "git/a/m.git");
    world.work.git("a", &["push", "-q", &url, "main"]);
    let status = ready(&world.registry, &source, &commit, &[]);
    assert_eq!(status.bytes_done, 105_000);
    assert_eq!(door.bytes(), 105_000);
}

#[test]
fn what_one_namespace_mirrored_with_credentials_is_closed_to_others() {
    let world = world(100_000, 7);
    let door = Door::open(world.origin.address, false);
    let source = |namespace: &str, credentials: Option<&str>| {
        upstream(&door.url("git/a/m.git"), namespace, credentials)
    };
    let good = token("a", false);
    let ours = ready(
        &world.registry,
        &source("one", Some(&good)),
        &world.commit,
        &[],
    );
    assert_eq!(door.downloads(), 1);
    // Another namespace without credentials, with wrong ones, and with a token for other things.
    for wrong in [
        None,
        Some("wrong-token-of-the-tests"),
        Some(token("b", true).as_str()),
    ] {
        for namespace in ["one", "two"] {
            let status = settle(
                &world.registry,
                &source(namespace, wrong),
                &world.commit,
                &[],
            );
            assert_eq!(status.state, MirrorState::Failed, "{namespace} {wrong:?}");
            assert_ne!(status.repository, ours.repository);
            let reason = status.error.unwrap().reason;
            let expected = [reason::AUTHENTICATION_FAILED, reason::REPOSITORY_NOT_FOUND];
            assert!(expected.contains(&reason.as_str()), "{reason}");
            assert!(!member(&world.registry, &status.repository, &world.bytes));
        }
    }
    // One that can show credentials gets its own mirror, and the object without a download.
    let theirs = ready(
        &world.registry,
        &source("two", Some(&good)),
        &world.commit,
        &[],
    );
    assert_ne!(theirs.repository, ours.repository);
    assert!(member(&world.registry, &theirs.repository, &world.bytes));
    assert_eq!(door.downloads(), 1);
    assert_eq!(theirs.bytes_done, 100_000);
}

#[test]
fn a_token_that_was_exchanged_names_the_same_mirror() {
    let world = world(100_000, 17);
    let door = Door::open(world.origin.address, false);
    let mirrored = |token: &str| {
        let source = upstream(&door.url("git/a/m.git"), "one", Some(token));
        settle(&world.registry, &source, &world.commit, &[])
    };
    let before = mirrored(&token("a", false));
    assert_eq!(before.state, MirrorState::Ready);
    // Wrong ones see nothing of it, and are not taken for accepted later.
    for _ in 0..2 {
        let wrong = mirrored("wrong-token-of-the-tests");
        assert_eq!(wrong.state, MirrorState::Failed);
        assert_ne!(wrong.repository, before.repository);
    }
    // Every token of the tests' issuer is another text.
    let exchanged = token("a", true);
    let after = mirrored(&exchanged);
    assert_eq!(after.state, MirrorState::Ready);
    assert_eq!(after.repository, before.repository);
    assert_eq!(door.downloads(), 1);
    // It is noted on the disk, and the upstream is not asked again.
    let registry = world.registry.restart();
    drop(world.origin);
    let source = upstream(&door.url("git/a/m.git"), "one", Some(&exchanged));
    let again = settle(&registry, &source, &world.commit, &[]);
    assert_eq!(again.state, MirrorState::Ready, "{again:?}");
    assert_eq!(again.repository, before.repository);
}

#[test]
fn an_upstream_that_only_promises_an_object_does_not_open_it() {
    let world = world(100_000, 8);
    let private = Door::open(world.origin.address, false);
    let good = token("a", false);
    let source = upstream(&private.url("git/a/m.git"), "one", Some(&good));
    ready(&world.registry, &source, &world.commit, &[]);
    // A server of a thief, who knows the pointer and answers every batch call with a promise.
    let thief = Door::open(world.origin.address, true);
    thief.set(Mode::Corrupt);
    let source = upstream(&thief.url("git/a/m.git"), "two", None);
    let status = settle(&world.registry, &source, &world.commit, &[]);
    assert_eq!(status.error.unwrap().reason, reason::DIGEST_MISMATCH);
    assert!(!member(&world.registry, &status.repository, &world.bytes));
    // Whoever has the bytes has shown that nothing was stolen.
    thief.set(Mode::Pass);
    let status = ready(&world.registry, &source, &world.commit, &[]);
    assert!(member(&world.registry, &status.repository, &world.bytes));
}

#[test]
fn what_was_pushed_here_is_not_opened_by_a_promise_either() {
    let world = world(100_000, 9);
    let url = world.registry.git_url(&token("one", true), "git/one/m.git");
    world.work.git("a", &["push", "-q", &url, "main"]);
    let thief = Door::open(world.origin.address, true);
    thief.set(Mode::Corrupt);
    let source = upstream(&thief.url("git/a/m.git"), "two", None);
    let status = settle(&world.registry, &source, &world.commit, &[]);
    assert_eq!(status.state, MirrorState::Failed);
    assert!(!member(&world.registry, &status.repository, &world.bytes));
}

#[test]
fn corrupt_bytes_never_become_visible_and_a_mended_upstream_heals() {
    let world = world(100_000, 10);
    let door = Door::open(world.origin.address, true);
    door.set(Mode::Corrupt);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let status = settle(&world.registry, &source, &world.commit, &[]);
    let error = status.error.unwrap();
    assert_eq!(error.reason, reason::DIGEST_MISMATCH);
    assert!(error.message.contains("weights.bin"), "{error}");
    assert!(!member(&world.registry, &status.repository, &world.bytes));
    door.set(Mode::Pass);
    let status = ready(&world.registry, &source, &world.commit, &[]);
    assert!(member(&world.registry, &status.repository, &world.bytes));
}

#[test]
fn an_object_that_the_upstream_lacks_is_named_with_its_file() {
    let world = world(1000, 11);
    let mut push = world.work.command(
        "a",
        &[
            "push",
            "-q",
            &world.origin.git_url(ADMIN, "git/a/bare.git"),
            "main",
        ],
    );
    assert!(
        push.env("GIT_LFS_SKIP_PUSH", "1")
            .status()
            .unwrap()
            .success()
    );
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/bare.git"), "default", None);
    let error = settle(&world.registry, &source, &world.commit, &[])
        .error
        .unwrap();
    assert_eq!(error.reason, reason::MISSING_OBJECT);
    assert!(error.message.contains("weights.bin"), "{error}");
    world.work.git(
        "a",
        &[
            "lfs",
            "push",
            "--all",
            &world.origin.git_url(ADMIN, "git/a/bare.git"),
        ],
    );
    ready(&world.registry, &source, &world.commit, &[]);
}

#[test]
fn each_fault_of_a_source_has_its_own_reason() {
    let world = world(1000, 12);
    let door = Door::open(world.origin.address, true);
    let resolve = |url: &str, credentials: Option<&str>, reference: Reference| {
        let upstream = upstream(url, "default", credentials);
        let body = serde_json::to_vec(&ResolveRequest {
            upstream,
            reference,
        })
        .unwrap();
        call(
            "POST",
            &world.registry.url(RESOLVE_PATH),
            ADMIN,
            &[],
            Some(&body),
        )
        .json()
    };
    let branch = |name: &str| Reference::Branch(name.into());
    let good = door.url("git/a/m.git");
    assert_eq!(resolve(&good, None, branch("main"))["commit"], world.commit);
    assert_eq!(
        resolve(&good, None, Reference::Head)["commit"],
        world.commit
    );
    let origin = world.origin.url("/git/a/m.git");
    for (url, credentials, reference, expected) in [
        (
            good.as_str(),
            None,
            branch("nope"),
            reason::REFERENCE_NOT_FOUND,
        ),
        (
            &door.url("git/a/none.git"),
            None,
            branch("main"),
            reason::REPOSITORY_NOT_FOUND,
        ),
        (&origin, None, branch("main"), reason::AUTHENTICATION_FAILED),
        (
            &origin,
            Some("wrong-token"),
            branch("main"),
            reason::AUTHENTICATION_FAILED,
        ),
        (
            "http://127.0.0.1:1/a/b",
            None,
            branch("main"),
            reason::HOST_UNREACHABLE,
        ),
        (
            "http://host.invalid/a/b",
            None,
            branch("main"),
            reason::HOST_UNREACHABLE,
        ),
        ("file:///etc", None, branch("main"), reason::INVALID_URL),
        (
            "http://u:p@host/a",
            None,
            branch("main"),
            reason::INVALID_URL,
        ),
    ] {
        let answer = resolve(url, credentials, reference);
        assert_eq!(answer["reason"], expected, "{url}: {answer}");
        assert!(!answer.to_string().contains("wrong-token"), "{answer}");
    }
    let unknown = "0".repeat(40);
    let source = upstream(&good, "default", None);
    let status = settle(&world.registry, &source, &unknown, &[]);
    assert_eq!(status.error.unwrap().reason, reason::REFERENCE_NOT_FOUND);
    let status = ask(
        &world.registry.address,
        &upstream("file:///etc", "default", None),
        &unknown,
        &[],
    );
    assert_eq!(status.error.unwrap().reason, reason::INVALID_URL);
    let status = ask(&world.registry.address, &source, &world.commit, &["a[b"]);
    assert_eq!(status.state, MirrorState::Failed);
}

#[test]
fn a_tree_with_a_link_out_of_it_is_refused_by_name() {
    let world = world(1000, 13);
    std::os::unix::fs::symlink("/etc/passwd", world.work.path("a/innocent")).unwrap();
    let commit = world.work.commit("a");
    let url = world.origin.git_url(ADMIN, "git/a/m.git");
    world.work.git("a", &["push", "-q", &url, "main"]);
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let error = settle(&world.registry, &source, &commit, &[])
        .error
        .unwrap();
    assert_eq!(error.reason, reason::REFUSED_CONTENT);
    assert!(
        error.message.contains("innocent") && !error.retriable,
        "{error}"
    );
}

#[test]
fn a_full_disk_is_said_and_passes() {
    let world = world(100_000, 14);
    let door = Door::open(world.origin.address, true);
    let full = Server::with(|limits| limits.min_free_bytes = 1 << 60);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let error = settle(&full, &source, &world.commit, &[]).error.unwrap();
    assert_eq!(error.reason, reason::DISK_FULL);
    assert!(error.retriable);
    assert_eq!(door.downloads(), 0);
}

#[test]
fn a_ready_mirror_is_ready_without_its_upstream() {
    let world = world(1000, 15);
    let door = Door::open(world.origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    ready(&world.registry, &source, &world.commit, &[]);
    let batches = door.batches();
    drop(door);
    let registry = world.registry.restart();
    let status = settle(&registry, &source, &world.commit, &[]);
    assert_eq!(
        (status.state, status.bytes_done),
        (MirrorState::Ready, 1000),
        "{status:?}"
    );
    assert!(batches > 0);
}
