//! The lists of adapters that the operator keeps here and nodes follow.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyprstream_contract::adapters::{
    ADAPTERS_PATH, AdapterEntry, AdapterList, BaseCommitPolicy, CHANGES_PATH, Changes,
    ChangesRequest, ListedModels, ModelName, Stored,
};
use serde_json::json;

use crate::{
    client::call,
    server::{ADMIN, NODE, Server, token},
};

fn list(names: &[&str]) -> AdapterList {
    let entry = |name: &&str| AdapterEntry {
        name: (*name).to_owned(),
        scale: 1.0,
        repository: "git/a/m".to_owned(),
        commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
        weights: "adapters/01_sql.safetensors".to_owned(),
        config: "adapters/01_sql.config.json".to_owned(),
        source: "hyprstream://a/m".to_owned(),
        base_commit: BaseCommitPolicy::Warn,
    };
    AdapterList {
        adapters: names.iter().map(entry).collect(),
    }
}

fn name(model: &str) -> ModelName {
    model.parse().unwrap()
}

/// The Models that have lists.
#[track_caller]
fn listed(server: &Server) -> Vec<String> {
    let answer = call("GET", &server.url(ADAPTERS_PATH), ADMIN, &[], None);
    assert_eq!(answer.status, 200, "{answer:?}");
    let listed: ListedModels = serde_json::from_slice(&answer.body).unwrap();
    listed.models.iter().map(ToString::to_string).collect()
}

fn url(server: &Server, model: &str) -> String {
    server.url(&format!("{ADAPTERS_PATH}/{model}"))
}

#[track_caller]
fn put(server: &Server, model: &str, list: &AdapterList) -> String {
    let body = serde_json::to_vec(list).unwrap();
    let answer = call("PUT", &url(server, model), ADMIN, &[], Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    let stored: Stored = serde_json::from_slice(&answer.body).unwrap();
    stored.revision
}

#[track_caller]
fn get(server: &Server, model: &str) -> AdapterList {
    let answer = call("GET", &url(server, model), NODE, &[], None);
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap()
}

/// What differs from these revisions.
#[track_caller]
fn changes(server: &Server, known: &[(&str, &str)]) -> BTreeMap<ModelName, AdapterList> {
    let known = known.iter();
    let request = ChangesRequest {
        known: known.map(|(m, r)| (name(m), (*r).to_owned())).collect(),
        words: BTreeMap::new(),
    };
    let body = serde_json::to_vec(&request).unwrap();
    let answer = call("POST", &server.url(CHANGES_PATH), NODE, &[], Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    let changes: Changes = serde_json::from_slice(&answer.body).unwrap();
    changes.lists
}

#[test]
fn a_node_hears_of_a_change_when_it_happens_and_of_its_models_only() {
    let server = Server::start();
    // A Model without a list has no adapters, and that is an answer.
    let none = changes(&server, &[("a/m", "")]);
    assert_eq!(none[&name("a/m")], AdapterList::default());
    let empty = AdapterList::default().revision();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let start = Instant::now();
            (changes(&server, &[("a/m", &empty), ("b/n", &empty)]), start)
        });
        std::thread::sleep(Duration::from_millis(300));
        put(&server, "a/other", &list(&["x"]));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        let before = Instant::now();
        put(&server, "b/n", &list(&["sql"]));
        let (found, start) = waiting.join().unwrap();
        assert_eq!(found, BTreeMap::from([(name("b/n"), list(&["sql"]))]));
        assert!(start < before && before.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn a_list_outlives_a_restart_and_a_kill_in_the_middle_of_writing() {
    let server = Server::start();
    let revision = put(&server, "a/m", &list(&["sql", "tone"]));
    assert_eq!(put(&server, "a/m", &list(&["tone", "sql"])), revision);
    std::fs::write(server.root().join("tmp/half"), "{\"adap").unwrap();
    let server = server.restart();
    assert_eq!(get(&server, "a/m"), list(&["sql", "tone"]));
    assert_eq!(put(&server, "a/m", &list(&["sql"])).len(), 64);
    for _ in 0..2 {
        let answer = call("DELETE", &url(&server, "a/m"), ADMIN, &[], None);
        assert_eq!(answer.status, 204);
    }
    assert_eq!(get(&server, "a/m"), AdapterList::default());
    assert!(!server.root().join("adapters/a").exists());
}

#[test]
fn a_damaged_list_is_never_an_empty_one() {
    let server = Server::start();
    put(&server, "a/m", &list(&["sql"]));
    std::fs::write(server.root().join("adapters/a/m.json"), "{\"adap").unwrap();
    let server = server.restart();
    let answer = call("GET", &url(&server, "a/m"), NODE, &[], None);
    assert_eq!(answer.status, 500);
    // Others are served meanwhile, and nothing is said of this one.
    put(&server, "a/n", &list(&["x"]));
    let found = changes(&server, &[("a/m", "old"), ("a/n", "old")]);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [name("a/n")]);
    put(&server, "a/m", &list(&["sql"]));
    assert_eq!(get(&server, "a/m"), list(&["sql"]));
}

#[test]
fn all_models_with_lists_are_named_to_the_operator_alone() {
    let server = Server::start();
    assert!(listed(&server).is_empty());
    for model in ["b/m.v2", "a/m", "a/n"] {
        put(&server, model, &list(&["sql"]));
    }
    call("DELETE", &url(&server, "a/n"), ADMIN, &[], None);
    // One that cannot be read can still be removed by whoever knows of it.
    std::fs::write(server.root().join("adapters/a/m.json"), "{\"adap").unwrap();
    let server = server.restart();
    assert_eq!(listed(&server), ["a/m", "b/m.v2"]);
    let member = token("a", true);
    for (who, status) in [("", 401), (&*member, 403), (NODE, 403)] {
        let answer = call("GET", &server.url(ADAPTERS_PATH), who, &[], None);
        assert_eq!(answer.status, status, "{who}");
    }
}

#[test]
fn only_the_operator_writes_lists_and_only_sound_ones() {
    let server = Server::start();
    let body = serde_json::to_vec(&list(&["sql"])).unwrap();
    let member = token("a", true);
    for (who, status) in [("", 401), (&*member, 403), (NODE, 403)] {
        let answer = call("PUT", &url(&server, "a/m"), who, &[], Some(&body));
        assert_eq!(answer.status, status, "{who}");
        let answer = call("DELETE", &url(&server, "a/m"), who, &[], None);
        assert_eq!(answer.status, status, "{who}");
    }
    for who in ["", &*member] {
        let answer = call("GET", &url(&server, "a/m"), who, &[], None);
        assert!([401, 403].contains(&answer.status), "{who}");
        let answer = call("POST", &server.url(CHANGES_PATH), who, &[], Some(b"{}"));
        assert!([401, 403].contains(&answer.status), "{who}");
    }
    let mut escaping = json!(list(&["sql"]));
    escaping["adapters"][0]["weights"] = json!("../../lock");
    let mut unknown = json!(list(&["sql"]));
    unknown["adapters"][0]["rank"] = json!(8);
    for (body, part) in [
        (escaping.to_string(), "../../lock"),
        (unknown.to_string(), "line 1"),
        (json!(list(&["a", "a"])).to_string(), "two adapters"),
        ("{".to_owned(), "line 1"),
    ] {
        let answer = call(
            "PUT",
            &url(&server, "a/m"),
            ADMIN,
            &[],
            Some(body.as_bytes()),
        );
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 400 && text.contains(part), "{text}");
    }
    let unknown = br#"{"known": {"A/m": ""}}"#;
    let answer = call("POST", &server.url(CHANGES_PATH), NODE, &[], Some(unknown));
    let text = String::from_utf8_lossy(&answer.body);
    assert!(answer.status == 400 && text.contains("line 1"), "{text}");
    for model in ["a/..%2Fm", "A/m", "a/M", "a/.m", "a/-"] {
        let answer = call("PUT", &url(&server, model), ADMIN, &[], Some(&body));
        assert_eq!(answer.status, 400, "{model}");
    }
    assert_eq!(get(&server, "a/m"), AdapterList::default());
}
