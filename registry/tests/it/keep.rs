//! Large files of old checkpoints.

use hyprstream_contract::{
    registry::MirrorState,
    repositories::{KEEPS_PATH, PROTECTION_PATH},
};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Workspace, ask, batch, call, noise, oid, upstream},
    cluster::{Cluster, Holder},
    server::{ADMIN, Server, token},
};

const READ: &str = "get repositories team-a m";
const TRAIN: &str = "push repositories/train team-a m";
const SIZE: usize = 5000;

/// A registry with `team-a/m`, whose branch `main` has a file of seed 1, and a job that has pushed
/// checkpoints of the seeds 2 to 6, one a commit, to `train/job-1`.
struct Setup {
    cluster: Cluster,
    server: Server,
    work: Workspace,
    commits: Vec<String>,
}

impl Setup {
    fn new() -> Self {
        let cluster = Cluster::start();
        let server = Server::in_cluster(&cluster);
        let work = Workspace::new();
        let mut commits = vec![work.model("a", SIZE, 1)];
        let url = server.git_url(ADMIN, "git/team-a/m.git");
        work.git("a", &["push", "-q", &url, "main"]);
        for seed in 2..7 {
            std::fs::write(work.path("a/checkpoint.bin"), noise(SIZE, seed)).unwrap();
            commits.push(work.commit("a"));
        }
        work.git("a", &["push", "-q", &url, "main:refs/heads/train/job-1"]);
        Self {
            cluster,
            server,
            work,
            commits,
        }
    }

    fn job(&self) -> Holder<'_> {
        self.cluster.account("job-1").may(&[READ, TRAIN])
    }

    fn keep(&self, who: &str, branch: &str, newest: u32) -> Answer {
        let body = json!({"repository": "team-a/m", "branch": branch, "newest": newest});
        let url = self.server.url(KEEPS_PATH);
        call("POST", &url, who, &[], Some(body.to_string().as_bytes()))
    }

    /// Pushes refs, and no large files: to a bare URL git-lfs would send all of history again.
    fn push(&self, arguments: &[&str]) {
        let url = self.server.git_url(ADMIN, "git/team-a/m.git");
        self.work.git(
            "a",
            &[&["push", "-q", "--no-verify", &url], arguments].concat(),
        );
    }

    /// Which of the seeds 1 to 6 can be downloaded.
    fn there(&self) -> Vec<u8> {
        let is_there = |seed: &u8| {
            let object = self.object(*seed);
            object.get("error").is_none()
        };
        (1..7).filter(is_there).collect()
    }

    fn object(&self, seed: u8) -> Value {
        let oid = oid(&noise(SIZE, seed));
        let answer = batch(&self.server, ADMIN, "git/team-a/m", "download", &oid, SIZE);
        answer.json()["objects"][0].clone()
    }
}

#[test]
fn a_job_lets_its_older_checkpoints_go_and_history_stays() {
    let setup = Setup::new();
    let job = setup.job();
    let all = setup.keep(&job.token, "train/job-1", 5);
    assert_eq!((all.status, all.json()["objects"].as_u64()), (200, Some(0)));
    assert_eq!(setup.there(), [1, 2, 3, 4, 5, 6]);
    let kept = setup.keep(&job.token, "train/job-1", 2);
    assert_eq!(kept.status, 200, "{:?}", kept.json());
    let expected = json!({"olderCommits": 3, "objects": 3, "bytes": 3 * SIZE});
    assert_eq!(kept.json(), expected);
    assert_eq!(setup.there(), [1, 5, 6]);
    // Again it is a question without an effect.
    let again = setup.keep(&job.token, "train/job-1", 2).json();
    assert_eq!(again["objects"], 0);
    let url = setup.server.git_url(ADMIN, "git/team-a/m.git");
    let arguments = ["clone", "-q", "-b", "train/job-1", &url, "b"];
    let mut clone = setup.work.command("", &arguments);
    assert!(
        clone
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(setup.work.git("b", &["rev-list", "--count", "HEAD"]), "6");
    let lines = std::fs::read_to_string(setup.server.root().join("audit/audit.jsonl")).unwrap();
    let line: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["action"], &line["objects"]),
        (&json!("keep"), &json!(3))
    );
    assert_eq!(line["ref"], "refs/heads/train/job-1");
}

#[test]
fn whoever_asks_for_what_was_let_go_hears_that_it_was() {
    let setup = Setup::new();
    setup.keep(&setup.job().token, "train/job-1", 1);
    let why = "branch train/job-1 keeps the large files of its 1 newest commits";
    let error = setup.object(3)["error"].clone();
    assert_eq!(error["code"], 410);
    assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    let gone = oid(&noise(SIZE, 3));
    let url = format!("/git/team-a/m.git/info/lfs/objects/{gone}");
    let answer = call("GET", &setup.server.url(&url), ADMIN, &[], None);
    assert_eq!(answer.status, 410);
    // So does a Model that wants an old commit; one that wants the newest has it.
    let source = upstream("hyprstream://team-a/m", "team-a", None);
    let old = ask(&setup.server.address, &source, &setup.commits[2], &[]);
    assert_eq!(old.state, MirrorState::Failed);
    assert!(old.error.unwrap().message.contains(why));
    let new = ask(&setup.server.address, &source, &setup.commits[5], &[]);
    assert_eq!(new.state, MirrorState::Ready, "{new:?}");
    // A fork says the same of it.
    let body = json!({"from": "team-a/m", "to": "team-a/n"}).to_string();
    let forks = setup.server.url("/api/v1/forks");
    assert_eq!(
        call("POST", &forks, ADMIN, &[], Some(body.as_bytes())).status,
        201
    );
    let answer = batch(
        &setup.server,
        ADMIN,
        "git/team-a/n",
        "download",
        &gone,
        SIZE,
    );
    assert_eq!(answer.json()["objects"][0]["error"]["code"], 410);
    // Pushed again it is there again.
    let remote = setup.server.git_url(ADMIN, "git/team-a/m.git");
    setup
        .work
        .git("a", &["lfs", "push", "--object-id", &remote, &gone]);
    assert_eq!(setup.there(), [1, 3, 6]);
}

#[test]
fn a_jobs_own_tags_keep_their_own_checkpoint_and_none_before_it() {
    let setup = Setup::new();
    for (commit, tag) in [(3, "job-1/step-3"), (5, "job-1/step-5")] {
        setup.push(&[&format!("{}:refs/tags/{tag}", setup.commits[commit])]);
    }
    let kept = setup.keep(&setup.job().token, "train/job-1", 1).json();
    assert_eq!(kept["objects"], 3, "{kept}");
    assert_eq!(setup.there(), [1, 4, 6]);
}

#[test]
fn what_others_need_stays() {
    let setup = Setup::new();
    let source = upstream("hyprstream://team-a/m", "team-a", None);
    // One that a Model was given, one that a tag names, and one that a branch began with.
    let given = ask(&setup.server.address, &source, &setup.commits[2], &[]);
    assert_eq!(given.state, MirrorState::Ready, "{given:?}");
    setup.push(&[&format!("{}:refs/tags/best", setup.commits[1])]);
    let kept = setup.keep(&setup.job().token, "train/job-1", 1).json();
    assert_eq!(kept["objects"], 2, "{kept}");
    assert_eq!(setup.there(), [1, 2, 3, 6]);
    setup.push(&[&format!("{}:refs/heads/other", setup.commits[5])]);
    assert_eq!(
        setup.keep(ADMIN, "train/job-1", 1).json()["olderCommits"],
        0
    );
    assert_eq!(setup.there(), [1, 2, 3, 6]);
}

#[test]
fn what_a_client_was_told_not_to_send_stays_for_its_push() {
    let setup = Setup::new();
    let present = oid(&noise(SIZE, 3));
    let answer = batch(
        &setup.server,
        ADMIN,
        "git/team-a/m",
        "upload",
        &present,
        SIZE,
    );
    assert!(answer.json()["objects"][0].get("actions").is_none());
    setup.keep(&setup.job().token, "train/job-1", 1);
    assert_eq!(setup.there(), [1, 3, 6]);
}

#[test]
fn letting_go_needs_the_right_to_rewrite_or_a_branch_of_ones_own() {
    let setup = Setup::new();
    let status = |who: &str, branch: &str| setup.keep(who, branch, 1).status;
    let other = setup.cluster.account("job-2").may(&[READ, TRAIN]);
    assert_eq!(status(&other.token, "train/job-1"), 403);
    assert_eq!(status(&setup.job().token, "main"), 403);
    let pusher = setup
        .cluster
        .user("alice")
        .may(&[READ, "push repositories team-a m"]);
    assert_eq!(status(&pusher.token, "train/job-1"), 403);
    assert_eq!(status(&token("team-b", true), "train/job-1"), 403);
    assert_eq!(setup.there(), [1, 2, 3, 4, 5, 6]);
    let rewriter = setup
        .cluster
        .user("bob")
        .may(&[READ, "force repositories team-a m"]);
    assert_eq!(status(&rewriter.token, "none"), 404);
    // What is protected is not let go by the job either.
    let rules = json!({"rules": [{"refs": "refs/heads/train/*", "push": "push"}]}).to_string();
    let url = setup.server.url(&format!("{PROTECTION_PATH}/team-a/m"));
    assert_eq!(
        call("PUT", &url, ADMIN, &[], Some(rules.as_bytes())).status,
        200
    );
    assert_eq!(status(&setup.job().token, "train/job-1"), 403);
    assert_eq!(status(&rewriter.token, "train/job-1"), 403);
    assert_eq!(status(ADMIN, "train/job-1"), 200);
    assert_eq!(setup.there(), [1, 6]);
    for body in [
        json!({"repository": "team-a/m", "branch": "main", "newest": 0}),
        json!({"repository": format!("mirror/{}", "0".repeat(64)), "branch": "main", "newest": 1}),
    ] {
        let url = setup.server.url(KEEPS_PATH);
        let answer = call("POST", &url, ADMIN, &[], Some(body.to_string().as_bytes()));
        assert_eq!(answer.status, 400, "{body}");
    }
}
