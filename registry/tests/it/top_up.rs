//! Repositories that are given a commit which they lack.

use hyprstream_contract::{registry::MirrorState, repositories::FORKS_PATH};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Workspace, ask, batch, call, noise, oid, ready, upstream},
    cluster::Cluster,
    program::Program,
    server::{ADMIN, NODE, Server, token},
};

const SIZE: usize = 20_000;

fn give(url: &str, who: &str, from: &str, to: &str, commit: &str) -> Answer {
    let body = json!({"from": from, "to": to, "commit": commit}).to_string();
    call("POST", url, who, &[], Some(body.as_bytes()))
}

fn fork(server: &Server, from: &str, to: &str, commit: &str) -> Answer {
    give(&server.url(FORKS_PATH), ADMIN, from, to, commit)
}

/// An upstream with some commits of a model, each with weights of its own seed, and a registry that
/// mirrors them one by one, without their history.
struct Setup {
    origin: Server,
    server: Server,
    work: Workspace,
    commits: Vec<String>,
}

impl Setup {
    fn new() -> Self {
        let (origin, server, work) = (Server::start(), Server::start(), Workspace::new());
        let mut commits = vec![work.model("a", SIZE, 1)];
        for seed in 2..5 {
            std::fs::write(work.path("a/weights.bin"), noise(SIZE, seed)).unwrap();
            commits.push(work.commit("a"));
        }
        let url = origin.git_url(ADMIN, "git/team-a/m.git");
        work.git("a", &["push", "-q", &url, "main"]);
        Self {
            origin,
            server,
            work,
            commits,
        }
    }

    /// Mirrors one of the commits. The mirror's name.
    fn mirror(&self, number: usize) -> String {
        let url = self.origin.url("/git/team-a/m.git");
        let source = upstream(&url, "team-a", Some(ADMIN));
        ready(&self.server, &source, &self.commits[number], &[]).repository
    }

    fn url(&self) -> String {
        self.server
            .git_url(&token("team-b", true), "git/team-b/n.git")
    }

    fn has(&self, seed: u8) -> bool {
        let oid = oid(&noise(SIZE, seed));
        let answer = batch(&self.server, ADMIN, "git/team-b/n", "download", &oid, SIZE);
        answer.json()["objects"][0].get("error").is_none()
    }

    fn refs(&self) -> String {
        self.work.git("", &["ls-remote", &self.url()])
    }

    fn fsck(&self) {
        let bare = self.server.root().join("git/team-b/n.git");
        let arguments = ["-c", "safe.directory=*", "fsck", "--full"];
        let dir = ["--git-dir", bare.to_str().unwrap()];
        self.work.git("", &[&dir[..], &arguments].concat());
    }

    /// What a pod does: it has one commit alone, and pushes a child of it.
    fn push_a_child(&self, commit: &str, folder: &str, branch: &str) {
        let work = &self.work;
        std::fs::create_dir_all(work.path(folder)).unwrap();
        work.git(folder, &["init", "-q"]);
        work.git(folder, &["lfs", "install", "--local"]);
        let fetch = ["fetch", "-q", "--depth", "1", &self.url(), commit];
        work.git(folder, &fetch);
        let mut checkout = work.command(folder, &["checkout", "-q", "FETCH_HEAD"]);
        let status = checkout.env("GIT_LFS_SKIP_SMUDGE", "1").status().unwrap();
        assert!(status.success());
        std::fs::write(work.path(folder).join("adapter.json"), branch).unwrap();
        work.commit(folder);
        let to = format!("HEAD:refs/heads/{branch}");
        work.git(folder, &["push", "-q", &self.url(), &to]);
    }
}

#[test]
fn a_fork_is_given_commits_that_its_mirror_got_later() {
    let setup = Setup::new();
    let mirror = setup.mirror(0);
    let first = fork(&setup.server, &mirror, "team-b/n", &setup.commits[0]);
    assert_eq!(first.status, 201, "{:?}", first.json());
    assert_eq!(first.json()["repository"], "git/team-b/n");
    setup.push_a_child(&setup.commits[0], "p0", "train/j0");
    let before = setup.refs();
    // One after the other, the older one last; and all of it again.
    for number in [2, 1, 2, 1, 0] {
        assert_eq!(setup.mirror(number), mirror);
        let given = fork(&setup.server, &mirror, "team-b/n", &setup.commits[number]);
        assert_eq!(given.status, 201, "{:?}", given.json());
        let expected = (&json!(1), &json!(SIZE));
        let said = given.json();
        assert_eq!((&said["objects"], &said["sharedBytes"]), expected);
        assert!(setup.has(number as u8 + 1));
        setup.fsck();
    }
    assert!(!setup.has(4));
    assert_eq!(setup.refs(), before, "no branch changed");
    for number in [1, 2, 0] {
        let (folder, branch) = (format!("q{number}"), format!("train/q{number}"));
        setup.push_a_child(&setup.commits[number], &folder, &branch);
        let clone = format!("c{number}");
        let arguments = ["clone", "-q", "-b", &branch, &setup.url(), &clone];
        setup.work.git("", &arguments);
        let weights = setup.work.read(&format!("{clone}/weights.bin"));
        assert_eq!(weights, noise(SIZE, number as u8 + 1));
        setup.work.git(&clone, &["fsck", "--full"]);
    }
    setup.fsck();
    let lines = std::fs::read_to_string(setup.server.root().join("audit/audit.jsonl")).unwrap();
    let mut lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.rfind(|line| line["action"] == "fork").unwrap();
    assert_eq!(
        (&line["from"], &line["new"]),
        (&json!(mirror), &json!(setup.commits[0]))
    );
}

#[test]
fn a_fork_with_all_of_its_history_keeps_it() {
    let setup = Setup::new();
    // It was pushed, and has history behind a commit that a mirror has alone.
    setup.work.git("a", &["push", "-q", &setup.url(), "main"]);
    let mirror = setup.mirror(1);
    for number in [1, 3] {
        setup.mirror(number);
        let given = fork(&setup.server, &mirror, "team-b/n", &setup.commits[number]);
        assert_eq!(given.status, 201, "{:?}", given.json());
    }
    setup.fsck();
    setup.work.git("", &["clone", "-q", &setup.url(), "c"]);
    assert_eq!(setup.work.git("c", &["rev-list", "--count", "HEAD"]), "4");
    // A part of the history that is behind what is pushed, and a commit behind that.
    let bare = setup.server.root().join("git/team-b/n.git/shallow");
    assert!(!bare.exists(), "{:?}", std::fs::read_to_string(bare));
}

#[test]
fn a_commit_comes_from_another_repository_with_its_history() {
    let setup = Setup::new();
    let (server, work) = (&setup.server, &setup.work);
    let url = server.git_url(ADMIN, "git/team-a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let mirror = setup.mirror(0);
    assert_eq!(
        fork(server, &mirror, "team-b/n", &setup.commits[0]).status,
        201
    );
    let given = fork(server, "team-a/m", "team-b/n", &setup.commits[3]);
    assert_eq!(given.status, 201, "{:?}", given.json());
    setup.fsck();
    setup.push_a_child(&setup.commits[3], "p", "train/j");
    let arguments = ["clone", "-q", "-b", "train/j", &setup.url(), "c"];
    work.git("", &arguments);
    assert_eq!(work.read("c/weights.bin"), noise(SIZE, 4));
    // Its own commits are looked at, and stay when their branch goes.
    let own = work.git("c", &["rev-parse", "HEAD"]);
    let looked = fork(server, "team-b/n", "team-b/n", &own);
    assert_eq!(looked.status, 201, "{:?}", looked.json());
    let delete = ["push", "-q", &setup.url(), ":refs/heads/train/j"];
    work.git("c", &delete);
    let source = upstream("hyprstream://team-b/n", "team-b", None);
    assert_eq!(
        ask(&server.address, &source, &own, &[]).state,
        MirrorState::Ready
    );
    setup.push_a_child(&own, "q", "train/k");
}

#[test]
fn what_is_missing_is_said() {
    let setup = Setup::new();
    let mirror = setup.mirror(0);
    let (server, commits) = (&setup.server, &setup.commits);
    let none = "1".repeat(40);
    for to in ["team-b/n", "team-b/other"] {
        let missing = fork(server, &mirror, to, &none);
        assert_eq!(
            (missing.status, &missing.json()["reason"]),
            (404, &json!("ReferenceNotFound"))
        );
        assert_eq!(fork(server, &mirror, to, &commits[0]).status, 201);
        assert_eq!(fork(server, &mirror, to, &commits[1]).status, 404);
        assert_eq!(fork(server, to, to, &none).status, 404);
    }
    assert_eq!(fork(server, &mirror, "team-b/n", "main").status, 400);
    // Pushed without its large file.
    let url = server.git_url(ADMIN, "git/team-c/half.git");
    setup
        .work
        .git("a", &["push", "-q", "--no-verify", &url, "main"]);
    let half = fork(server, "team-c/half", "team-c/half", &commits[3]);
    assert_eq!(
        (half.status, &half.json()["reason"]),
        (422, &json!("MissingLFSObject"))
    );
    assert_eq!(
        fork(server, "team-c/half", "team-b/n", &commits[3]).status,
        422
    );
    assert_eq!(
        fork(server, "team-c/half", "team-c/new", &commits[3]).status,
        422
    );
    assert!(!server.root().join("git/team-c/new.git").exists());
}

#[test]
fn only_the_control_plane_gives_commits_to_what_is_there() {
    let cluster = Cluster::start();
    let (server, work) = (Server::in_cluster(&cluster), Workspace::new());
    let commit = work.model("a", 1000, 1);
    let url = server.git_url(ADMIN, "git/team-a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let (read, make) = ("get repositories team-a m", "create repositories team-b n");
    let user = cluster.user("alice").may(&[read, make]);
    let admin = "admin repositories team-b n";
    let owner = cluster.user("bob").may(&[read, make, admin]);
    let forks = server.url(FORKS_PATH);
    let try_as = |who: &str| give(&forks, who, "team-a/m", "team-b/n", &commit).status;
    assert_eq!(try_as(NODE), 403);
    assert_eq!(try_as(&user.token), 201);
    for who in [&user.token, &owner.token, NODE, &token("team-b", true)] {
        assert_eq!(try_as(who), 403);
    }
    assert_eq!(try_as(ADMIN), 201);
}

#[test]
fn a_registry_that_is_killed_while_it_gives_a_commit_goes_on_when_asked_again() {
    let (dir, work) = (tempfile::tempdir().unwrap(), Workspace::new());
    let mut program = Program::start(dir.path(), 0);
    let first = work.model("a", 1000, 1);
    let push = |program: &Program, repository: &str| {
        let url = program.git_url(&format!("git/{repository}.git"));
        work.git("a", &["push", "-q", &url, "main"]);
    };
    push(&program, "a/m");
    push(&program, "a/n");
    for number in 0..100u32 {
        let name = format!("a/{number}.bin");
        std::fs::write(work.path(&name), number.to_le_bytes()).unwrap();
    }
    let commit = work.commit("a");
    push(&program, "a/m");
    let root = dir.path().join("root");
    for round in 0..6 {
        let url = program.url(FORKS_PATH);
        let wanted = commit.clone();
        let asking = std::thread::spawn(move || {
            let body = json!({"from": "a/m", "to": "a/n", "commit": wanted}).to_string();
            let token = format!("Bearer {ADMIN}");
            let answer = ureq::post(&url).header("authorization", &token).send(&body);
            answer.map(|answer| answer.status().as_u16())
        });
        std::thread::sleep(std::time::Duration::from_millis(15 * round));
        program.kill();
        let _ = asking.join().unwrap();
        program = Program::start(dir.path(), 0);
        // What was there is as it was.
        let url = program.git_url("git/a/n.git");
        let refs = work.git("", &["ls-remote", &url, "refs/heads/*"]);
        assert_eq!(refs, format!("{first}\trefs/heads/main"));
        let bare = root.join("git/a/n.git");
        let arguments = ["-c", "safe.directory=*", "fsck", "--full"];
        work.git(
            "",
            &[&["--git-dir", bare.to_str().unwrap()], &arguments[..]].concat(),
        );
    }
    let given = give(&program.url(FORKS_PATH), ADMIN, "a/m", "a/n", &commit);
    assert_eq!(given.status, 201, "{:?}", given.json());
    assert_eq!(given.json()["objects"], 101);
    let looked = give(&program.url(FORKS_PATH), ADMIN, "a/n", "a/n", &commit);
    assert_eq!(looked.status, 201, "{:?}", looked.json());
}
