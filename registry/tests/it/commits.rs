//! Commits that are made without git, and branches that are listed and deleted.

use std::collections::BTreeSet;

use hyprstream_contract::{
    registry::{EVENTS_PATH, MirrorState},
    repositories::{BRANCHES_PATH, COMMITS_PATH, PROTECTION_PATH, REFERENCE_MOVED},
};
use serde_json::{Value, json};

use crate::{
    client::{Answer, Workspace, ask, batch, call, noise, oid, upstream},
    cluster::Cluster,
    server::{ADMIN, NODE, Server, token},
};

const SIZE: usize = 5000;

/// Puts an object into `team-a/files` by the LFS protocol. What a commit says of it.
#[track_caller]
fn upload(server: &Server, who: &str, bytes: &[u8]) -> Value {
    let (oid, size) = (oid(bytes), bytes.len());
    let asked = batch(server, who, "git/team-a/files", "upload", &oid, size);
    assert_eq!(asked.status, 200, "{:?}", asked.json());
    let actions = &asked.json()["objects"][0]["actions"];
    if let Some(href) = actions["upload"]["href"].as_str() {
        assert_eq!(call("PUT", href, who, &[], Some(bytes)).status, 200);
        let verify = actions["verify"]["href"].as_str().unwrap();
        let body = json!({"oid": oid, "size": size}).to_string();
        assert_eq!(
            call("POST", verify, who, &[], Some(body.as_bytes())).status,
            200
        );
    }
    json!({"lfs": {"oid": oid, "size": size}})
}

fn commit(server: &Server, who: &str, branch: &str, changes: &Value, more: &Value) -> Answer {
    let mut body = json!({"repository": "team-a/files", "branch": branch, "message": "A file\n",
                          "changes": changes});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let url = server.url(COMMITS_PATH);
    call("POST", &url, who, &[], Some(body.to_string().as_bytes()))
}

fn text(path: &str, text: &str) -> Value {
    json!({"path": path, "content": {"text": text}})
}

#[track_caller]
fn made(answer: &Answer) -> String {
    assert_eq!(answer.status, 201, "{:?}", answer.json());
    answer.json()["commit"].as_str().unwrap().to_owned()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, why: &str) {
    let said = answer.json();
    assert_eq!(answer.status, status, "{said}");
    assert!(said["message"].as_str().unwrap().contains(why), "{said}");
}

fn branches(server: &Server, who: &str, query: &str) -> Answer {
    let url = server.url(&format!("{BRANCHES_PATH}/team-a/files{query}"));
    call("GET", &url, who, &[], None)
}

fn delete(server: &Server, who: &str, branch: &str) -> Answer {
    let url = server.url(&format!(
        "{BRANCHES_PATH}/team-a/files?branch={}",
        branch.replace('/', "%2F")
    ));
    call("DELETE", &url, who, &[], None)
}

#[track_caller]
fn names(answer: &Answer) -> (Vec<String>, bool) {
    let page = answer.json();
    let listed = page["branches"].as_array().unwrap().iter();
    let name = |branch: &Value| branch["name"].as_str().unwrap().to_owned();
    (
        listed.map(name).collect(),
        page["hasMore"].as_bool().unwrap(),
    )
}

fn is_there(server: &Server, bytes: &[u8]) -> bool {
    let (oid, size) = (oid(bytes), bytes.len());
    let answer = batch(server, ADMIN, "git/team-a/files", "download", &oid, size);
    answer.json()["objects"][0].get("error").is_none()
}

fn audit(server: &Server) -> Value {
    let lines = std::fs::read_to_string(server.root().join("audit/audit.jsonl")).unwrap();
    serde_json::from_str(lines.lines().last().unwrap()).unwrap()
}

#[test]
fn a_commit_makes_the_repository_and_stock_git_reads_all_of_it() {
    let (server, work) = (Server::start(), Workspace::new());
    let who = token("team-a", true);
    let weights = noise(SIZE, 1);
    let object = upload(&server, &who, &weights);
    let changes = json!([text("notes/read me.txt", "hello\n"),
                         {"path": "data/train set.jsonl", "content": object}]);
    let author = json!({"author": {"name": "Å. Author", "email": "a@example.org"}});
    let first = made(&commit(&server, &who, "main", &changes, &author));
    let url = server.git_url(&who, "git/team-a/files.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), first);
    assert_eq!(work.read("b/notes/read me.txt"), b"hello\n");
    assert_eq!(work.read("b/data/train set.jsonl"), weights);
    let log = work.git("b", &["log", "--format=%an <%ae>%n%cn%n%B"]);
    assert_eq!(log, "Å. Author <a@example.org>\nÅ. Author\nA file");
    // Git finds nothing to change, so that what it reads as LFS it would write as LFS.
    assert_eq!(work.git("b", &["status", "--porcelain"]), "");
    let listed = work.git("b", &["lfs", "ls-files", "--name-only"]);
    assert_eq!(listed, "data/train set.jsonl");
    work.git("b", &["fsck", "--strict", "--full"]);
    // The next one goes on top; other files stay, and a path that is under LFS gets no second line.
    let other = noise(SIZE, 2);
    let object = upload(&server, &who, &other);
    let changes = json!([{"path": "data/train set.jsonl", "content": object},
                         {"path": "notes/read me.txt", "content": "removed"}]);
    let second = made(&commit(
        &server,
        &who,
        "main",
        &changes,
        &json!({"expected": first}),
    ));
    work.git("b", &["pull", "-q", &url, "main"]);
    assert_eq!(
        work.git("b", &["rev-list", "HEAD"]),
        format!("{second}\n{first}")
    );
    assert_eq!(work.read("b/data/train set.jsonl"), other);
    assert!(!work.path("b/notes").exists());
    let attributes = work.read("b/.gitattributes");
    assert_eq!(attributes.split(|byte| *byte == b'\n').count(), 2);
    let author = work.git("b", &["log", "-1", "--format=%an"]);
    assert_eq!(author, "token of namespace team-a");
    let line = audit(&server);
    assert_eq!(
        (&line["action"], &line["ref"], &line["old"], &line["new"]),
        (
            &json!("commit"),
            &json!("refs/heads/main"),
            &json!(first),
            &json!(second)
        )
    );
    // What git pushes goes on from it.
    std::fs::write(work.path("b/more.txt"), "more").unwrap();
    let third = work.commit("b");
    work.git("b", &["push", "-q", &url, "HEAD:main"]);
    let page = branches(&server, &who, "").json();
    assert_eq!(page["branches"][0]["commit"], third);
}

#[test]
fn text_that_attributes_give_to_lfs_becomes_an_object() {
    let (server, work) = (Server::start(), Workspace::new());
    let changes = json!([
        text("a.bin", "weights"),
        text(
            ".gitattributes",
            "*.bin filter=lfs diff=lfs merge=lfs -text\n"
        )
    ]);
    made(&commit(&server, ADMIN, "main", &changes, &json!({})));
    let url = server.git_url(ADMIN, "git/team-a/files.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/a.bin"), b"weights");
    assert_eq!(work.git("b", &["lfs", "ls-files", "--name-only"]), "a.bin");
    let stored = work.git("b", &["cat-file", "-p", "HEAD:a.bin"]);
    assert!(stored.contains(&oid(b"weights")), "{stored}");
}

#[test]
fn only_objects_that_the_repository_has_can_be_named() {
    let server = Server::start();
    let (mine, others) = (noise(SIZE, 3), noise(SIZE, 4));
    // Another repository has them: that says nothing.
    let url = server.url("/git/team-b/m.git/info/lfs/objects/");
    let put = format!("{url}{}?size={SIZE}", oid(&others));
    assert_eq!(call("PUT", &put, ADMIN, &[], Some(&others)).status, 200);
    let lfs = |bytes: &[u8], size: usize| json!({"lfs": {"oid": oid(bytes), "size": size}});
    let missing = json!([{"path": "a", "content": lfs(&others, SIZE)}]);
    let answer = commit(&server, ADMIN, "main", &missing, &json!({}));
    refused(&answer, 422, &oid(&others));
    assert_eq!(answer.json()["reason"], "MissingLFSObject");
    assert!(!server.root().join("git/team-a/files.git").exists());
    let object = upload(&server, ADMIN, &mine);
    for (content, why) in [
        (lfs(&others, SIZE), "is not in git/team-a/files"),
        (lfs(&mine, SIZE + 1), "has 5000 bytes"),
        (json!({"lfs": {"oid": "abc", "size": 1}}), "64 hexadecimal"),
        // Nor by the text of a pointer.
        (
            json!({"text": format!("version https://git-lfs.github.com/spec/v1\n\
                                    oid sha256:{}\nsize {SIZE}\n", oid(&others))}),
            "is not in git/team-a/files",
        ),
    ] {
        let changes = json!([{"path": "a", "content": content}, {"path": "b", "content": object}]);
        let answer = commit(&server, ADMIN, "main", &changes, &json!({}));
        refused(&answer, 422, why);
    }
    assert_eq!(names(&branches(&server, ADMIN, "")), (vec![], false));
}

#[test]
fn what_cannot_be_committed_is_said() {
    let server = Server::start();
    let a = json!([text("d/a", "1")]);
    let first = made(&commit(&server, ADMIN, "main", &a, &json!({})));
    let nested = json!([text("d/.gitattributes", "* -filter\n")]);
    made(&commit(&server, ADMIN, "main", &nested, &json!({})));
    let object = upload(&server, ADMIN, &noise(SIZE, 5));
    for (changes, status, why) in [
        (json!([text("../x", "")]), 422, "'..'"),
        (json!([text(".git/config", "")]), 422, "form of .git"),
        (json!([text(".hyprstream/x", "")]), 422, "are ours"),
        (json!([text("d", "")]), 422, "there is a folder"),
        (json!([text("d/a/b", "")]), 422, "folders is a file"),
        (
            json!([{"path": "none", "content": "removed"}]),
            422,
            "no file to remove",
        ),
        (
            json!([{"path": "d/w", "content": object}]),
            422,
            "takes it out of LFS",
        ),
        (json!([text("a", ""), text("a", "")]), 400, "twice"),
        (json!([]), 400, "1 to 1000"),
        (json!([{"path": "a", "content": {"txt": ""}}]), 400, "JSON"),
    ] {
        let answer = commit(&server, ADMIN, "main", &changes, &json!({}));
        refused(&answer, status, why);
    }
    for (branch, status) in [("a..b", 400), ("", 400), ("main/x", 422), ("x.lock", 400)] {
        let answer = commit(&server, ADMIN, branch, &a, &json!({}));
        assert_eq!(answer.status, status, "{branch}: {:?}", answer.json());
    }
    let elsewhere = json!({"repository": format!("mirror/{}", "0".repeat(64))});
    refused(
        &commit(&server, ADMIN, "main", &a, &elsewhere),
        400,
        "read-only",
    );
    // More than what is on its way at once: the answer is heard all the same.
    let large = json!([text("a", &"t".repeat(40 << 20))]);
    assert_eq!(
        commit(&server, ADMIN, "main", &large, &json!({})).status,
        413
    );
    // A folder of branches cannot take the place of a branch, nor the other way round.
    made(&commit(&server, ADMIN, "x/y", &a, &json!({})));
    refused(&commit(&server, ADMIN, "x", &a, &json!({})), 422, "x/y");
    let page = branches(&server, ADMIN, "?branch=main").json();
    assert_ne!(page["branches"][0]["commit"], first);
}

#[test]
fn one_of_two_who_expect_the_same_is_told_that_the_branch_moved() {
    let server = Server::start();
    let a = json!([text("a", "1")]);
    let nothing = json!({"expected": null});
    let first = made(&commit(&server, ADMIN, "main", &a, &nothing));
    let again = commit(&server, ADMIN, "main", &a, &nothing);
    refused(&again, 409, "look at it again");
    assert_eq!(again.json()["reason"], REFERENCE_MOVED);
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|number| {
                let (server, first) = (&server, &first);
                scope.spawn(move || {
                    let changes = json!([text("a", &number.to_string())]);
                    let expected = json!({"expected": first});
                    commit(server, ADMIN, "main", &changes, &expected).status
                })
            })
            .collect();
        asking.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), 1);
    assert_eq!(answers.iter().filter(|status| **status == 409).count(), 5);
    // Without it all are made, one on top of the other.
    std::thread::scope(|scope| {
        for number in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let changes = json!([text(&format!("n{number}"), "")]);
                made(&commit(server, ADMIN, "main", &changes, &json!({})));
            });
        }
    });
    let work = Workspace::new();
    let url = server.git_url(ADMIN, "git/team-a/files.git");
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-list", "--count", "HEAD"]), "8");
    assert!((0..6).all(|number| work.path(&format!("b/n{number}")).exists()));
}

#[test]
fn a_commit_needs_what_a_push_of_the_branch_needs() {
    let cluster = Cluster::start();
    let server = Server::in_cluster(&cluster);
    let a = json!([text("a", "1")]);
    let right = |verb: &str| format!("{verb} repositories team-a files");
    let (get, push, create) = (right("get"), right("push"), right("create"));
    let pusher = cluster.user("alice").may(&[&get, &push]);
    let maker = cluster.user("bob").may(&[&get, &push, &create]);
    let train = "push repositories/train team-a files";
    let job = cluster.account("job-1").may(&[&get, train]);
    let reader = cluster.user("carol").may(&[&get]);
    let try_as = |who: &str, branch: &str| commit(&server, who, branch, &a, &json!({}));
    refused(&try_as(&pusher.token, "main"), 403, "right `create`");
    made(&try_as(&maker.token, "main"));
    made(&try_as(&pusher.token, "x"));
    made(&try_as(&job.token, "train/job-1"));
    refused(&try_as(&job.token, "train/job-2"), 403, "may not push");
    refused(&try_as(&job.token, "main"), 403, "may not push main");
    assert_eq!(audit(&server)["result"], "refused");
    for who in [
        &reader.token,
        NODE,
        &token("team-a", false),
        &token("team-b", true),
    ] {
        assert_eq!(try_as(who, "main").status, 403);
    }
    assert_eq!(try_as("", "main").status, 401);
    let rules = json!({"rules": [{"refs": "HEAD"}]}).to_string();
    let url = server.url(&format!("{PROTECTION_PATH}/team-a/files"));
    assert_eq!(
        call("PUT", &url, ADMIN, &[], Some(rules.as_bytes())).status,
        200
    );
    refused(&try_as(&pusher.token, "main"), 403, "protected");
    made(&try_as(ADMIN, "main"));
}

#[test]
fn models_that_follow_the_branch_hear_of_a_commit() {
    let server = Server::start();
    let events = |after: u64| {
        let url = server.url(&format!("{EVENTS_PATH}?after={after}"));
        call("GET", &url, ADMIN, &[], None).json()
    };
    let last = events(0)["last"].as_u64().unwrap();
    let changes = json!([text("config.json", "{}")]);
    let first = made(&commit(&server, ADMIN, "main", &changes, &json!({})));
    let heard = events(last);
    assert_eq!(heard["events"][0]["name"], "files", "{heard}");
    assert_eq!(heard["events"][0]["change"]["kind"], "commit", "{heard}");
    assert_eq!(
        heard["events"][0]["change"]["new"],
        first.as_str(),
        "{heard}"
    );
    let source = upstream("hyprstream://team-a/files", "team-a", None);
    let status = ask(&server.address, &source, &first, &[]);
    assert_eq!(status.state, MirrorState::Ready, "{status:?}");
}

#[test]
fn branches_are_told_in_pages() {
    let server = Server::start();
    assert_eq!(branches(&server, ADMIN, "").status, 404);
    for name in ["files/b", "files/a", "files/c", "jobs/1", "filesystem"] {
        let message = json!({"message": format!("{name}\n\nTrailer: ü\n")});
        made(&commit(
            &server,
            ADMIN,
            name,
            &json!([text("a", name)]),
            &message,
        ));
    }
    let page = |query: &str| names(&branches(&server, ADMIN, query));
    let list = |names: &[&str], more| (names.iter().map(|n| (*n).to_owned()).collect(), more);
    let all = ["files/a", "files/b", "files/c", "filesystem", "jobs/1"];
    assert_eq!(page(""), list(&all, false));
    assert_eq!(page("?prefix=files/"), list(&all[..3], false));
    assert_eq!(page("?prefix=files/&limit=2"), list(&all[..2], true));
    assert_eq!(
        page("?prefix=files/&limit=2&after=files/b"),
        list(&all[2..3], false)
    );
    assert_eq!(page("?after=files/bb&limit=1"), list(&all[2..3], true));
    assert_eq!(page("?branch=files/b"), list(&all[1..2], false));
    assert_eq!(page("?branch=files"), list(&[], false));
    // Git's own packing changes nothing.
    let bare = server.root().join("git/team-a/files.git");
    let work = Workspace::new();
    let safe = ["-c", "safe.directory=*", "pack-refs", "--all"];
    work.git(
        "",
        &[&["--git-dir", bare.to_str().unwrap()], &safe[..]].concat(),
    );
    assert_eq!(page(""), list(&all, false));
    let one = branches(&server, ADMIN, "?branch=files/b").json()["branches"][0].clone();
    assert_eq!(one["message"], "files/b\n\nTrailer: ü\n");
    assert!(one["committedAt"].as_i64().unwrap() > 1_700_000_000);
    for wrong in [
        "?limit=0",
        "?limit=1001",
        "?branch=a&limit=1",
        "?brnch=a",
        "?branch=a..b",
    ] {
        assert_eq!(branches(&server, ADMIN, wrong).status, 400, "{wrong}");
    }
    assert_eq!(branches(&server, &token("team-a", false), "").status, 200);
    assert_eq!(branches(&server, &token("team-b", false), "").status, 403);
}

#[test]
fn a_deleted_branch_takes_along_what_nothing_else_needs() {
    let (server, work) = (Server::start(), Workspace::new());
    let (own, shared) = (noise(SIZE, 6), noise(SIZE, 7));
    let [own_object, shared_object] = [&own, &shared].map(|bytes| upload(&server, ADMIN, bytes));
    let file = |path: &str, content: &Value| json!({"path": path, "content": content});
    let both = json!([file("a", &own_object), file("b", &shared_object)]);
    let first = made(&commit(&server, ADMIN, "files/1", &both, &json!({})));
    let one = json!([file("b", &shared_object)]);
    made(&commit(&server, ADMIN, "jobs/1", &one, &json!({})));
    assert_eq!(delete(&server, ADMIN, "files/1").status, 204);
    assert_eq!(
        (is_there(&server, &own), is_there(&server, &shared)),
        (false, true)
    );
    let line = audit(&server);
    assert_eq!(
        (
            &line["action"],
            &line["ref"],
            &line["old"],
            &line["objects"]
        ),
        (
            &json!("delete"),
            &json!("refs/heads/files/1"),
            &json!(first),
            &json!(1)
        )
    );
    refused(&delete(&server, ADMIN, "files/1"), 404, "no branch");
    let if_it_is = |commit: &str| delete(&server, ADMIN, &format!("files/1&commit={commit}"));
    refused(&if_it_is(&first), 404, "no branch");
    assert_eq!(names(&branches(&server, ADMIN, "")).0, ["jobs/1"]);
    // Whoever asks hears why, and the same can come again.
    let answer = batch(
        &server,
        ADMIN,
        "git/team-a/files",
        "download",
        &oid(&own),
        SIZE,
    );
    let said = answer.json()["objects"][0]["error"]["message"].to_string();
    assert!(said.contains("branch files/1 was deleted"), "{said}");
    upload(&server, ADMIN, &own);
    made(&commit(
        &server,
        ADMIN,
        "files/1",
        &both,
        &json!({"expected": null}),
    ));
    assert!(is_there(&server, &own));
    let url = server.git_url(ADMIN, "git/team-a/files.git");
    work.git("", &["clone", "-q", "-b", "files/1", &url, "b"]);
    assert_eq!(work.read("b/a"), own);
    // What a Model was given stays.
    let source = upstream("hyprstream://team-a/files", "team-a", None);
    let commit = work.git("b", &["rev-parse", "HEAD"]);
    assert_eq!(
        ask(&server.address, &source, &commit, &[]).state,
        MirrorState::Ready
    );
    assert_eq!(delete(&server, ADMIN, "files/1").status, 204);
    assert!(is_there(&server, &own));
    assert_eq!(
        ask(&server.address, &source, &commit, &[]).state,
        MirrorState::Ready
    );
}

#[test]
fn a_branch_that_moved_is_not_deleted_for_the_commit_that_it_named() {
    let server = Server::start();
    let weights = noise(SIZE, 8);
    let object = upload(&server, ADMIN, &weights);
    let changes = json!([{"path": "a", "content": object}]);
    let first = made(&commit(&server, ADMIN, "jobs/1", &changes, &json!({})));
    // The same files again, so that only the commit is another.
    let expected = json!({"expected": first});
    let second = made(&commit(&server, ADMIN, "jobs/1", &changes, &expected));
    let if_it_is = |commit: &str| delete(&server, ADMIN, &format!("jobs/1&commit={commit}"));
    let answer = if_it_is(&first);
    refused(&answer, 409, &first);
    assert_eq!(answer.json()["reason"], REFERENCE_MOVED);
    assert!(is_there(&server, &weights));
    assert_eq!(if_it_is("main").status, 400);
    let listed = branches(&server, ADMIN, &format!("?commit={second}"));
    refused(&listed, 400, "`commit` is for deleting");
    assert_eq!(if_it_is(&second).status, 204);
    assert!(!is_there(&server, &weights));
}

#[test]
fn a_branch_is_deleted_by_those_who_may_push_its_deletion() {
    let cluster = Cluster::start();
    let server = Server::in_cluster(&cluster);
    for branch in ["main", "x", "train/job-1"] {
        made(&commit(
            &server,
            ADMIN,
            branch,
            &json!([text("a", "1")]),
            &json!({}),
        ));
    }
    let right = |verb: &str| format!("{verb} repositories team-a files");
    let pusher = cluster.user("alice").may(&[&right("get"), &right("push")]);
    let forcer = cluster.user("bob").may(&[&right("get"), &right("force")]);
    let train = "push repositories/train team-a files";
    let job = cluster.account("job-1").may(&[&right("get"), train]);
    refused(&delete(&server, &pusher.token, "x"), 403, "right `force`");
    refused(
        &delete(&server, &job.token, "train/job-1"),
        403,
        "right `force`",
    );
    assert_eq!(delete(&server, NODE, "x").status, 403);
    assert_eq!(delete(&server, &forcer.token, "x").status, 204);
    refused(
        &delete(&server, &forcer.token, "main"),
        422,
        "default branch",
    );
    let none = server.url(&format!("{BRANCHES_PATH}/team-a/files"));
    assert_eq!(call("DELETE", &none, ADMIN, &[], None).status, 400);
    let left: BTreeSet<_> = names(&branches(&server, ADMIN, "")).0.into_iter().collect();
    assert_eq!(
        left,
        BTreeSet::from(["main".to_owned(), "train/job-1".to_owned()])
    );
}
