//! Which worker answers, and what clients are told when none can.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use axum::{body::to_bytes, response::IntoResponse};
use common::*;
use hyprstream_gateway::{Config, keys::KeyFile, table::Table};

#[tokio::test]
async fn a_request_reaches_its_worker_unchanged_and_so_does_the_answer() {
    let worker = Worker::start(|request| async move {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let headers: Vec<String> = parts
            .headers
            .iter()
            .map(|(k, v)| format!("{k}={}", v.to_str().unwrap()))
            .collect();
        let seen = serde_json::json!({
            "uri": parts.uri.to_string(), "headers": headers,
            "body": String::from_utf8(body.to_vec()).unwrap(),
        });
        (
            [("x-hyprstream-commit", COMMIT), ("keep-alive", "5")],
            seen.to_string(),
        )
            .into_response()
    })
    .await;
    let config = Config {
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        ..Config::default()
    };
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(config, models).await;
    let body = r#"{ "messages":[{"role":"user","content":"é"}], "model" : "a/m:main+x@0.5" }"#;
    let headers = [
        ("content-type", "application/json"),
        ("authorization", "Bearer secret"),
        ("x-request-id", "r-1"),
        ("x-forwarded-proto", "https"),
    ];
    let answer = gateway
        .send("POST", "/v1/chat/completions?x=1", &headers, body)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer
            .head
            .contains(&format!("x-hyprstream-commit: {COMMIT}"))
    );
    assert!(answer.head.contains("x-request-id: r-1"));
    assert!(!answer.head.contains("keep-alive: 5"));
    let seen = answer.json();
    assert_eq!(seen["uri"], "/v1/chat/completions?x=1");
    assert_eq!(seen["body"], body);
    let headers = seen["headers"].to_string();
    for expected in [
        "x-request-id=r-1",
        "x-forwarded-proto=https",
        "x-forwarded-for=127.0.0.1",
        "x-forwarded-host=g",
    ] {
        assert!(headers.contains(expected), "{expected}: {headers}");
    }
    assert!(!headers.contains("secret"), "{headers}");
}

#[tokio::test]
async fn every_path_that_names_a_model_reaches_its_worker() {
    let worker = Worker::start(|request| async move {
        let path = request.uri().path().to_owned();
        path.into_response()
    })
    .await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    let paths = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
    ];
    for path in paths {
        let answer = gateway.post(path, BODY).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, path));
        // Which worker is meant is said by the model alone.
        assert_eq!(gateway.post(path, "{}").await.error().0, 400, "{path}");
        assert_eq!(gateway.get(path).await.error().0, 405, "{path}");
    }
    assert_eq!(worker.seen(), paths.len());
}

#[tokio::test]
async fn models_are_listed_and_found_by_either_id() {
    let models = vec![
        (facts("a", "m"), vec![]),
        (facts("b", "m"), vec![]),
        (facts("b", "n"), vec![]),
    ];
    let gateway = Running::start(Config::default(), table(models)).await;
    let list = gateway.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(ids, ["a/m", "b/m", "n"]);
    assert_eq!(list["data"][2]["owned_by"], "b");
    assert_eq!(list["data"][2]["hyprstream"]["commit"], COMMIT);
    assert_eq!(list["data"][2]["hyprstream"].get("repository"), None);
    assert_eq!(list["data"][2]["root"], serde_json::Value::Null);
    assert_eq!(gateway.get("/v1/models/b/n").await.json()["id"], "n");
    assert_eq!(gateway.get("/v1/models/n").await.json()["id"], "n");
    assert_eq!(gateway.get("/v1/models/b%2Fm").await.json()["id"], "b/m");
    assert_eq!(gateway.get("/v1/models/m").await.status, 400);
    assert_eq!(gateway.get("/v1/models/x").await.status, 404);
}

#[tokio::test]
async fn a_reference_that_leads_nowhere_is_answered_without_the_models_of_others() {
    let mut tagged = facts("b", "n");
    tagged.reference = hyprstream_gateway::table::Reference::Tag("v1".to_owned());
    let models = vec![
        (facts("a", "m"), vec![]),
        (facts("b", "m"), vec![]),
        (tagged, vec![]),
    ];
    let gateway = Running::start(Config::default(), table(models)).await;
    for (model, status, code, says) in [
        ("x", 404, "model_not_found", "does not exist"),
        ("c/m", 404, "model_not_found", "c/m"),
        ("m", 400, "model_ambiguous", "NAMESPACE/m"),
        ("n:main", 404, "model_not_found", "tag v1"),
        ("a/m:dev", 404, "model_not_found", "branch main"),
        ("a/m:main:fffffff", 404, "model_not_found", COMMIT),
        ("M", 404, "model_not_found", "does not exist"),
        ("a/M", 404, "model_not_found", "a/M"),
        ("A/m", 400, "invalid_value", "reference"),
        (&"x".repeat(600), 400, "invalid_value", "512"),
    ] {
        let body = serde_json::json!({"model": model}).to_string();
        let (got, got_code, message) = gateway.post(CHAT, body).await.error();
        assert_eq!(
            (got, got_code.as_str()),
            (status, code),
            "{model}: {message}"
        );
        assert!(message.contains(says), "{message}");
        for other in ["a/", "b/", "\"n\""]
            .iter()
            .filter(|id| !model.contains(**id))
        {
            assert!(
                !message.contains(other) || model.starts_with('n'),
                "{message}"
            );
        }
    }
    assert!(
        gateway
            .post(CHAT, "{}")
            .await
            .head
            .contains("x-request-id: ")
    );
}

#[tokio::test]
async fn bodies_and_paths_that_make_no_sense_get_an_openai_error() {
    let config = Config {
        max_body_bytes: 1000,
        ..Config::default()
    };
    let gateway = Running::start(config, table(vec![(facts("a", "m"), vec![])])).await;
    for (body, status) in [
        ("", 400),
        ("null", 400),
        ("[1]", 400),
        ("{", 400),
        ("{}", 400),
        (r#"{"model":1}"#, 400),
        ("\u{0}\u{1}", 400),
        (&"x".repeat(1001), 413),
    ] {
        let answer = gateway.post(CHAT, body.to_owned()).await;
        assert_eq!(answer.error().0, status, "{body:.40}");
    }
    let deep = format!("{{\"model\":\"m\",\"x\":{}", "[".repeat(900));
    assert_eq!(gateway.post(CHAT, deep).await.error().0, 400);
    let text = [("content-type", "text/plain")];
    assert_eq!(gateway.send("POST", CHAT, &text, BODY).await.error().0, 415);
    let zipped = [("content-encoding", "gzip")];
    assert_eq!(
        gateway.send("POST", CHAT, &zipped, BODY).await.error().0,
        415
    );
    assert_eq!(gateway.get(CHAT).await.error().0, 405);
    assert_eq!(gateway.get("/nope").await.error().0, 404);
    assert_eq!(
        gateway.post("/v1/load_lora_adapter", BODY).await.error().0,
        404
    );
    assert_eq!(gateway.get("/health").await.status, 200);
    assert_eq!(gateway.get("/ready").await.status, 200);
    assert!(gateway.get("/version").await.json()["version"].is_string());
}

#[tokio::test]
async fn a_gateway_that_does_not_know_the_models_yet_says_so() {
    let gateway = Running::start(Config::default(), Table::default()).await;
    assert_eq!(gateway.get("/ready").await.status, 503);
    assert_eq!(gateway.get("/v1/models").await.error().0, 503);
    let answer = gateway.post(CHAT, BODY).await;
    assert_eq!(answer.error().1, "starting");
    assert!(answer.head.contains("retry-after: "));
}

#[tokio::test]
async fn a_refused_connection_and_a_draining_worker_cost_no_request() {
    let worker = Worker::saying("ok").await;
    let draining = Worker::start(|_| async {
        (
            http::StatusCode::SERVICE_UNAVAILABLE,
            [("x-hyprstream-draining", "1")],
            "",
        )
            .into_response()
    })
    .await;
    let dead = dead_endpoint().await;
    let models = vec![(
        facts("a", "m"),
        vec![&dead, &draining.endpoint, &worker.endpoint],
    )];
    let gateway = Running::start(Config::default(), table(models)).await;
    for _ in 0..30 {
        let answer = gateway.post(CHAT, BODY).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
        assert!(!answer.head.contains("draining"));
    }
    assert_eq!(worker.seen(), 30);
    assert!(draining.seen() <= 1, "it is left alone for a while");
    assert!(gateway.metric("retries_total") >= 1);
}

#[tokio::test]
async fn a_503_of_an_overloaded_worker_is_passed_on() {
    let worker = Worker::start(|_| async {
        (
            http::StatusCode::SERVICE_UNAVAILABLE,
            [("retry-after", "7")],
            "full",
        )
            .into_response()
    })
    .await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    let answer = gateway.post(CHAT, BODY).await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "full"));
    assert!(answer.head.contains("retry-after: 7"));
    assert_eq!(worker.seen(), 1);
}

/// A worker that answers everything with this status at once.
async fn answering(status: u16) -> Worker {
    Worker::start(move |_| async move {
        (
            http::StatusCode::from_u16(status).unwrap(),
            [("retry-after", "7")],
            status.to_string(),
        )
            .into_response()
    })
    .await
}

#[tokio::test]
async fn what_one_worker_has_no_room_for_is_taken_by_another() {
    for status in [429, 503] {
        let full = answering(status).await;
        let worker = Worker::saying("ok").await;
        let models = vec![(facts("a", "m"), vec![&full.endpoint, &worker.endpoint])];
        let gateway = Running::start(Config::default(), table(models)).await;
        for _ in 0..20 {
            let answer = gateway.post(CHAT, BODY).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
        }
        assert!(
            full.seen() <= 3,
            "it is left alone for a while: {}",
            full.seen()
        );
    }
}

#[tokio::test]
async fn a_request_that_no_worker_has_room_for_is_turned_down_with_a_workers_answer() {
    let mut workers = Vec::new();
    for _ in 0..6 {
        workers.push(answering(429).await);
    }
    let endpoints = workers.iter().map(|worker| &worker.endpoint).collect();
    let gateway =
        Running::start(Config::default(), table(vec![(facts("a", "m"), endpoints)])).await;
    let answer = gateway.post(CHAT, BODY).await;
    assert_eq!((answer.status, answer.body.as_str()), (429, "429"));
    assert!(answer.head.contains("retry-after: 7"));
    let seen: usize = workers.iter().map(Worker::seen).sum();
    assert_eq!(seen, 3, "the body is not sent to everybody");
    eventually("none is in flight", || {
        workers
            .iter()
            .all(|worker| worker.endpoint.in_flight() == 0)
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_fails_at_once_does_not_draw_the_requests() {
    let broken = answering(500).await;
    let worker = Worker::start(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        "ok".into_response()
    })
    .await;
    let models = vec![(facts("a", "m"), vec![&broken.endpoint, &worker.endpoint])];
    let gateway = Arc::new(Running::start(Config::default(), table(models)).await);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let gateway = Arc::clone(&gateway);
        requests.spawn(async move {
            for _ in 0..10 {
                gateway.post(CHAT, BODY).await;
            }
        });
    }
    while requests.join_next().await.is_some() {}
    // About as many as are sent before its first answer, and one for each pause, which double.
    assert!(broken.seen() <= 20, "{} of 100", broken.seen());
    assert_eq!(
        broken.seen() + worker.seen(),
        100,
        "a 500 is not asked for twice"
    );
}

#[tokio::test]
async fn the_last_worker_is_asked_however_often_it_failed() {
    let broken = answering(500).await;
    let models = table(vec![(facts("a", "m"), vec![&broken.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    for _ in 0..10 {
        assert_eq!(gateway.post(CHAT, BODY).await.status, 500);
    }
    assert_eq!(broken.seen(), 10);
}

const MASTER: &str = "0123456789abcdef0123456789abcdef";

/// A worker that answers with the `Authorization` and the `X-Forwarded-For` that it was sent.
async fn telling() -> Worker {
    Worker::start(|request| async move {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value
                .map_or("none", |value| value.to_str().unwrap())
                .to_owned()
        };
        format!("{} {}", header("authorization"), header("x-forwarded-for")).into_response()
    })
    .await
}

#[tokio::test]
async fn each_models_workers_get_their_key_and_never_the_clients() {
    let worker = telling().await;
    let models = vec![
        (facts("a", "m"), vec![&worker.endpoint]),
        (facts("b", "n"), vec![&worker.endpoint]),
    ];
    let gateway = Running::start(Config::default(), table(models)).await;
    let sent = [
        ("content-type", "application/json"),
        ("authorization", "Bearer of-the-client"),
        ("x-forwarded-for", "1.2.3.4"),
    ];
    let ask = |model: &'static str| {
        let body = serde_json::json!({ "model": model }).to_string();
        gateway.send("POST", CHAT, &sent, body)
    };
    assert_eq!(ask("m").await.body, "none 127.0.0.1");
    let file = std::env::temp_dir().join(format!("gateway-key-{}", std::process::id()));
    std::fs::write(&file, "too short").unwrap();
    assert!(KeyFile::open(&file, &gateway.gateway).await.is_err());
    assert_eq!(ask("m").await.body, "none 127.0.0.1");
    std::fs::write(&file, format!("{MASTER}\n")).unwrap();
    KeyFile::open(&file, &gateway.gateway).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    let keys = hyprstream_contract::WorkerKeys::new(MASTER).unwrap();
    for (model, namespace) in [("m", "a"), ("n", "b")] {
        let expected = format!("Bearer {} 127.0.0.1", keys.of(namespace, model));
        assert_eq!(ask(model).await.body, expected);
    }
}

#[tokio::test]
async fn a_worker_that_refuses_the_key_is_passed_over_and_its_answer_is_not_the_clients() {
    let refusing = answering(401).await;
    let worker = Worker::saying("ok").await;
    let models = vec![(facts("a", "m"), vec![&refusing.endpoint, &worker.endpoint])];
    let gateway = Running::start(Config::default(), table(models)).await;
    for _ in 0..10 {
        assert_eq!(gateway.post(CHAT, BODY).await.body, "ok");
    }
    gateway.set(table(vec![(facts("a", "m"), vec![&refusing.endpoint])]));
    let (status, code, _) = gateway.post(CHAT, BODY).await.error();
    assert_eq!((status, code.as_str()), (502, "worker_refused"));
}

#[tokio::test]
async fn requests_spread_by_load() {
    let (release, gate) = tokio::sync::watch::channel(false);
    let start = || {
        let gate = gate.clone();
        Worker::start(move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.unwrap();
                "ok".into_response()
            }
        })
    };
    let (one, two, three) = (start().await, start().await, start().await);
    let models = table(vec![(
        facts("a", "m"),
        vec![&one.endpoint, &two.endpoint, &three.endpoint],
    )]);
    let gateway = Arc::new(Running::start(Config::default(), models).await);
    let mut requests = tokio::task::JoinSet::new();
    for sent in 1..=9 {
        let gateway_of_task = Arc::clone(&gateway);
        requests.spawn(async move { gateway_of_task.post(CHAT, BODY).await.status });
        let workers = [&one, &two, &three];
        let seen = || workers.iter().map(|w| w.seen()).sum::<usize>();
        eventually("the request arrives", || seen() == sent).await;
    }
    assert_eq!([one.seen(), two.seen(), three.seen()], [3, 3, 3]);
    assert_eq!(gateway.metric("in_flight"), 9);
    release.send(true).unwrap();
    while let Some(status) = requests.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    eventually("all are counted off", || gateway.metric("in_flight") == 0).await;
    assert_eq!(one.endpoint.in_flight(), 0);
}

#[tokio::test]
async fn a_commit_asked_for_is_never_answered_by_another() {
    const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffff";
    let old = Worker::saying("old").await;
    let new =
        Worker::start(|_| async { ([("x-hyprstream-commit", OTHER)], "new").into_response() })
            .await;
    let models = vec![(facts("a", "m"), vec![&old.endpoint, &new.endpoint])];
    let gateway = Running::start(Config::default(), table(models)).await;
    let pinned = |commit: &str| format!(r#"{{"model":"m:main:{}"}}"#, &commit[..7]);
    for _ in 0..20 {
        assert_eq!(gateway.post(CHAT, pinned(COMMIT)).await.body, "old");
    }
    // Answers of the new worker made its commit known, which can be asked for from then on.
    while new.seen() == 0 {
        gateway.post(CHAT, BODY).await;
    }
    for _ in 0..20 {
        assert_eq!(gateway.post(CHAT, pinned(OTHER)).await.body, "new");
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_worker_closed_costs_no_request() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers the first request of each connection and closes on the second without a word.
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 8192];
                let _ = socket.read(&mut buf).await;
                let _ = socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
                let _ = socket.read(&mut buf).await;
            });
        }
    });
    let endpoint = Arc::new(hyprstream_gateway::endpoint::Endpoint::new(address));
    let models = table(vec![(facts("a", "m"), vec![&endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    for _ in 0..10 {
        let answer = gateway.post(CHAT, BODY).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    }
    assert!(
        gateway.metric("retries_total") >= 1,
        "kept connections were used"
    );
}

#[tokio::test]
async fn a_model_that_goes_away_takes_its_series_along() {
    let worker = Worker::saying("ok").await;
    let registry = prometheus::Registry::new();
    let metrics = hyprstream_gateway::Metrics::new(&registry).unwrap();
    let (sender, receiver) = tokio::sync::watch::channel(Arc::new(table(vec![(
        facts("a", "m"),
        vec![&worker.endpoint],
    )])));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = hyprstream_gateway::Gateway::new(Config::default(), receiver, metrics.clone());
    tokio::spawn(gateway.run(listener, std::future::pending()));
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes())
        .await
        .unwrap();
    assert_eq!(Answer::read(socket).await.status, 200);
    let text = || {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        text.lines().filter(|line| line.contains("a/m")).count()
    };
    assert!(text() > 0);
    let old = sender.send_replace(Arc::new(table(vec![])));
    metrics.follow(&old, &table(vec![]));
    assert_eq!(text(), 0);
}

#[tokio::test]
async fn the_limit_of_requests_is_kept() {
    let worker = Worker::start(|_| std::future::pending()).await;
    let config = Config {
        max_requests: 2,
        ..Config::default()
    };
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Arc::new(Running::start(config, models).await);
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let gateway = Arc::clone(&gateway);
        held.spawn(async move { gateway.post(CHAT, BODY).await.status });
    }
    eventually("two are at the worker", || worker.seen() == 2).await;
    let answer = gateway.post(CHAT, BODY).await;
    assert_eq!(answer.error().1, "overloaded");
    assert!(answer.head.contains("retry-after: "));
    held.abort_all();
    while held.join_next().await.is_some() {}
    eventually("their slots are free again", || {
        gateway.metric("in_flight") == 0
    })
    .await;
    let waits = tokio::time::timeout(Duration::from_millis(200), gateway.post(CHAT, BODY)).await;
    assert!(waits.is_err(), "the request is at the worker");
}
