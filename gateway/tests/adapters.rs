//! Requests that name adapters: by which names they are routed, and what becomes of them while
//! workers lack an adapter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    response::IntoResponse,
};
use common::*;
use futures::stream;
use hyprstream_gateway::{
    Config,
    table::{AdapterFacts, Hope, Table},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

/// A worker that answers with the body that it got.
async fn echoing() -> Worker {
    Worker::start(|request| async move {
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
        body.into_response()
    })
    .await
}

fn with(table: Table, adapters: &[AdapterFacts]) -> Table {
    table.with_adapters(adapters.iter().cloned().map(Arc::new))
}

/// The Model `a/m` with these workers and an adapter `sql`.
fn sql_on(workers: &[&Worker]) -> Table {
    let endpoints = workers.iter().map(|worker| &worker.endpoint).collect();
    let table = table(vec![(facts("a", "m"), endpoints)]);
    with(table, &[adapter("a", "m", "sql")])
}

fn asking(model: &str) -> String {
    json!({ "model": model }).to_string()
}

#[tokio::test]
async fn an_adapter_is_reached_by_every_name_and_the_body_stays_what_it_is() {
    let (m, n) = (echoing().await, Worker::saying("n").await);
    let models = vec![
        (facts("a", "m"), vec![&m.endpoint]),
        (facts("b", "n"), vec![&n.endpoint]),
    ];
    let adapters = [
        adapter("a", "m", "sql"),
        adapter("a", "m", "SQL_v2.1"),
        adapter("a", "m", "n"),
    ];
    let gateway = Running::start(Config::default(), with(table(models), &adapters)).await;
    for body in [
        r#"{ "model": "sql" }"#,
        r#"{"model":"SQL_v2.1","messages":[]}"#,
        r#"{"model":"m+sql"}"#,
        r#"{"model":"a/m:main+sql@0.5+SQL_v2.1@-1"}"#,
        r#"{"model":"m+of-the-repository"}"#,
        r#"{"model":"m","adapters":[{"name":"sql","scale":0.5}]}"#,
        r#"{"model":"m","adapters":"nonsense"}"#,
    ] {
        let answer = gateway.post(CHAT, body).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
    }
    // Workers know no namespace of a served name: this one is said in full.
    let body = r#"{"n":1, "model" : "a\/sql" ,"x":"a/sql"}"#;
    let answer = gateway.post(CHAT, body).await;
    assert_eq!(answer.body, r#"{"n":1, "model" : "a/m+sql" ,"x":"a/sql"}"#);
    assert_eq!(
        gateway.post(CHAT, asking("a/n")).await.json()["model"],
        "a/m+n"
    );
    let answer = gateway.post(CHAT, asking("n")).await;
    assert_eq!(answer.body, "n", "a Model's name is never an adapter's");
    for unknown in [
        "tone",
        "Tone",
        "b/sql",
        "sql+tone",
        "sql:main",
        "b/SQL_v2.1",
    ] {
        let (status, code, message) = gateway.post(CHAT, asking(unknown)).await.error();
        assert_eq!(
            (status, code.as_str()),
            (404, "model_not_found"),
            "{message}"
        );
    }
    assert_eq!(m.seen(), 9);
    let series = prometheus::TextEncoder::new()
        .encode_to_string(&gateway.registry.gather())
        .unwrap();
    assert!(
        series.contains(r#"requests_total{code="200",model="a/m"} 9"#),
        "{series}"
    );
    assert!(!series.contains("sql"), "no series is of an adapter");
}

#[tokio::test]
async fn a_name_of_several_adapters_is_answered_by_how_to_say_which() {
    let models = vec![
        (facts("a", "m"), vec![]),
        (facts("a", "n"), vec![]),
        (facts("b", "o"), vec![]),
    ];
    let mut adapters = vec![
        adapter("a", "m", "sql"),
        adapter("a", "n", "sql"),
        adapter("b", "o", "sql"),
        adapter("a", "m", "tone"),
        adapter("b", "o", "tone"),
    ];
    let gateway = Running::start(Config::default(), with(table(models.clone()), &adapters)).await;
    for (model, says) in [
        ("sql", "as MODEL+sql or NAMESPACE/MODEL+sql"),
        ("tone", "as MODEL+tone or NAMESPACE/MODEL+tone"),
        ("a/sql", "as a/m+sql or a/n+sql"),
    ] {
        let (status, code, message) = gateway.post(CHAT, asking(model)).await.error();
        assert_eq!((status, code.as_str()), (400, "model_ambiguous"));
        assert!(message.ends_with(says), "{message}");
    }
    // One that was refused takes the name from no other.
    adapters[4].hope = Hope::None;
    gateway.set(with(table(models), &adapters));
    assert_eq!(gateway.get("/v1/models/tone").await.json()["parent"], "m");
    assert_eq!(gateway.get("/v1/models/b/tone").await.error().0, 404);
}

#[tokio::test]
async fn of_two_adapters_of_one_name_the_older_has_it() {
    let models = table(vec![(facts("a", "m"), vec![])]);
    let named = |name: &str, created: i64, commit: &str| AdapterFacts {
        name: name.into(),
        created,
        commit: Some(commit.parse().unwrap()),
        ..adapter("a", "m", "sql")
    };
    let (old, new) = ("0".repeat(40), "1".repeat(40));
    let adapters = [
        named("a", 3, &new),
        named("c", 2, &new),
        named("b", 2, &old),
        named("d", 2, &new),
    ];
    let gateway = Running::start(Config::default(), with(models, &adapters)).await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    assert_eq!(list["data"][1]["hyprstream"]["commit"], old);
}

#[tokio::test]
async fn a_worker_that_lacks_an_adapter_is_passed_over_and_not_asked_again_for_it() {
    let (lacking, having) = (watch::channel(false), watch::channel(true));
    let one = Worker::with_adapter("one", "sql", lacking.1).await;
    let two = Worker::with_adapter("two", "sql", having.1).await;
    let gateway = Running::start(Config::default(), sql_on(&[&one, &two])).await;
    // Whoever answers first, each form of asking comes to the one that has it.
    while one.seen() == 0 {
        assert_eq!(gateway.post(CHAT, asking("sql")).await.body, "two sql");
    }
    let began = Instant::now();
    let field = r#"{"model":"m","adapters":[{"name":"sql"}]}"#;
    for body in [asking("sql"), asking("m+sql"), field.to_owned()]
        .iter()
        .cycle()
        .take(99)
    {
        assert!(
            gateway
                .post(CHAT, body.clone())
                .await
                .body
                .starts_with("two ")
        );
    }
    let pauses = began.elapsed().as_millis() / 50;
    assert!(
        one.seen() as u128 <= 2 + pauses,
        "{} in {pauses} pauses",
        one.seen()
    );
    let retries = gateway.metric("retries_total");
    assert_eq!(retries, one.seen() as u64);
    lacking.0.send(true).unwrap();
    eventually_asked(&gateway, &one, &asking("m"), "one m").await;
    let standing = one.endpoint.standing(Instant::now());
    assert_eq!(format!("{standing:?}"), "Fit", "it is no failure");
    // What its resource says has changed: it may have it now.
    let mut loaded = adapter("a", "m", "sql");
    loaded.loaded = 2;
    let models = vec![(facts("a", "m"), vec![&one.endpoint, &two.endpoint])];
    gateway.set(with(table(models), &[loaded]));
    eventually_asked(&gateway, &one, &asking("sql"), "one sql").await;
    assert_eq!(gateway.metric("retries_total"), retries);
}

/// Asks until that worker has answered so.
async fn eventually_asked(gateway: &Running, worker: &Worker, body: &str, expected: &str) {
    let before = worker.seen();
    for _ in 0..1000 {
        let answer = gateway.post(CHAT, body.to_owned()).await;
        if answer.body == expected {
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    panic!("{} of 1000 requests", worker.seen() - before);
}

#[tokio::test]
async fn requests_wait_until_a_worker_has_the_adapter() {
    let (has, told) = watch::channel(false);
    let worker = Worker::with_adapter("w", "sql", told).await;
    let gateway = Arc::new(Running::start(Config::default(), sql_on(&[&worker])).await);
    let mut requests = JoinSet::new();
    for model in ["sql", "m+sql", "a/sql", "a/m:main+sql@0.5"] {
        for _ in 0..10 {
            let gateway = Arc::clone(&gateway);
            requests.spawn(async move { gateway.post(CHAT, asking(model)).await });
        }
    }
    eventually("they wait", || gateway.metric("held") == 40).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let seen = worker.seen();
    assert!(seen < 60, "one tries for all: {seen}");
    has.send(true).unwrap();
    while let Some(answer) = requests.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.starts_with("w "), "{answer:?}");
    }
    assert_eq!(gateway.metric("held"), 0);
}

#[tokio::test]
async fn a_changed_status_ends_the_wait_at_once() {
    let (has, told) = watch::channel(false);
    let worker = Worker::with_adapter("w", "sql", told).await;
    let gateway = Arc::new(Running::start(Config::default(), sql_on(&[&worker])).await);
    let ask = || {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.post(CHAT, asking("sql")).await })
    };
    let changed = |change: fn(&mut AdapterFacts)| {
        let mut facts_of = adapter("a", "m", "sql");
        change(&mut facts_of);
        let models = vec![(facts("a", "m"), vec![&worker.endpoint])];
        gateway.set(with(table(models), &[facts_of]));
    };
    let request = ask();
    eventually("it waits", || gateway.metric("held") == 1).await;
    has.send(true).unwrap();
    changed(|facts| facts.loaded = 1);
    assert_eq!(request.await.unwrap().body, "w sql");

    has.send(false).unwrap();
    let request = ask();
    eventually("it waits", || gateway.metric("held") == 1).await;
    changed(|facts| facts.hope = Hope::None);
    let answer = request.await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (404, "w lacks sql"));

    changed(|_| {});
    let request = ask();
    eventually("it waits", || gateway.metric("held") == 1).await;
    gateway.set(table(vec![(facts("a", "m"), vec![&worker.endpoint])]));
    assert_eq!(request.await.unwrap().error().1, "model_not_found");
}

#[tokio::test]
async fn the_wait_for_an_adapter_ends_with_its_own_reason() {
    let worker = Worker::with_adapter("w", "sql", watch::channel(false).1).await;
    let config = Config {
        hold_timeout: Duration::from_secs(1),
        doubtful_hold_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let gateway = Running::start(config, sql_on(&[&worker])).await;
    let wait = async |least: u64, most: u64| {
        let began = Instant::now();
        let answer = gateway.post(CHAT, asking("m+sql")).await;
        let waited = began.elapsed();
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (503, "adapter_not_ready"));
        assert!(
            message.contains(r#""sql" of the model "m""#)
                && message.contains("Fetching: the registry fetches it"),
            "{message}"
        );
        assert!(answer.head.contains("retry-after: 10"));
        let expected = Duration::from_millis(least)..Duration::from_millis(most);
        assert!(expected.contains(&waited), "{waited:?}");
    };
    wait(1000, 10_000).await;
    let mut stalled = adapter("a", "m", "sql");
    stalled.hope = Hope::Faint;
    let models = vec![(facts("a", "m"), vec![&worker.endpoint])];
    gateway.set(with(table(models), &[stalled]));
    wait(100, 1000).await;
}

#[tokio::test]
async fn what_no_resource_promises_is_the_first_workers_word() {
    let refused = AdapterFacts {
        hope: Hope::None,
        ..adapter("a", "m", "refused")
    };
    let missing = "sql, tone,refused";
    let one = Worker::with_adapter("w", missing, watch::channel(false).1).await;
    let two = Worker::with_adapter("w", missing, watch::channel(false).1).await;
    let models = vec![(facts("a", "m"), vec![&one.endpoint, &two.endpoint])];
    // Each knows one that is missing, and not every one.
    for adapters in [
        vec![],
        vec![adapter("a", "m", "sql"), adapter("a", "m", "tone")],
        vec![adapter("a", "m", "sql"), adapter("a", "m", "tone"), refused],
    ] {
        let gateway =
            Running::start(Config::default(), with(table(models.clone()), &adapters)).await;
        let before = one.seen() + two.seen();
        let answer = gateway.post(CHAT, asking("m+sql+tone+refused")).await;
        let expected = format!("w lacks {missing}");
        assert_eq!((answer.status, answer.body), (404, expected));
        assert!(
            answer
                .head
                .contains(&format!("x-hyprstream-missing-adapters: {missing}"))
        );
        assert_eq!(one.seen() + two.seen(), before + 1);
        assert_eq!(gateway.metric("retries_total"), 0);
    }
}

#[tokio::test]
async fn an_adapter_that_was_refused_is_answered_at_once_and_not_listed() {
    let worker = Worker::with_adapter("w", "sql", watch::channel(false).1).await;
    let mut refused = adapter("a", "m", "sql");
    refused.hope = Hope::None;
    let models = vec![(facts("a", "m"), vec![&worker.endpoint])];
    let gateway = Running::start(Config::default(), with(table(models), &[refused])).await;
    for model in ["sql", "m+sql", "a/sql"] {
        let answer = gateway.post(CHAT, asking(model)).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, "w lacks sql"));
    }
    assert_eq!(worker.seen(), 3);
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    for id in ["sql", "m+sql"] {
        let (status, code, _) = gateway.get(&format!("/v1/models/{id}")).await.error();
        assert_eq!((status, code.as_str()), (404, "model_not_found"));
    }
}

#[tokio::test]
async fn a_stream_with_an_adapter_comes_from_the_worker_that_has_it() {
    let lacking = Worker::with_adapter("w", "sql", watch::channel(false).1).await;
    let having = Worker::start(|_| async {
        let chunks = ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"];
        let body = Body::from_stream(stream::iter(chunks.map(Ok::<_, std::io::Error>)));
        events(body)
    })
    .await;
    let gateway = Running::start(Config::default(), sql_on(&[&lacking, &having])).await;
    for _ in 0..20 {
        let body = json!({"model": "sql", "stream": true}).to_string();
        let answer = gateway.post(CHAT, body).await;
        assert!(answer.complete);
        assert_eq!(answer.body, "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n");
    }
}

#[tokio::test]
async fn a_full_worker_is_answered_for_when_the_others_lack_the_adapter() {
    let lacking = Worker::with_adapter("w", "sql", watch::channel(false).1).await;
    let full =
        Worker::start(|_| async { (http::StatusCode::TOO_MANY_REQUESTS, "full").into_response() })
            .await;
    let gateway = Running::start(Config::default(), sql_on(&[&lacking, &full])).await;
    let answer = gateway.post(CHAT, asking("sql")).await;
    assert_eq!((answer.status, answer.body.as_str()), (429, "full"));
}

#[tokio::test]
async fn adapters_are_listed_after_their_models_and_found_by_their_ids() {
    let models = vec![
        (facts("a", "m"), vec![]),
        (facts("a", "n"), vec![]),
        (facts("b", "n"), vec![]),
    ];
    let mut fresh = adapter("a", "n", "fresh");
    (fresh.commit, fresh.created) = (None, 7);
    let adapters = [
        adapter("a", "m", "sql"),
        adapter("b", "n", "sql"),
        adapter("a", "m", "n"),
        fresh,
        adapter("a", "gone", "x"),
    ];
    let gateway = Running::start(Config::default(), with(table(models), &adapters)).await;
    let list = gateway.get("/v1/models").await;
    assert!(list.head.contains("content-type: application/json"));
    let list = list.json();
    let listed: Vec<(&str, Option<&str>)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["id"].as_str().unwrap(), model["parent"].as_str()))
        .collect();
    let expected = [
        ("m", None),
        ("m+n", Some("m")),
        ("m+sql", Some("m")),
        ("a/n", None),
        ("fresh", Some("a/n")),
        ("b/n", None),
        ("b/n+sql", Some("b/n")),
    ];
    assert_eq!(listed, expected);
    for model in list["data"].as_array().unwrap() {
        let id = model["id"].as_str().unwrap();
        let found = gateway.get(&format!("/v1/models/{id}")).await.json();
        assert_eq!(&found, model);
    }
    assert_eq!(
        list["data"][2]["hyprstream"],
        json!({"ref": null, "commit": COMMIT})
    );
    assert_eq!(list["data"][4]["hyprstream"], Value::Null);
    assert_eq!(list["data"][4]["created"], 7);
    assert_eq!(list["data"][4]["owned_by"], "a");
    for id in ["m+of-the-repository", "m+sql@0.5", "m+sql+n", "gone+x", "x"] {
        assert_eq!(
            gateway.get(&format!("/v1/models/{id}")).await.error().0,
            404
        );
    }
}

#[tokio::test]
async fn a_thousand_adapters_are_listed_and_reached() {
    let worker = echoing().await;
    let models = vec![(facts("a", "m"), vec![&worker.endpoint])];
    let adapters: Vec<_> = (0..1000)
        .map(|index| adapter("a", "m", &format!("adapter-{index}")))
        .collect();
    let gateway = Running::start(Config::default(), with(table(models), &adapters)).await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1001);
    assert_eq!(gateway.get("/v1/models").await.json(), list);
    for index in [0, 500, 999] {
        let body = asking(&format!("adapter-{index}"));
        assert_eq!(gateway.post(CHAT, body.clone()).await.body, body);
    }
}
