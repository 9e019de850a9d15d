//! Requests for Models that have no worker yet.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::*;
use hyprstream_gateway::{Config, table::Hope};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

fn soon() -> Config {
    Config {
        hold_timeout: Duration::from_millis(300),
        ..Config::default()
    }
}

#[tokio::test]
async fn requests_wait_for_the_first_worker() {
    let gateway =
        Arc::new(Running::start(Config::default(), table(vec![(facts("a", "m"), vec![])])).await);
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let gateway = Arc::clone(&gateway);
        requests.spawn(async move { gateway.post(CHAT, BODY).await.body });
    }
    eventually("they wait", || gateway.metric("held") == 50).await;
    let worker = Worker::saying("ok").await;
    // A table that changes without bringing a worker lets them wait on.
    gateway.set(table(vec![
        (facts("a", "m"), vec![]),
        (facts("a", "n"), vec![]),
    ]));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(gateway.metric("held"), 50);
    gateway.set(table(vec![(facts("a", "m"), vec![&worker.endpoint])]));
    while let Some(body) = requests.join_next().await {
        assert_eq!(body.unwrap(), "ok");
    }
    assert_eq!(gateway.metric("held"), 0);
}

#[tokio::test]
async fn the_wait_ends_with_the_models_own_reason() {
    let gateway = Running::start(soon(), table(vec![(facts("a", "m"), vec![])])).await;
    let answer = gateway.post(CHAT, BODY).await;
    let (status, code, message) = answer.error();
    assert_eq!((status, code.as_str()), (503, "model_not_ready"));
    assert!(
        message.contains("Fetching") && message.contains("3 of 10 bytes"),
        "{message}"
    );
    assert!(answer.head.contains("retry-after: "));
}

#[tokio::test]
async fn nobody_waits_for_what_will_not_come() {
    let mut stalled = facts("a", "stalled");
    (stalled.hope, stalled.commit) = (Hope::None, None);
    (stalled.reason, stalled.message) = ("UnsupportedArchitecture".into(), "it is a Mamba".into());
    let mut idle = facts("a", "idle");
    idle.replicas = 0;
    let mut suspended = facts("a", "suspended");
    suspended.suspended = true;
    let models = [stalled, idle, suspended]
        .map(|facts| (facts, vec![]))
        .into();
    let gateway = Running::start(Config::default(), table(models)).await;
    for (name, says) in [
        ("stalled", "it is a Mamba"),
        ("idle", "zero replicas"),
        ("suspended", "suspended"),
    ] {
        let began = Instant::now();
        let body = serde_json::json!({ "model": name }).to_string();
        let answer = gateway.post(CHAT, body).await;
        let (status, code, message) = answer.error();
        assert_eq!(
            (status, code.as_str()),
            (503, "model_unavailable"),
            "{name}"
        );
        assert!(message.contains(says), "{message}");
        assert!(answer.head.contains("retry-after: "));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_model_that_stalls_or_goes_away_while_requests_wait_ends_their_wait() {
    let gateway =
        Arc::new(Running::start(Config::default(), table(vec![(facts("a", "m"), vec![])])).await);
    let ask = || {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.post(CHAT, BODY).await })
    };
    let request = ask();
    eventually("it waits", || gateway.metric("held") == 1).await;
    let mut stalled = facts("a", "m");
    (stalled.hope, stalled.commit) = (Hope::None, None);
    gateway.set(table(vec![(stalled, vec![])]));
    assert_eq!(request.await.unwrap().error().1, "model_unavailable");

    gateway.set(table(vec![(facts("a", "m"), vec![])]));
    let request = ask();
    eventually("it waits", || gateway.metric("held") == 1).await;
    gateway.set(table(vec![]));
    assert_eq!(request.await.unwrap().error().1, "model_not_found");
}

#[tokio::test]
async fn only_so_many_wait_and_those_who_leave_make_room() {
    let config = Config {
        max_held: 2,
        ..Config::default()
    };
    let gateway = Running::start(config, table(vec![(facts("a", "m"), vec![])])).await;
    let mut clients = Vec::new();
    for waiting in 1..=2 {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        clients.push(client);
        eventually("it waits", || gateway.metric("held") == waiting).await;
    }
    let answer = gateway.post(CHAT, BODY).await;
    assert_eq!(answer.error().0, 429);
    assert!(answer.head.contains("retry-after: "));
    clients.pop();
    eventually("the one who left does not wait", || {
        gateway.metric("held") == 1
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_killed_and_comes_back_costs_no_new_request() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = Arc::new(hyprstream_gateway::endpoint::Endpoint::new(address));
    let models = table(vec![(facts("a", "m"), vec![&endpoint])]);
    let gateway = Arc::new(Running::start(Config::default(), models).await);
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let gateway = Arc::clone(&gateway);
        requests.spawn(async move { gateway.post(CHAT, BODY).await.body });
    }
    eventually("all wait", || gateway.metric("held") == 20).await;
    // The first attempts of all may have come at once. From then on it is one at a time, with
    // growing pauses, whoever makes it.
    let first = gateway.metric("retries_total");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let later = gateway.metric("retries_total");
    assert!((1..=5).contains(&(later - first)), "{first}, then {later}");
    let app = axum::Router::new().fallback(|| async { "back" });
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    while let Some(body) = requests.join_next().await {
        assert_eq!(body.unwrap(), "back");
    }
}

/// A request that waits at the gateway.
async fn waiting(gateway: &Running) -> TcpStream {
    let before = gateway.metric("held");
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    eventually("it waits", || gateway.metric("held") == before + 1).await;
    client
}

#[tokio::test]
async fn a_model_whose_workers_fail_holds_nobody_for_long() {
    let config = Config {
        doubtful_hold_timeout: Duration::from_millis(200),
        ..Config::default()
    };
    let mut failing = facts("a", "failing");
    failing.hope = Hope::Faint;
    let mut stalled = facts("a", "stalled");
    stalled.hope = Hope::None;
    assert!(stalled.commit.is_some(), "it served once");
    let models = [failing, stalled].map(|facts| (facts, vec![])).into();
    let gateway = Running::start(config, table(models)).await;
    for name in ["failing", "stalled"] {
        let began = Instant::now();
        let body = serde_json::json!({ "model": name }).to_string();
        let answer = gateway.post(CHAT, body).await;
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (503, "model_unavailable"));
        assert!(message.contains("3 of 10 bytes"), "{message}");
        assert!(answer.head.contains("retry-after: "));
        let waited = began.elapsed();
        assert!(
            waited >= Duration::from_millis(200) && waited < Duration::from_secs(10),
            "a worker that is being moved has a moment: {waited:?}"
        );
    }
}

#[tokio::test]
async fn no_namespace_takes_all_places_of_those_who_wait() {
    let config = Config {
        max_held: 40,
        ..Config::default()
    };
    let models = vec![
        (facts("hog", "m"), vec![]),
        (facts("hog", "n"), vec![]),
        (facts("other", "x"), vec![]),
    ];
    let gateway = Running::start(config, table(models)).await;
    let mut clients = Vec::new();
    let mut refused = Vec::new();
    for model in ["m", "n"] {
        let body = serde_json::json!({ "model": model }).to_string();
        for _ in 0..40 {
            let held = gateway.metric("held");
            let mut client = TcpStream::connect(gateway.address).await.unwrap();
            let request = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            client.write_all(request.as_bytes()).await.unwrap();
            eventually("it is held or refused", || {
                gateway.metric("held") > held
                    || gateway.metric("requests_total") > refused.len() as u64
            })
            .await;
            if gateway.metric("held") > held {
                clients.push(client);
            } else {
                refused.push(Answer::read(client).await);
                break;
            }
        }
    }
    assert_eq!(refused.len(), 2, "neither Model gets everything");
    for answer in refused {
        assert_eq!(
            (answer.error().0, answer.error().1.as_str()),
            (429, "rate_limit_exceeded")
        );
        assert!(answer.head.contains("retry-after: "));
    }
    let worker = Worker::saying("ok").await;
    let ask = gateway.post(CHAT, r#"{"model":"x"}"#);
    let models = vec![
        (facts("hog", "m"), vec![]),
        (facts("hog", "n"), vec![]),
        (facts("other", "x"), vec![&worker.endpoint]),
    ];
    let (answer, ()) = tokio::join!(ask, async {
        eventually("the other waits", || {
            gateway.metric("held") > clients.len() as u64
        })
        .await;
        gateway.set(table(models));
    });
    assert_eq!(answer.body, "ok");
}

#[tokio::test]
async fn those_who_wait_are_served_during_a_shutdown() {
    let mut gateway =
        Running::start(Config::default(), table(vec![(facts("a", "m"), vec![])])).await;
    let client = waiting(&gateway).await;
    gateway.stop();
    eventually("it takes no new connection", || {
        std::net::TcpStream::connect(gateway.address).is_err()
    })
    .await;
    assert_eq!(gateway.metric("held"), 1);
    let worker = Worker::saying("ok").await;
    gateway.set(table(vec![(facts("a", "m"), vec![&worker.endpoint])]));
    assert_eq!(Answer::read(client).await.body, "ok");
    assert_eq!((&mut gateway.task).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_shutdown_sends_those_who_wait_to_its_end_elsewhere() {
    let config = Config {
        drain_timeout: Duration::from_secs(2),
        ..Config::default()
    };
    let mut gateway = Running::start(config, table(vec![(facts("a", "m"), vec![])])).await;
    let client = waiting(&gateway).await;
    gateway.stop();
    assert_eq!(Answer::read(client).await.error().1, "shutting_down");
    assert_eq!((&mut gateway.task).await.unwrap().unwrap(), 0);
}
