//! Merges on the registry.

use hyprstream_contract::{
    registry::EVENTS_PATH,
    repositories::{MERGE_CONFLICT, MERGES_PATH, REFERENCE_MOVED},
};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Workspace, call},
    cluster::Cluster,
    server::{ADMIN, Server, token},
};

/// A registry with `team-a/m`, whose `main` and `x` begin at one commit, and a working copy.
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
        work.model("a", 1000, 71);
        let setup = Self {
            cluster,
            server,
            work,
        };
        setup.work.git("a", &["branch", "x"]);
        setup.push();
        setup
    }

    fn push(&self) {
        let url = self.server.git_url(ADMIN, "git/team-a/m.git");
        let git = &self.work;
        git.git("a", &["push", "-q", &url, "main", "x"]);
    }

    /// A commit on a branch of the registry.
    fn change(&self, branch: &str, file: &str, content: &str) -> String {
        self.work.git("a", &["checkout", "-q", branch]);
        std::fs::write(self.work.path("a").join(file), content).unwrap();
        let commit = self.work.commit("a");
        self.push();
        commit
    }

    fn merge(&self, who: &str, more: &Value) -> Answer {
        let mut body =
            json!({"repository": "team-a/m", "into": "main", "from": "x", "message": "Take up x"});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let url = self.server.url(MERGES_PATH);
        call("POST", &url, who, &[], Some(body.to_string().as_bytes()))
    }

    fn main(&self) -> String {
        let url = self.server.git_url(ADMIN, "git/team-a/m.git");
        let line = self.work.git("a", &["ls-remote", &url, "refs/heads/main"]);
        line.split_whitespace().next().unwrap().to_owned()
    }
}

#[test]
fn a_branch_moves_forward_if_it_can() {
    let setup = Setup::new();
    let commit = setup.change("x", "config.json", "{\"a\": 1}");
    let merged = setup.merge(&token("team-a", true), &json!({}));
    assert_eq!(
        merged.json(),
        json!({"commit": commit, "kind": "fastForward"})
    );
    assert_eq!(setup.main(), commit);
    let again = setup.merge(ADMIN, &json!({"from": commit}));
    assert_eq!(again.json(), json!({"commit": commit, "kind": "upToDate"}));
}

#[test]
fn two_sides_are_merged_into_a_commit_that_git_likes() {
    let setup = Setup::new();
    let theirs = setup.change("x", "x.json", "{}");
    let ours = setup.change("main", "main.json", "{}");
    let page = |after: &Value| {
        let url = setup.server.url(&format!("{EVENTS_PATH}?after={after}"));
        call("GET", &url, ADMIN, &[], None).json()
    };
    let before = page(&json!(0))["last"].clone();
    let alice = setup
        .cluster
        .user("alice")
        .may(&["get repositories team-a m", "push repositories team-a m"]);
    let merged = setup.merge(&alice.token, &json!({"expected": ours})).json();
    assert_eq!(merged["kind"], "merged", "{merged}");
    assert_eq!(merged["commit"], setup.main());
    // Models of the repository hear of it.
    let heard = page(&before)["events"][0].clone();
    assert_eq!(heard["name"], "m");
    let change = &heard["change"];
    assert_eq!(
        (&change["kind"], &change["subject"], &change["isDefault"]),
        (&json!("merge"), &json!("alice"), &json!(true))
    );
    assert_eq!(
        (&change["old"], &change["new"]),
        (&json!(ours), &merged["commit"])
    );
    let url = setup.server.git_url(&alice.token, "git/team-a/m.git");
    setup.work.git("", &["clone", "-q", &url, "b"]);
    setup.work.git("b", &["fsck", "--strict"]);
    let commit = setup.work.git("b", &["log", "-1", "--format=%an|%s|%P"]);
    assert_eq!(commit, format!("alice|Take up x|{ours} {theirs}"));
    assert!(setup.work.path("b/x.json").exists() && setup.work.path("b/main.json").exists());
    let audit = std::fs::read_to_string(setup.server.root().join("audit/audit.jsonl")).unwrap();
    let last: Value = serde_json::from_str(audit.lines().last().unwrap()).unwrap();
    assert_eq!(
        [
            &last["action"],
            &last["subject"],
            &last["old"],
            &last["new"]
        ],
        [
            &json!("merge"),
            &json!("alice"),
            &json!(ours),
            &merged["commit"]
        ]
    );
}

#[test]
fn what_both_sides_changed_is_told_by_path_and_nothing_moves() {
    let setup = Setup::new();
    setup.change("x", "config.json", "{\"x\": 1}");
    setup.change("x", "other.json", "{\"x\": 1}");
    setup.change("main", "other.json", "{\"main\": 1}");
    let ours = setup.change("main", "config.json", "{\"main\": 1}");
    let refused = setup.merge(ADMIN, &json!({}));
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["reason"], MERGE_CONFLICT);
    assert_eq!(
        refused.json()["paths"],
        json!(["config.json", "other.json"])
    );
    assert_eq!(setup.main(), ours);
}

#[test]
fn a_branch_that_is_not_where_it_is_expected_stays() {
    let setup = Setup::new();
    let theirs = setup.change("x", "config.json", "{\"a\": 1}");
    let ours = setup.main();
    let refused = setup.merge(ADMIN, &json!({"expected": theirs}));
    assert_eq!(
        (refused.status, &refused.json()["reason"]),
        (409, &json!(REFERENCE_MOVED))
    );
    assert_eq!(refused.json()["retriable"], true);
    assert_eq!(setup.main(), ours);
    for (wrong, status) in [
        (json!({"from": "none"}), 404),
        (json!({"into": "none"}), 404),
        (json!({"into": "a..b"}), 400),
        (json!({"message": " "}), 400),
        (json!({"repository": "team-a/none"}), 404),
        (
            json!({"repository": format!("mirror/{}", "0".repeat(64))}),
            400,
        ),
        (json!({"expected": "x"}), 400),
        (json!({"more": 1}), 400),
    ] {
        assert_eq!(setup.merge(ADMIN, &wrong).status, status, "{wrong}");
    }
    setup.work.git("a", &["checkout", "-q", "--orphan", "y"]);
    setup.work.git("a", &["commit", "-qm", "another history"]);
    let url = setup.server.git_url(ADMIN, "git/team-a/m.git");
    setup
        .work
        .git("a", &["push", "-q", "--no-verify", &url, "y"]);
    assert_eq!(setup.merge(ADMIN, &json!({"from": "y"})).status, 422);
    assert_eq!(setup.main(), ours);
}

#[test]
fn who_may_not_push_a_branch_may_not_merge_into_it() {
    let setup = Setup::new();
    setup.change("x", "config.json", "{\"a\": 1}");
    let read = "get repositories team-a m";
    let job = setup
        .cluster
        .account("job-1")
        .may(&[read, "push repositories/train team-a m"]);
    let refused = setup.merge(&job.token, &json!({}));
    assert_eq!(refused.status, 403);
    assert!(refused.json()["message"].as_str().unwrap().contains("main"));
    assert_eq!(setup.merge(&token("team-b", true), &json!({})).status, 403);
    assert_eq!(setup.merge("", &json!({})).status, 401);
}

#[test]
fn of_many_merges_and_pushes_at_once_none_is_lost() {
    let setup = Setup::new();
    let branches: Vec<_> = (0..4).map(|number| format!("b{number}")).collect();
    for branch in &branches {
        setup.work.git("a", &["checkout", "-q", "-b", branch, "x"]);
        std::fs::write(setup.work.path(&format!("a/{branch}.json")), "{}").unwrap();
        setup.work.commit("a");
        let url = setup.server.git_url(ADMIN, "git/team-a/m.git");
        setup
            .work
            .git("a", &["push", "-q", "--no-verify", &url, branch]);
    }
    std::thread::scope(|scope| {
        for branch in &branches {
            let setup = &setup;
            scope.spawn(move || {
                let merged = setup.merge(ADMIN, &json!({"from": branch}));
                assert_eq!(merged.status, 200, "{:?}", merged.json());
            });
        }
    });
    let url = setup.server.git_url(ADMIN, "git/team-a/m.git");
    setup.work.git("", &["clone", "-q", &url, "b"]);
    for branch in &branches {
        assert!(
            setup.work.path(&format!("b/{branch}.json")).exists(),
            "{branch}"
        );
    }
}
