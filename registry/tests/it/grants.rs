//! What the words of volumes open, by stock git, git-lfs and calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_contract::{
    adapters::{ADAPTERS_PATH, AdapterList, CHANGES_PATH, Changes, ChangesRequest, ModelName},
    grants::{GRANTS_PATH, Grant, KeptGrants, Opens, Word},
};
use hyprstream_registry::Clock;
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    client::{Workspace, batch, call, noise, oid},
    server::{ADMIN, NODE, Server, token},
};

const REFS: &str = "info/refs?service=git-upload-pack";

/// A registry with the repositories `a/m` and `a/n` that reads the time here.
struct Bench {
    server: Server,
    work: Workspace,
    ahead: Arc<Mutex<Duration>>,
}

impl Bench {
    fn new() -> Self {
        let ahead: Arc<Mutex<Duration>> = Arc::default();
        let (begun, moved) = (Instant::now(), Arc::clone(&ahead));
        let server = Server::granting(Clock::new(move || begun + *moved.lock()));
        let work = Workspace::new();
        for (folder, seed) in [("m", 1), ("n", 2)] {
            work.model(folder, 1000, seed);
            let url = server.git_url(ADMIN, &format!("git/a/{folder}.git"));
            work.git(folder, &["push", "-q", &url, "main"]);
        }
        Self {
            server,
            work,
            ahead,
        }
    }

    fn put(&self, handle: &str, words: &[&Word], opens: Opens) -> u16 {
        let grant = Grant {
            words: words.iter().map(|word| word.hash()).collect(),
            opens,
        };
        let url = self.server.url(&format!("{GRANTS_PATH}/{handle}"));
        let body = serde_json::to_vec(&grant).unwrap();
        call("PUT", &url, ADMIN, &[], Some(&body)).status
    }

    fn delete(&self, handle: &str) {
        let url = self.server.url(&format!("{GRANTS_PATH}/{handle}"));
        assert_eq!(call("DELETE", &url, ADMIN, &[], None).status, 204);
    }

    /// Statuses of what git and LFS ask of a repository: refs, a pack, a batch, an object.
    fn asked(&self, who: &str, name: &str) -> [u16; 4] {
        let url = |rest: &str| self.server.url(&format!("/git/a/{name}.git/{rest}"));
        let oid = oid(&noise(1000, if name == "m" { 1 } else { 2 }));
        let headers = [("content-type", "application/x-git-upload-pack-request")];
        [
            call("GET", &url(REFS), who, &[], None).status,
            call(
                "POST",
                &url("git-upload-pack"),
                who,
                &headers,
                Some(b"0000"),
            )
            .status,
            batch(
                &self.server,
                who,
                &format!("git/a/{name}"),
                "download",
                &oid,
                1000,
            )
            .status,
            call(
                "GET",
                &url(&format!("info/lfs/objects/{oid}")),
                who,
                &[],
                None,
            )
            .status,
        ]
    }

    /// Makes the list of the adapters of `a/chat` name these repositories.
    fn list(&self, repositories: &[&str]) {
        let entry = |repository: &&str| {
            json!({
                "name": repository.replace('/', "-"), "scale": 1.0, "repository": repository,
                "commit": "0123456789abcdef0123456789abcdef01234567",
                "weights": "w", "config": "c", "source": "s",
            })
        };
        let list = json!({"adapters": repositories.iter().map(entry).collect::<Vec<_>>()});
        let url = self.server.url(&format!("{ADAPTERS_PATH}/a/chat"));
        let answer = call("PUT", &url, ADMIN, &[], Some(list.to_string().as_bytes()));
        assert_eq!(answer.status, 200);
    }

    fn changes(&self, who: &str, words: &[(&str, &Word)], models: &[&str]) -> Changes {
        let name = |model: &str| -> ModelName { model.parse().unwrap() };
        let words = words.iter();
        let request = ChangesRequest {
            known: models.iter().map(|m| (name(m), String::new())).collect(),
            words: words
                .map(|(m, w)| (name(m), w.expose().to_owned()))
                .collect(),
        };
        let body = serde_json::to_vec(&request).unwrap();
        let answer = call(
            "POST",
            &self.server.url(CHANGES_PATH),
            who,
            &[],
            Some(&body),
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }
}

fn word(byte: u8) -> Word {
    Word::from_bytes([byte; 32])
}

fn repository(name: &str) -> Opens {
    Opens::Repository(name.to_owned())
}

#[test]
fn a_word_opens_its_repository_and_nothing_else() {
    let bench = Bench::new();
    let (word, other) = (word(1), word(2));
    assert_eq!(bench.put("h", &[&word], repository("git/a/m")), 204);
    assert_eq!(bench.asked(word.expose(), "m"), [200; 4]);
    assert_eq!(bench.asked(word.expose(), "n"), [403; 4]);
    assert_eq!(bench.asked(other.expose(), "m"), [401; 4]);
    assert_eq!(
        bench.asked(NODE, "m"),
        [403; 4],
        "nor does the nodes' token"
    );

    // Stock git and git-lfs, and not to write.
    let url = bench.server.git_url(word.expose(), "git/a/m.git");
    bench.work.git("", &["clone", "-q", &url, "clone"]);
    assert_eq!(bench.work.read("clone/weights.bin"), noise(1000, 1));
    let push = bench.work.run("m", &["push", "-q", &url, "main:other"]);
    assert!(!push.status.success());
    let url = bench.server.git_url(word.expose(), "git/a/n.git");
    assert!(
        !bench
            .work
            .run("", &["clone", "-q", &url, "n2"])
            .status
            .success()
    );

    for (method, path) in [
        ("GET", "/api/v1/events?after=0"),
        ("GET", GRANTS_PATH),
        ("GET", ADAPTERS_PATH),
        ("DELETE", "/git/a/m.git"),
        ("DELETE", &format!("{GRANTS_PATH}/h")),
        ("GET", &format!("{ADAPTERS_PATH}/a/m")),
    ] {
        let answer = call(method, &bench.server.url(path), word.expose(), &[], None);
        assert_eq!(answer.status, 403, "{method} {path}");
    }
    let refs = bench.server.url(&format!("/git/a/n.git/{REFS}"));
    let told = call("GET", &refs, word.expose(), &[], None);
    let told = String::from_utf8_lossy(&told.body).into_owned();
    assert!(told.contains("opens git/a/m alone"), "{told}");

    bench.delete("h");
    assert_eq!(
        bench.asked(word.expose(), "m"),
        [401; 4],
        "from the next request on"
    );
    let audit = std::fs::read_to_string(bench.server.root().join("audit/audit.jsonl")).unwrap();
    assert!(!audit.contains(word.expose()));
    let line = |action: &str| {
        let lines = audit.lines().map(|l| serde_json::from_str(l).unwrap());
        let mut lines: Vec<serde_json::Value> = lines.collect();
        lines.retain(|line| line["action"] == action && line["volume"] == "h");
        lines
    };
    assert_eq!(line("grant")[0]["repository"], "git/a/m");
    assert_eq!(line("revoke").len(), 1);
    assert!(audit.contains("\"subject\":\"volume h\""), "{audit}");
}

#[test]
fn words_outlive_a_restart_and_a_bad_file_hides_no_other() {
    let mut bench = Bench::new();
    let (first, second) = (word(1), word(2));
    bench.put("h", &[&first], repository("git/a/m"));
    bench.put("i", &[&second], repository("git/a/n"));
    let file = bench.server.root().join("grants/i.json");
    std::fs::write(&file, "{\"words\": [").unwrap();
    std::fs::write(bench.server.root().join("tmp/half"), "{\"wor").unwrap();
    bench.server = bench.server.restart();
    assert_eq!(bench.asked(first.expose(), "m"), [200; 4]);
    assert_eq!(bench.asked(second.expose(), "n"), [401; 4]);
    let kept = || -> KeptGrants {
        let answer = call("GET", &bench.server.url(GRANTS_PATH), ADMIN, &[], None);
        serde_json::from_slice(&answer.body).unwrap()
    };
    let grants = kept().grants;
    assert!(
        grants["h"].is_some() && grants["i"].is_none(),
        "it is reported"
    );
    bench.put("i", &[&second], repository("git/a/n"));
    assert_eq!(bench.asked(second.expose(), "n"), [200; 4]);
    // Both words hold while they are changed, and a word that is nobody's any more does not.
    bench.put("h", &[&first, &word(3)], repository("git/a/m"));
    assert_eq!(bench.asked(first.expose(), "m")[0], 200);
    bench.put("h", &[&word(3)], repository("git/a/m"));
    assert_eq!(bench.asked(first.expose(), "m")[0], 401);
    assert_eq!(bench.asked(word(3).expose(), "m")[0], 200);
}

#[test]
fn a_models_word_opens_what_its_list_names_and_for_ten_minutes_what_it_named() {
    let bench = Bench::new();
    let (word, stranger) = (word(1), word(2));
    let chat: ModelName = "a/chat".parse().unwrap();
    bench.put("h", &[&word], Opens::Adapters(chat.clone()));
    bench.put("i", &[&stranger], repository("git/a/m"));
    assert_eq!(bench.asked(word.expose(), "m"), [403; 4]);
    bench.list(&["git/a/m", "git/a/n"]);
    assert_eq!(bench.asked(word.expose(), "m"), [200; 4]);
    assert_eq!(bench.asked(word.expose(), "n"), [200; 4]);

    // The list itself: with the word in place of a token, or beside the token of a node.
    let url = bench.server.url(&format!("{ADAPTERS_PATH}/a/chat"));
    let read = |who: &str| call("GET", &url, who, &[], None).status;
    assert_eq!(
        [read(word.expose()), read(stranger.expose()), read(NODE)],
        [200, 403, 403]
    );
    let both = ["a/chat", "a/other"];
    let said = bench.changes(NODE, &[("a/chat", &word)], &both);
    assert_eq!(said.lists[&chat].adapters.len(), 2);
    assert_eq!(said.refused, BTreeSet::from(["a/other".parse().unwrap()]));
    let said = bench.changes(NODE, &[("a/chat", &stranger), ("a/other", &word)], &both);
    assert!(said.lists.is_empty() && said.refused.len() == 2);
    let said = bench.changes(word.expose(), &[], &both);
    assert_eq!(said.lists.into_keys().collect::<Vec<_>>(), [chat]);
    let member = token("a", true);
    let url = bench.server.url(CHANGES_PATH);
    assert_eq!(
        call("POST", &url, &member, &[], Some(b"{\"known\": {}}")).status,
        403
    );

    // One repository leaves the list.
    bench.list(&["git/a/n"]);
    *bench.ahead.lock() = Duration::from_secs(9 * 60 + 59);
    assert_eq!(bench.asked(word.expose(), "m"), [200; 4]);
    *bench.ahead.lock() = Duration::from_mins(10);
    assert_eq!(bench.asked(word.expose(), "m"), [403; 4]);
    assert_eq!(bench.asked(word.expose(), "n"), [200; 4]);
    // It comes back, and goes with the whole list.
    bench.list(&["git/a/m"]);
    assert_eq!(bench.asked(word.expose(), "m"), [200; 4]);
    let url = bench.server.url(&format!("{ADAPTERS_PATH}/a/chat"));
    assert_eq!(call("DELETE", &url, ADMIN, &[], None).status, 204);
    assert_eq!(bench.asked(word.expose(), "m"), [200; 4]);
    *bench.ahead.lock() = Duration::from_mins(21);
    assert_eq!(bench.asked(word.expose(), "m"), [403; 4]);
    bench.delete("h");
    let said = bench.changes(NODE, &[("a/chat", &word)], &["a/chat"]);
    assert_eq!(said.refused.len(), 1);
}

#[test]
fn a_right_that_goes_while_a_node_waits_shows_nothing_any_more() {
    let bench = Bench::new();
    let word = word(1);
    bench.put("h", &[&word], Opens::Adapters("a/chat".parse().unwrap()));
    let empty = AdapterList::default().revision();
    let request = ChangesRequest {
        known: BTreeMap::from([("a/chat".parse().unwrap(), empty)]),
        words: BTreeMap::from([("a/chat".parse().unwrap(), word.expose().to_owned())]),
    };
    let body = serde_json::to_vec(&request).unwrap();
    let url = bench.server.url(CHANGES_PATH);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| call("POST", &url, NODE, &[], Some(&body)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        bench.delete("h");
        bench.list(&["git/a/m"]);
        let said: Changes = serde_json::from_slice(&waiting.join().unwrap().body).unwrap();
        assert!(said.lists.is_empty() && said.refused.len() == 1);
    });
}

#[test]
fn only_the_operator_writes_grants_and_only_sound_ones() {
    let bench = Bench::new();
    let hash = word(1).hash();
    let good = json!({"words": [hash.as_str()], "opens": {"repository": "git/a/m"}});
    let put = |who: &str, handle: &str, body: &str| {
        let url = bench.server.url(&format!("{GRANTS_PATH}/{handle}"));
        call("PUT", &url, who, &[], Some(body.as_bytes()))
    };
    let member = token("a", true);
    for (who, status) in [("", 401), (&*member, 403), (NODE, 403)] {
        assert_eq!(put(who, "h", &good.to_string()).status, status);
        let list = call("GET", &bench.server.url(GRANTS_PATH), who, &[], None);
        assert_eq!(list.status, status);
    }
    for (body, part) in [
        (
            json!({"words": [], "opens": {"repository": "git/a/m"}}),
            "it has 0 words",
        ),
        (
            json!({"words": [hash.as_str()], "opens": {"repository": "a/m"}}),
            "mirror/ID",
        ),
        (
            json!({"words": ["x"], "opens": {"repository": "git/a/m"}}),
            "line 1",
        ),
        (
            json!({"words": [hash.as_str()], "opens": {"all": true}}),
            "line 1",
        ),
    ] {
        let answer = put(ADMIN, "h", &body.to_string());
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 400 && text.contains(part), "{text}");
    }
    for handle in ["..%2Fh", "H", "%2e%2e", "-h", &"h".repeat(129)] {
        assert_eq!(
            put(ADMIN, handle, &good.to_string()).status,
            400,
            "{handle}"
        );
    }
    let long = format!("{good}{}", " ".repeat(16 << 10));
    assert_eq!(put(ADMIN, "h", &long).status, 413);
    assert_eq!(put(ADMIN, "h", &good.to_string()).status, 204);
    let taken = put(ADMIN, "i", &good.to_string());
    let text = String::from_utf8_lossy(&taken.body);
    assert!(
        taken.status == 409 && text.contains("make another word"),
        "{text}"
    );
}
