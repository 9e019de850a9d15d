//! Tokens of the API server, and what they may push.

use std::time::{Duration, Instant};

use hyprstream_contract::repositories::PROTECTION_PATH;
use serde_json::{Value, json};

use crate::{
    client::{Workspace, batch, call, noise, oid},
    cluster::{Cluster, Holder, jwt},
    server::{ADMIN, Server, token},
};

const EVERYTHING: [&str; 6] = [
    "get repositories team-a m",
    "push repositories team-a m",
    "force repositories team-a m",
    "admin repositories team-a m",
    "create repositories team-a m",
    "delete repositories team-a m",
];
const READ: &str = "get repositories team-a m";
const PUSH: &str = "push repositories team-a m";
const TRAIN: &str = "push repositories/train team-a m";

/// A cluster, a registry in it with the repository `team-a/m`, and a working copy of it.
struct Setup {
    cluster: Cluster,
    server: Server,
    work: Workspace,
}

impl Setup {
    fn new() -> Self {
        let cluster = Cluster::start();
        let server = Server::in_cluster(&cluster);
        let work = Workspace::new();
        work.model("a", 1000, 51);
        let url = server.git_url(ADMIN, "git/team-a/m.git");
        work.git("a", &["push", "-q", &url, "main"]);
        Self {
            cluster,
            server,
            work,
        }
    }

    /// A further commit, that the branch `main` of the working copy names.
    fn commit(&self, content: &str) -> String {
        std::fs::write(self.work.path("a/config.json"), content).unwrap();
        self.work.commit("a")
    }

    fn push_to(&self, who: &str, repository: &str, arguments: &[&str]) -> (bool, String) {
        let url = self.server.git_url(who, &format!("git/{repository}.git"));
        let all = [&["push", "--no-verify", "--porcelain", &url], arguments].concat();
        let output = self.work.run("a", &all);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.success(), text)
    }

    fn push(&self, who: &Holder<'_>, arguments: &[&str]) -> (bool, String) {
        self.push_to(&who.token, "team-a/m", arguments)
    }

    #[track_caller]
    fn takes(&self, who: &Holder<'_>, arguments: &[&str]) {
        let (done, text) = self.push(who, arguments);
        assert!(done, "{arguments:?}: {text}");
    }

    /// Git tells its user of a ref that was refused, and why.
    #[track_caller]
    fn refuses(&self, who: &Holder<'_>, arguments: &[&str], why: &str) {
        let before = self.refs();
        let (done, text) = self.push(who, arguments);
        assert!(!done && text.contains("[remote rejected]"), "{text}");
        assert!(text.contains(why), "{arguments:?}: {text}");
        assert_eq!(self.refs(), before);
    }

    fn refs(&self) -> String {
        let url = self.server.git_url(ADMIN, "git/team-a/m.git");
        self.work.git("a", &["ls-remote", &url])
    }

    fn has(&self, name: &str) -> bool {
        self.refs()
            .lines()
            .any(|line| line.ends_with(&format!("\t{name}")))
    }

    fn audit(&self) -> Vec<Value> {
        let file = self.server.root().join("audit/audit.jsonl");
        let text = std::fs::read_to_string(file).unwrap();
        let parse = |line| serde_json::from_str(line).unwrap();
        text.lines().map(parse).collect()
    }
}

/// Asks until the answer is the expected one.
#[track_caller]
fn eventually<T: PartialEq + std::fmt::Debug>(expected: &T, ask: impl Fn() -> T) {
    let start = Instant::now();
    loop {
        let found = ask();
        if found == *expected {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_job_pushes_its_own_branch_and_tags_and_nothing_else() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    setup.commit("{\"a\": 1}");
    setup.takes(&job, &["main:refs/heads/train/job-1"]);
    setup.commit("{\"a\": 2}");
    setup.takes(&job, &["main:refs/heads/train/job-1"]);
    setup.takes(&job, &["main:refs/tags/job-1/step-100"]);
    for (refspec, why) in [
        ("main:refs/heads/main", "may not push main"),
        ("main:refs/heads/other", "may not push other"),
        ("main:refs/heads/train/job-2", "may not push train/job-2"),
        ("main:refs/heads/train/job-10", "may not push train/job-10"),
        ("main:refs/tags/v1", "may not push v1"),
        ("main:refs/tags/job-2/v1", "may not push job-2/v1"),
        ("main:refs/notes/x", "only branches and tags"),
        ("main:refs/hyprstream/x", "registry's own"),
        ("+main~1:refs/heads/train/job-1", "non-fast-forward"),
        ("+main~1:refs/tags/job-1/step-100", "right `force`"),
        (":refs/heads/train/job-1", "right `force`"),
        (":refs/heads/main", "right `force`"),
    ] {
        setup.refuses(&job, &[refspec], why);
    }
    // Another repository and another namespace do not even show their refs.
    for repository in ["team-a/other", "team-b/m"] {
        let (done, text) = setup.push_to(&job.token, repository, &["main:refs/heads/train/job-1"]);
        assert!(!done && text.contains("403"), "{text}");
    }
    // It brings its weights.
    let upload = batch(
        &setup.server,
        &job.token,
        "git/team-a/m",
        "upload",
        &oid(b"new"),
        3,
    );
    assert_eq!(upload.status, 200);
    let api = call(
        "GET",
        &setup.server.url("/api/v1/events"),
        &job.token,
        &[],
        None,
    );
    assert_eq!(api.status, 403);
}

#[test]
fn a_job_deletes_its_own_tags_and_nothing_else() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    let named = "push repositories/train team-a m/job-2";
    let other = setup.cluster.account("trainer").may(&[READ, TRAIN, named]);
    let tags = [
        "main:refs/tags/job-1/step-1",
        "main:refs/tags/job-1/step-2",
        "main:refs/tags/job-2/step-1",
        "main:refs/tags/job-1",
    ];
    for tag in &tags[..3] {
        let (done, text) = setup.push_to(ADMIN, "team-a/m", &[tag]);
        assert!(done, "{text}");
    }
    setup.takes(&job, &["main:refs/heads/train/job-1"]);
    setup.takes(&job, &[":refs/tags/job-1/step-1"]);
    assert!(!setup.has("refs/tags/job-1/step-1") && setup.has("refs/tags/job-1/step-2"));
    setup.refuses(&job, &[":refs/tags/job-2/step-1"], "right `force`");
    setup.refuses(&other, &[":refs/tags/job-1/step-2"], "right `force`");
    setup.refuses(&job, &[":refs/heads/train/job-1"], "right `force`");
    setup.takes(&other, &[":refs/tags/job-2/step-1"]);
    let rules = json!({"rules": [{"refs": "refs/tags/job-1/*", "push": "push"}]}).to_string();
    let url = setup.server.url(&format!("{PROTECTION_PATH}/team-a/m"));
    let put = call("PUT", &url, ADMIN, &[], Some(rules.as_bytes()));
    assert_eq!(put.status, 200);
    setup.refuses(&job, &[":refs/tags/job-1/step-2"], "right `admin`");
}

#[test]
fn a_job_brings_large_files_with_its_right_and_get_alone() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    std::fs::write(setup.work.path("a/checkpoint.bin"), noise(3000, 52)).unwrap();
    setup.work.commit("a");
    let url = setup.server.git_url(&job.token, "git/team-a/m.git");
    // With git-lfs's own hook, by both ways of sending.
    let to = "main:refs/heads/train/job-1";
    setup.work.git("a", &["push", "-q", &url, to]);
    setup.work.git("a", &["config", "lfs.tustransfers", "true"]);
    std::fs::write(setup.work.path("a/checkpoint.bin"), noise(3000, 53)).unwrap();
    setup.work.commit("a");
    setup.work.git("a", &["push", "-q", &url, to]);
    let clone = ["clone", "-q", "-b", "train/job-1", &url, "b"];
    setup.work.git("", &clone);
    assert_eq!(setup.work.read("b/checkpoint.bin"), noise(3000, 53));
}

#[test]
fn a_right_on_the_name_of_a_job_is_one_for_anybody() {
    let setup = Setup::new();
    let named = "push repositories/train team-a m/job-7";
    let account = setup.cluster.account("trainer").may(&[READ, TRAIN, named]);
    setup.takes(&account, &["main:refs/heads/train/job-7"]);
    setup.takes(&account, &["main:refs/heads/train/trainer"]);
    setup.refuses(&account, &["main:refs/heads/train/job-8"], "may not push");
    let any = "push repositories/train team-a *";
    let person = setup.cluster.user("alice").may(&[READ, any]);
    setup.takes(&person, &["main:refs/heads/train/job-8"]);
    setup.refuses(&person, &["main:refs/heads/x"], "may not push x");
}

#[test]
fn one_refused_ref_leaves_the_others_unless_the_push_is_atomic() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    let commit = setup.commit("{\"a\": 1}");
    let both = ["main:refs/heads/main", "main:refs/heads/train/job-1"];
    let (done, text) = setup.push(&job, &[&["--atomic"], &both[..]].concat());
    assert!(!done && text.contains("atomic push"), "{text}");
    assert!(!setup.has("refs/heads/train/job-1"));
    for version in ["0", "2"] {
        setup
            .work
            .git("a", &["config", "protocol.version", version]);
        let (done, text) = setup.push(&job, &both);
        assert!(!done && text.contains("may not push main"), "{text}");
        assert!(
            setup
                .refs()
                .contains(&format!("{commit}\trefs/heads/train/job-1"))
        );
        assert!(!setup.refs().contains(&format!("{commit}\trefs/heads/main")));
    }
}

#[test]
fn people_push_forward_and_rewrite_only_with_the_right_to() {
    let setup = Setup::new();
    let alice = setup.cluster.user("alice").may(&[READ, PUSH]);
    setup.commit("{\"a\": 1}");
    setup.takes(&alice, &["main", "main:refs/heads/x", "main:refs/tags/v1"]);
    setup
        .work
        .git("a", &["commit", "-q", "--amend", "-m", "another"]);
    setup.refuses(&alice, &["+main"], "merge what is there first");
    setup.refuses(&alice, &["+main:refs/tags/v1"], "moving a tag");
    setup.refuses(&alice, &[":refs/heads/x"], "right `force`");
    let bob = setup
        .cluster
        .user("bob")
        .may(&[READ, "force repositories team-a m"]);
    setup.takes(
        &bob,
        &[
            "+main",
            "+main:refs/tags/v1",
            ":refs/heads/x",
            "main:refs/heads/new",
        ],
    );
    assert!(!setup.has("refs/heads/x"));
    let reader = setup.cluster.user("carol").may(&[READ]);
    assert!(!setup.push(&reader, &["main:refs/heads/y"]).0);
    let read = setup.server.git_url(&reader.token, "git/team-a/m.git");
    setup.work.git("", &["clone", "-q", &read, "b"]);
    let remove = |who: &Holder<'_>| {
        let url = setup.server.url("/git/team-a/m.git");
        call("DELETE", &url, &who.token, &[], None).status
    };
    assert_eq!(remove(&bob), 403);
    let owner = setup.cluster.user("dora").may(&EVERYTHING);
    assert_eq!(remove(&owner), 204);
}

#[test]
fn a_first_push_needs_the_right_to_make_the_repository() {
    let setup = Setup::new();
    let push = "push repositories team-a new";
    let alice = setup.cluster.user("alice").may(&[push]);
    let (done, text) = setup.push_to(&alice.token, "team-a/new", &["main"]);
    assert!(!done && text.contains("403"), "{text}");
    assert!(!setup.server.root().join("git/team-a/new.git").exists());
    let upload = batch(
        &setup.server,
        &alice.token,
        "git/team-a/new",
        "upload",
        &oid(b"n"),
        1,
    );
    assert_eq!(upload.status, 403);
    let bob = setup
        .cluster
        .user("bob")
        .may(&[push, "create repositories team-a new"]);
    assert!(setup.push_to(&bob.token, "team-a/new", &["main"]).0);
    assert!(
        setup
            .push_to(&alice.token, "team-a/new", &["main:refs/heads/x"])
            .0
    );
}

#[test]
fn what_is_taken_away_ends_soon() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    let refs = |service: &str| {
        let path = format!("/git/team-a/m.git/info/refs?service={service}");
        call("GET", &setup.server.url(&path), &job.token, &[], None).status
    };
    assert_eq!(refs("git-receive-pack"), 200);
    job.may_no_longer(TRAIN);
    eventually(&403, || refs("git-receive-pack"));
    assert_eq!(refs("git-upload-pack"), 200);
    job.ends();
    eventually(&401, || refs("git-upload-pack"));
}

#[test]
fn without_the_api_server_what_was_known_holds_for_a_while() {
    let setup = Setup::new();
    let reader = setup.cluster.user("alice").may(&[READ]);
    let stranger = setup.cluster.user("bob").may(&[READ]);
    let refs = |who: &str| {
        let path = "/git/team-a/m.git/info/refs?service=git-upload-pack";
        call("GET", &setup.server.url(path), who, &[], None).status
    };
    assert_eq!(refs(&reader.token), 200);
    setup.cluster.set_down(true);
    let began = Instant::now();
    let mut held = Duration::ZERO;
    // Longer than an answer is fresh.
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(refs(&reader.token), 200);
        held = began.elapsed();
    }
    assert!(held > Duration::from_millis(400), "{held:?}");
    // It cannot be told whether the token is good, which is not to say that it is bad.
    assert_eq!(refs(&stranger.token), 503);
    eventually(&503, || refs(&reader.token));
    assert_eq!(refs(&token("team-a", false)), 200);
    assert_eq!(refs("nonsense"), 401);
    setup.cluster.set_down(false);
    eventually(&200, || refs(&stranger.token));
}

#[test]
fn the_api_server_is_asked_once_and_only_about_tokens_for_us() {
    let setup = Setup::new();
    let refs = |who: &str| {
        let path = "/git/team-a/m.git/info/refs?service=git-upload-pack";
        call("GET", &setup.server.url(path), who, &[], None).status
    };
    for other in [
        jwt("alice", "https://kubernetes.default.svc"),
        "a.b.c".to_owned(),
    ] {
        assert_eq!(refs(&other), 401);
    }
    assert_eq!(setup.cluster.token_reviews(), 0);
    assert_eq!(refs(&jwt("mallory", "hyprstream")), 401);
    assert_eq!(setup.cluster.token_reviews(), 1);
    let alice = setup.cluster.user("alice").may(&[READ]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(refs(&alice.token), 200));
        }
    });
    assert!(
        setup.cluster.token_reviews() < 8,
        "{}",
        setup.cluster.token_reviews()
    );
}

#[test]
fn what_is_protected_is_pushed_by_those_who_may() {
    let setup = Setup::new();
    let alice = setup
        .cluster
        .user("alice")
        .may(&[READ, PUSH, "force repositories team-a m"]);
    let owner = setup.cluster.user("dora").may(&EVERYTHING);
    let url = |path: &str| setup.server.url(&format!("{PROTECTION_PATH}/{path}"));
    let put = |who: &str, path: &str, body: &Value| {
        let body = body.to_string();
        call("PUT", &url(path), who, &[], Some(body.as_bytes())).status
    };
    let rules = json!({"rules": [
        {"refs": "HEAD"},
        {"refs": "refs/heads/release/*", "push": "push", "delete": true},
    ]});
    assert_eq!(put(&alice.token, "team-a/m", &rules), 403);
    assert_eq!(
        put(
            &owner.token,
            "team-a/m",
            &json!({"rules": [{"refs": "main"}]})
        ),
        400
    );
    assert_eq!(put(&owner.token, "team-a/m", &rules), 200);
    assert_eq!(put(&owner.token, "team-a", &rules), 403);
    let kept = call("GET", &url("team-a/m"), &alice.token, &[], None).json();
    assert_eq!(
        kept["rules"][0],
        json!({"refs": "HEAD", "push": "admin", "force": false, "delete": false})
    );
    setup.commit("{\"a\": 1}");
    setup.refuses(
        &alice,
        &["main"],
        "main is protected: push to a branch and merge",
    );
    setup.takes(&alice, &["main:refs/heads/release/1", "main:refs/heads/x"]);
    setup
        .work
        .git("a", &["commit", "-q", "--amend", "-m", "another"]);
    setup.refuses(&alice, &["+main:refs/heads/release/1"], "non-fast-forward");
    setup.takes(&alice, &["+main:refs/heads/x"]);
    setup.takes(&alice, &[":refs/heads/release/1"]);
    setup.takes(&owner, &["+main"]);
    // Those of the namespace hold behind, for signed tokens too.
    assert_eq!(
        put(
            ADMIN,
            "team-a",
            &json!({"rules": [{"refs": "refs/heads/*"}]})
        ),
        200
    );
    setup.refuses(&alice, &["main:refs/heads/y"], "y is protected");
    let (done, text) = setup.push_to(&token("team-a", true), "team-a/m", &["main:refs/heads/y"]);
    assert!(!done && text.contains("y is protected"), "{text}");
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    setup.refuses(&job, &["main:refs/heads/train/job-1"], "may not push");
}

#[test]
fn the_audit_log_says_who_did_what_and_names_no_token() {
    let setup = Setup::new();
    let job = setup.cluster.account("job-1").may(&[READ, TRAIN]);
    let commit = setup.commit("{\"a\": 1}");
    let both = ["main:refs/heads/main", "main:refs/heads/train/job-1"];
    assert!(!setup.push(&job, &both).0);
    assert!(!setup.push(&job, &["+main~1:refs/heads/train/job-1"]).0);
    let url = setup.server.url("/git/team-a/m.git");
    assert_eq!(call("DELETE", &url, &job.token, &[], None).status, 403);
    assert_eq!(call("DELETE", &url, ADMIN, &[], None).status, 204);
    let lines = setup.audit();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {} {} {}",
                text("action"),
                text("result"),
                text("subject"),
                text("ref")
            )
        })
        .collect();
    let account = "system:serviceaccount:team-a:job-1";
    assert_eq!(
        seen,
        [
            "upload ok admin token ".to_owned(),
            "push ok admin token refs/heads/main".to_owned(),
            format!("push refused {account} refs/heads/main"),
            format!("push ok {account} refs/heads/train/job-1"),
            format!("push failed {account} refs/heads/train/job-1"),
            format!("delete refused {account} "),
            "delete ok admin token ".to_owned(),
        ]
    );
    assert_eq!(lines[0]["object"], oid(&noise(1000, 51)));
    assert_eq!(lines[0]["bytes"], 1000);
    assert_eq!(lines[3]["new"], commit);
    assert_eq!(lines[3]["pod"], "pod-of-the-tests");
    assert!(lines[3]["bytes"].as_u64().unwrap() > 100);
    assert_eq!(lines[4]["reason"], "non-fast-forward");
    let text = std::fs::read_to_string(setup.server.root().join("audit/audit.jsonl")).unwrap();
    assert!(!text.contains(&job.token) && !text.contains(ADMIN));
}
