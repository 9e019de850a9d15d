//! Streams, broken ones, and clients and workers that go away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::IntoResponse,
};
use common::*;
use futures::{StreamExt, stream};
use hyprstream_gateway::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

fn request(body: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_until(socket: &mut TcpStream, text: &mut String, what: &str) {
    let mut buf = [0; 4096];
    while !text.contains(what) {
        let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buf)).await;
        let n = read.expect("in time").unwrap();
        assert!(n > 0, "ended without {what:?}: {text}");
        text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
}

/// Counts the live ones among what it is cloned into.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn events_pass_through_as_they_come() {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let worker = Worker::start(move |_| {
        let receiver = Arc::clone(&receiver);
        async move {
            let receiver = receiver.lock().await.take().unwrap();
            let events_of =
                stream::unfold(receiver, |mut r| async { r.recv().await.map(|x| (x, r)) });
            events(Body::from_stream(events_of))
        }
    })
    .await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(request(BODY).as_bytes()).await.unwrap();
    let mut text = String::new();
    read_until(&mut client, &mut text, "\r\n\r\n").await;
    assert!(
        text.contains(COMMIT) && text.contains("text/event-stream"),
        "{text}"
    );
    for i in 0..5 {
        // Nothing more is sent before the client has this one.
        sender
            .send(Ok(format!("data: {i}\n\n").into()))
            .await
            .unwrap();
        read_until(&mut client, &mut text, &format!("data: {i}\n\n")).await;
    }
    drop(sender);
    read_until(&mut client, &mut text, "\r\n0\r\n\r\n").await;
    // The connection can be used for another request.
    client
        .write_all(b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n")
        .await
        .unwrap();
    let mut health = String::new();
    read_until(&mut client, &mut health, "200 OK").await;
}

/// A worker whose answers never end, and how many are being made.
async fn endless(first: &'static str) -> (Worker, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let worker = Worker::start(move |_| {
        let guard = Alive::new(&count);
        async move {
            let head = stream::iter([Ok::<_, std::io::Error>(Bytes::from(first))]);
            let rest = stream::unfold(guard, |guard| async move {
                tokio::time::sleep(Duration::from_hours(1)).await;
                Some((Ok(Bytes::from("data: x\n\n")), guard))
            });
            events(Body::from_stream(head.chain(rest)))
        }
    })
    .await;
    (worker, alive)
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_the_workers_work() {
    let (worker, alive) = endless("data: 1\n\n").await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(request(BODY).as_bytes()).await.unwrap();
        read_until(&mut client, &mut String::new(), "data: 1").await;
        clients.push(client);
    }
    assert_eq!(alive.load(Ordering::SeqCst), 20);
    drop(clients);
    // The worker is silent: only the client's leaving can end it.
    eventually("no answer is being made", || {
        alive.load(Ordering::SeqCst) == 0
    })
    .await;
    eventually("none is in flight", || worker.endpoint.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_begins_ends_the_workers_work() {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let worker = Worker::start(move |_| {
        let guard = Alive::new(&count);
        async move {
            tokio::time::sleep(Duration::from_hours(1)).await;
            drop(guard);
            "late".into_response()
        }
    })
    .await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(request(BODY).as_bytes()).await.unwrap();
    eventually("the worker has it", || alive.load(Ordering::SeqCst) == 1).await;
    drop(client);
    eventually("the worker gave up", || alive.load(Ordering::SeqCst) == 0).await;
    eventually("it is counted", || gateway.metric("requests_total") == 1).await;
}

#[tokio::test]
async fn a_stream_that_the_worker_breaks_off_ends_with_an_error_and_done() {
    for (answer, kept) in [
        ("1e\r\ndata: {\"a\":1}\n\ndata: {\"b\":2}\n\n\r\n", 2),
        ("18\r\ndata: {\"a\":1}\n\ndata: {\"b\r\n", 1),
        ("", 0),
    ] {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let worker = raw_worker(Box::leak(format!("{head}{answer}").into_boxed_str())).await;
        let models = table(vec![(facts("a", "m"), vec![&worker])]);
        let gateway = Running::start(Config::default(), models).await;
        let answer = gateway.post(CHAT, BODY).await;
        assert_eq!(answer.status, 200);
        assert!(answer.complete, "{answer:?}");
        let mut events = answer.body.split("\n\n").collect::<Vec<_>>();
        assert_eq!(events.pop(), Some(""), "{answer:?}");
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let error: serde_json::Value =
            serde_json::from_str(events.pop().unwrap().strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "worker_lost");
        assert_eq!(events.len(), kept, "{answer:?}");
        assert_eq!(gateway.metric("truncated_total"), 1);
    }
}

#[tokio::test]
async fn an_answer_that_the_worker_breaks_off_is_a_502() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nconte",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\"",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "nonsense\r\n\r\n",
    ] {
        let worker = raw_worker(answer).await;
        let models = table(vec![(facts("a", "m"), vec![&worker])]);
        let gateway = Running::start(Config::default(), models).await;
        let got = gateway.post(CHAT, BODY).await;
        assert_eq!(
            (got.error().0, got.error().1.as_str()),
            (502, "worker_lost"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_too_large_to_be_held_back_is_passed_on_whole() {
    let worker = Worker::start(|_| async { "x".repeat(20 << 20).into_response() }).await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(Config::default(), models).await;
    for _ in 0..2 {
        let answer = gateway.post("/v1/embeddings", BODY).await;
        assert_eq!((answer.status, answer.body.len()), (200, 20 << 20));
    }
    eventually("none is in flight", || worker.endpoint.in_flight() == 0).await;
}

#[tokio::test]
async fn a_head_that_is_huge_or_slow_is_refused() {
    let config = Config {
        header_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let gateway = Running::start(config, table(vec![])).await;
    let huge = "x".repeat(40 << 10);
    let answer = gateway.send("GET", "/health", &[("x-a", &huge)], "").await;
    assert_eq!(answer.status, 431);
    let many: Vec<_> = (0..200).map(|_| ("x-b", "1")).collect();
    assert_eq!(gateway.send("GET", "/health", &many, "").await.status, 431);
    for start in ["", "GET /health HTTP/1.1\r\nx: "] {
        let mut slow = TcpStream::connect(gateway.address).await.unwrap();
        slow.write_all(start.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the connection is closed: {start:?}");
    }
    eventually("they are counted off", || {
        gateway.metric("connections") == 0
    })
    .await;
}

#[tokio::test]
async fn a_body_that_trickles_is_refused() {
    let config = Config {
        body_timeout: Duration::from_millis(200),
        ..Config::default()
    };
    let gateway = Running::start(config, table(vec![])).await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: 1000\r\n\r\n{{");
    slow.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(Answer::read(slow).await.error().0, 408);
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_refused() {
    let config = Config {
        max_buffered_bytes: 100,
        ..Config::default()
    };
    let worker = Worker::saying("ok").await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(config, models).await;
    let large = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(200));
    assert_eq!(gateway.post(CHAT, large).await.error().1, "overloaded");
    for _ in 0..10 {
        assert_eq!(
            gateway.post(CHAT, BODY).await.status,
            200,
            "its share was given back"
        );
    }
}

#[tokio::test]
async fn clients_that_do_not_end_their_bodies_keep_no_others_out() {
    let worker = Worker::saying("ok").await;
    for config in [
        Config {
            max_buffered_bytes: 16 << 20,
            ..Config::default()
        },
        Config {
            max_requests: 17,
            ..Config::default()
        },
    ] {
        let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
        let gateway = Running::start(config, models).await;
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let mut client = TcpStream::connect(gateway.address).await.unwrap();
            let length = 1 << 20;
            let head =
                format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\n\r\n");
            let begun = [head.as_bytes(), &vec![b' '; length - 1]].concat();
            client.write_all(&begun).await.unwrap();
            // Others go on all the while.
            assert_eq!(gateway.post(CHAT, BODY).await.status, 200);
            stalled.push(client);
        }
        for _ in 0..20 {
            let large = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(1 << 20));
            assert_eq!(gateway.post(CHAT, large).await.status, 200);
        }
        // Those that stalled first had to go, and hear why.
        let first = Answer::read(stalled.remove(0)).await;
        let (status, code, message) = first.error();
        assert_eq!((status, code.as_str()), (503, "overloaded"), "{message}");
        assert!(first.head.contains("retry-after: "), "{}", first.head);
    }
}

#[tokio::test]
async fn a_shutdown_finishes_streams_and_cuts_off_what_takes_too_long() {
    let (finish, finished) = tokio::sync::watch::channel(false);
    let worker = Worker::start(move |_| {
        let mut finished = finished.clone();
        async move {
            let head = stream::iter([Ok::<_, std::io::Error>(Bytes::from("data: 1\n\n"))]);
            let rest = stream::once(async move {
                finished.wait_for(|x| *x).await.unwrap();
                Ok(Bytes::from("data: [DONE]\n\n"))
            });
            events(Body::from_stream(head.chain(rest)))
        }
    })
    .await;
    for (timeout, cut) in [(60_000, 0), (200, 1)] {
        finish.send_replace(false);
        let config = Config {
            drain_timeout: Duration::from_millis(timeout),
            ..Config::default()
        };
        let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
        let mut gateway = Running::start(config, models).await;
        let mut idle = TcpStream::connect(gateway.address).await.unwrap();
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(request(BODY).as_bytes()).await.unwrap();
        let mut text = String::new();
        read_until(&mut client, &mut text, "data: 1").await;
        gateway.stop();
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        let refused = TcpStream::connect(gateway.address).await;
        assert!(refused.is_err(), "no new connection is accepted");
        if cut == 0 {
            finish.send_replace(true);
            read_until(&mut client, &mut text, "data: [DONE]\n\n\r\n0\r\n\r\n").await;
        }
        assert_eq!((&mut gateway.task).await.unwrap().unwrap(), cut);
    }
}

fn impatient() -> Config {
    Config {
        silence_timeout: Duration::from_millis(300),
        ..Config::default()
    }
}

#[tokio::test]
async fn a_worker_that_never_answers_is_given_up() {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let worker = Worker::start(move |_| {
        let guard = Alive::new(&count);
        async move {
            std::future::pending::<()>().await;
            drop(guard);
            "never".into_response()
        }
    })
    .await;
    let half = raw_worker("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no").await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(impatient(), models).await;
    let (status, code, message) = gateway.post(CHAT, BODY).await.error();
    assert_eq!(
        (status, code.as_str()),
        (504, "worker_timeout"),
        "{message}"
    );
    eventually("the worker gave up", || alive.load(Ordering::SeqCst) == 0).await;
    gateway.set(table(vec![(facts("a", "m"), vec![&half])]));
    assert_eq!(gateway.post(CHAT, BODY).await.error().0, 502);
}

#[tokio::test]
async fn a_stream_may_take_long_but_not_be_silent_for_long() {
    let worker = Worker::start(|_| async {
        let some = stream::iter(0..8).then(|i| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>(Bytes::from(format!("data: {i}\n\n")))
        });
        events(Body::from_stream(some.chain(stream::pending())))
    })
    .await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(impatient(), models).await;
    let answer = gateway.post(CHAT, BODY).await;
    assert!(answer.complete, "{answer:?}");
    assert!(answer.body.contains("data: 7\n\n"), "{answer:?}");
    assert!(answer.body.contains("worker_timeout"), "{answer:?}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
}

#[tokio::test]
async fn answers_that_find_no_memory_to_be_held_back_in_are_passed_on_whole() {
    let config = Config {
        max_buffered_bytes: 1 << 20,
        ..Config::default()
    };
    let worker = Worker::start(|_| async { "x".repeat(4 << 20).into_response() }).await;
    let models = table(vec![(facts("a", "m"), vec![&worker.endpoint])]);
    let gateway = Running::start(config, models).await;
    for _ in 0..3 {
        let answer = gateway.post("/v1/embeddings", BODY).await;
        assert_eq!((answer.status, answer.body.len()), (200, 4 << 20));
    }
    eventually("none is in flight", || worker.endpoint.in_flight() == 0).await;
}
