//! What the registry is shown in confidence stands neither in its log, its answers and its metrics,
//! nor on its disk, nor on the command line of anything that it starts.

use std::{
    cell::RefCell,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_contract::{
    registry::{Credentials, MIRRORS_PATH, MirrorState, RESOLVE_PATH},
    repositories::{
        BRANCHES_PATH, COMMITS_PATH, FORKS_PATH, KEEPS_PATH, MERGES_PATH, PROTECTION_PATH,
    },
};
use serde_json::{Value, json};

use crate::{
    client::{Workspace, call, noise, oid},
    cluster::{Cluster, OWN, jwt},
    planted::{Found, Watch, files, told},
    program::Program,
    server::{ADMIN, NODE, Server, token},
};

/// All objects of all repositories, unpacked.
fn objects(root: &Path, found: &mut Found) {
    let mut all = Vec::new();
    files(root, &mut all);
    for (head, _) in all.iter().filter(|(name, _)| name.ends_with(".git/HEAD")) {
        let bare = head.strip_suffix("/HEAD").unwrap();
        let output = Command::new("git")
            .args(["-c", "safe.directory=*", "--git-dir", bare])
            .args(["cat-file", "--batch", "--batch-all-objects"])
            .output()
            .unwrap();
        assert!(output.status.success());
        found.push((bare.to_owned(), output.stdout));
    }
}

#[track_caller]
fn assert_hidden(secrets: &[String], found: &[(String, Vec<u8>)]) {
    assert_eq!(told(secrets, found), [""; 0]);
    // What is no secret is found in the same places, in a form too.
    let known = "refs/heads/train/job-1".to_owned();
    let mut found = found.to_vec();
    let form = STANDARD.encode(format!("any:{known}!"));
    found.push(("here".to_owned(), form.into_bytes()));
    let told = told(&[known], &found);
    let stands = |place: &str| told.iter().any(|told| told.ends_with(place));
    assert!(stands("audit.jsonl") && stands("here"), "{told:?}");
}

/// Everything that is done with a registry at `address`, by `who` and by others. What it answered.
fn use_it(address: &str, who: &str, others: &[&str], work: &Workspace) -> Found {
    let answers = RefCell::new(Vec::new());
    let call = |method: &str, url: &str, token: &str, headers: &[_], body: Option<&[u8]>| {
        let answer = call(method, url, token, headers, body);
        let text = [format!("{:?}", answer.headers).as_bytes(), &answer.body].concat();
        let place = format!("the answer to {method} {url}");
        answers.borrow_mut().push((place, text));
        answer
    };
    let url = |path: &str| format!("http://{address}{path}");
    let git = |token: &str, repository: &str| {
        format!("http://any:{token}@{address}/git/{repository}.git")
    };
    let post = |token: &str, path: &str, body: &Value| {
        let body = body.to_string();
        call("POST", &url(path), token, &[], Some(body.as_bytes())).status
    };
    let commit = work.model("a", 3000, 81);
    work.git("a", &["push", "-q", &git(who, "team-a/m"), "main"]);
    work.git("a", &["config", "lfs.tustransfers", "true"]);
    std::fs::write(work.path("a/more.bin"), noise(3000, 82)).unwrap();
    work.commit("a");
    let to = "main:refs/heads/train/job-1";
    work.git("a", &["push", "-q", &git(who, "team-a/m"), to]);
    work.git("", &["clone", "-q", &git(who, "team-a/m"), "b"]);
    let text = json!([{"path": "t", "content": {"text": "t"}}]);
    let commits = json!({"repository": "team-a/m", "branch": "x", "changes": text, "message": "m"});
    let merge = json!({"repository": "team-a/m", "into": "main", "from": "train/job-1",
                       "message": "m"});
    let keep = json!({"repository": "team-a/m", "branch": "train/job-1", "newest": 1});
    let fork = json!({"from": "team-a/m", "to": "team-a/n", "commit": commit});
    assert_eq!(post(who, COMMITS_PATH, &commits), 201);
    assert_eq!(post(who, MERGES_PATH, &merge), 200);
    assert_eq!(post(who, KEEPS_PATH, &keep), 200);
    assert_eq!(post(who, FORKS_PATH, &fork), 201);
    let branches = url(&format!("{BRANCHES_PATH}/team-a/m"));
    assert_eq!(call("GET", &branches, who, &[], None).status, 200);
    let gone = format!("{branches}?branch=x");
    assert_eq!(call("DELETE", &gone, who, &[], None).status, 204);
    for other in others {
        // Refused or not, none of it may be told.
        let _ = work.run("a", &["push", &git(other, "team-a/m"), "main:refs/heads/y"]);
        let _ = work.run("", &["ls-remote", &git(other, "team-a/m")]);
        for (path, body) in [
            (COMMITS_PATH, &commits),
            (MERGES_PATH, &merge),
            (KEEPS_PATH, &keep),
            (FORKS_PATH, &fork),
        ] {
            post(other, path, body);
        }
        let rules = json!({"rules": []}).to_string();
        let protection = url(&format!("{PROTECTION_PATH}/team-a/m"));
        call("PUT", &protection, other, &[], Some(rules.as_bytes()));
        call("DELETE", &gone, other, &[], None);
        let object = format!(
            "/git/team-a/m.git/info/lfs/objects/{}",
            oid(&noise(3000, 81))
        );
        call("GET", &url(&object), other, &[], None);
    }
    let bearer = format!("Bearer {who}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(call("GET", &branches, "", &headers, None).status, 200);
    // A body that is none of the call's.
    let wrong = json!({"token": who, "upstream": {"credentials": {"token": who}}});
    assert_eq!(post(who, COMMITS_PATH, &wrong), 400);
    assert_eq!(
        call("DELETE", &url("/git/team-a/n.git"), who, &[], None).status,
        204
    );
    answers.into_inner()
}

#[test]
fn no_token_and_no_credential_stands_in_the_log_or_on_the_disk() {
    let (dir, work, origin) = (
        tempfile::tempdir().unwrap(),
        Workspace::new(),
        Server::start(),
    );
    let signed = [
        token("team-a", true),
        token("team-a", false),
        token("team-b", true),
    ];
    let unknown = jwt("system:serviceaccount:team-a:planted", "hyprstream");
    let program = Program::start_talking(dir.path());
    let others = [
        NODE,
        &signed[0],
        &signed[1],
        &signed[2],
        &unknown,
        "planted-wrong-token",
    ];
    let watch = Watch::over(program.child.id());
    let mut found = use_it(&program.address.to_string(), ADMIN, &others, &work);
    // Upstreams: what they accept, and what they refuse, in each form.
    let commit = work.git("a", &["rev-parse", "HEAD"]);
    let url = origin.git_url(ADMIN, "git/team-o/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let upstream_token = token("team-o", false);
    let (key, passphrase) = ("planted-private-key-of-ssh", "planted-passphrase-of-ssh");
    let credentials = [
        Credentials::Token(upstream_token.clone()),
        Credentials::Token("planted-upstream-token".to_owned()),
        Credentials::Basic {
            username: "somebody".to_owned(),
            password: upstream_token.clone(),
        },
        Credentials::Basic {
            username: "somebody".to_owned(),
            password: "planted-upstream-password".to_owned(),
        },
        Credentials::SshKey {
            private_key: key.to_owned(),
            passphrase: Some(passphrase.to_owned()),
            known_hosts: "nowhere ssh-ed25519 AAAA".to_owned(),
        },
    ];
    let shown = [upstream_token.as_str(), key, passphrase].map(str::to_owned);
    for (number, credentials) in credentials.iter().enumerate() {
        let url = match credentials {
            Credentials::SshKey { .. } => "ssh://git@127.0.0.1:1/m.git".to_owned(),
            _ => origin.url("/git/team-o/m.git"),
        };
        let upstream = json!({"url": url, "namespace": "team-a", "credentials": credentials});
        let resolve = json!({"upstream": upstream, "reference": {"branch": "main"}});
        let mut mirror = resolve.clone();
        mirror["commit"] = json!(commit);
        mirror["include"] = json!([]);
        let is_accepted = number % 2 == 0 && number < 4;
        for (path, body) in [(RESOLVE_PATH, resolve), (MIRRORS_PATH, mirror)] {
            let body = body.to_string();
            let start = Instant::now();
            let state = loop {
                let url = program.url(path);
                let answer = call("POST", &url, ADMIN, &[], Some(body.as_bytes()));
                let state = answer.json()["state"].clone();
                assert_eq!(told(&shown, &[(path.to_owned(), answer.body)]), [""; 0]);
                if state != json!(MirrorState::Fetching) {
                    break state;
                }
                assert!(start.elapsed() < Duration::from_mins(1));
                std::thread::sleep(Duration::from_millis(20));
            };
            let is_ready = state == json!(MirrorState::Ready);
            assert_eq!(
                is_ready,
                is_accepted && path == MIRRORS_PATH,
                "{number} {path}"
            );
        }
    }
    let mut secrets: Vec<String> = [ADMIN, NODE, "planted-wrong-token", key, passphrase]
        .iter()
        .chain(&["planted-upstream-token", "planted-upstream-password"])
        .map(|secret| (*secret).to_owned())
        .collect();
    secrets.extend(signed);
    secrets.extend([unknown, upstream_token]);
    found.push(("the log".to_owned(), program.log().into_bytes()));
    let lines = watch.end();
    // It starts git, and was seen to.
    let starts = |word: &str| lines.iter().any(|line| line.contains(word));
    assert!(
        starts("hyprstream-registry serve") && starts("git "),
        "{lines:?}"
    );
    let lines: Vec<String> = lines.into_iter().collect();
    found.push(("command lines".to_owned(), lines.join("\n").into_bytes()));
    assert!(program.log().contains("\"audit\""), "{}", program.log());
    let root = dir.path().join("root");
    files(&root, &mut found);
    objects(&root, &mut found);
    assert_hidden(&secrets, &found);
}

#[test]
fn no_token_of_the_cluster_stands_in_the_log_or_on_the_disk() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let secure = cluster.over_tls(dir.path());
    let program = Program::start_talking_in_cluster(dir.path(), &secure);
    let (root, work) = (dir.path().join("root"), Workspace::new());
    let rights = ["get", "push", "force", "admin", "create", "delete"]
        .map(|verb| format!("{verb} repositories team-a *"));
    let rights: Vec<_> = rights.iter().map(String::as_str).collect();
    let owner = cluster.account("owner-of-all-this").may(&rights);
    let train = "push repositories/train team-a m";
    let job = cluster
        .account("job-1")
        .may(&["get repositories team-a m", train]);
    let reader = cluster
        .user("somebody-who-reads")
        .may(&["get repositories team-a m"]);
    let unknown = jwt("nobody-that-is-known", "hyprstream");
    let others = [&*job.token, &*reader.token, &*unknown];
    let watch = Watch::over(program.child.id());
    let mut found = use_it(&program.address.to_string(), &owner.token, &others, &work);
    let lines: Vec<String> = watch.end().into_iter().collect();
    found.push(("command lines".to_owned(), lines.join("\n").into_bytes()));
    found.push(("the log".to_owned(), program.log().into_bytes()));
    files(&root, &mut found);
    objects(&root, &mut found);
    let mut secrets = [&owner.token, &job.token, &reader.token, &unknown]
        .map(Clone::clone)
        .to_vec();
    // By which the registry itself asks.
    secrets.push(OWN.to_owned());
    assert_hidden(&secrets, &found);
    let audit = std::fs::read_to_string(root.join("audit/audit.jsonl")).unwrap();
    for said in [audit, program.log()] {
        assert!(said.contains("system:serviceaccount:team-a:owner-of-all-this"));
    }
}
