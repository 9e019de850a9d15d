//! Upstreams that send a byte now and then, and namespaces that want everything for themselves.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use hyprstream_contract::registry::{MirrorState, RESOLVE_PATH, Reference, ResolveRequest, reason};
use hyprstream_registry::FetchLimits;

use crate::{
    client::{Workspace, ask, batch, call, noise, oid, ready, settle, upstream},
    listen::Listening,
    server::{ADMIN, NODE, Server, token},
    upstream::{Door, Mode},
};

/// A server whose answers never end: one byte every 20 ms. It counts who is connected.
struct Dripping {
    listening: Listening,
    open: Arc<AtomicUsize>,
}

struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dripping {
    fn start() -> Self {
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let app = Router::new().fallback(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let gone = Gone(Arc::clone(&counter));
            async move {
                // A good beginning, and then a line of refs that does not come to its end.
                let start = Bytes::from_static(b"001e# service=git-upload-pack\n0000fff0");
                let drops = futures::stream::unfold((start, gone), |(next, gone)| async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let drop = Bytes::from_static(b"a");
                    Some((Ok::<_, Infallible>(next), (drop, gone)))
                });
                let content_type = "application/x-git-upload-pack-advertisement";
                ([("content-type", content_type)], Body::from_stream(drops))
            }
        });
        Self {
            listening: Listening::app(app),
            open,
        }
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.listening.address)
    }
}

fn hurried() -> FetchLimits {
    FetchLimits {
        least_bytes_per_second: 10_000,
        rate_window: Duration::from_millis(600),
        first_byte: Duration::from_millis(600),
        lease: Duration::from_mins(10),
        ..FetchLimits::default()
    }
}

struct World {
    _work: Workspace,
    _origin: Server,
    door: Door,
    commit: String,
}

fn world(size: usize, seed: u8) -> World {
    let (work, origin) = (Workspace::new(), Server::start());
    let commit = work.model("a", size, seed);
    let url = origin.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let door = Door::open(origin.address, true);
    World {
        _work: work,
        _origin: origin,
        door,
        commit,
    }
}

#[test]
fn upstreams_that_drip_end_nobody_elses_mirroring() {
    let (world, dripping) = (world(100_000, 31), Dripping::start());
    // Nothing is ended for its rate here: places alone have to do.
    let registry = Server::with(|limits| limits.max_fetches = 8);
    let nowhere = "1".repeat(40);
    for index in 0..24 {
        let source = upstream(&dripping.url(&format!("m{index}")), "hostile", None);
        let status = ask(&registry.address, &source, &nowhere, &[]);
        assert_eq!(status.state, MirrorState::Fetching);
    }
    let source = upstream(&world.door.url("git/a/m.git"), "other", None);
    ready(&registry, &source, &world.commit, &[]);
    assert!(dripping.open.load(Ordering::SeqCst) <= 4);
    // Nor are questions kept waiting.
    let question = ResolveRequest {
        upstream: source,
        reference: Reference::Branch("main".into()),
    };
    let question = serde_json::to_vec(&question).unwrap();
    let answer = call(
        "POST",
        &registry.url(RESOLVE_PATH),
        ADMIN,
        &[],
        Some(&question),
    );
    assert_eq!(answer.json()["commit"], world.commit);
}

#[test]
fn an_upstream_that_drips_is_given_up_and_others_get_its_places() {
    let (world, dripping) = (world(100_000, 32), Dripping::start());
    let registry = Server::with(|limits| {
        limits.max_fetches = 2;
        limits.fetch = hurried();
        // So that the failure is still there when it is asked for.
        limits.min_backoff = Duration::from_mins(2);
        limits.max_backoff = Duration::from_mins(2);
    });
    let nowhere = "1".repeat(40);
    let source = |index: u8| {
        let namespace = format!("hostile-{index}");
        upstream(&dripping.url(&format!("m{index}")), &namespace, None)
    };
    for index in 0..8 {
        ask(&registry.address, &source(index), &nowhere, &[]);
    }
    let good = upstream(&world.door.url("git/a/m.git"), "other", None);
    ready(&registry, &good, &world.commit, &[]);
    let error = settle(&registry, &source(0), &nowhere, &[]).error.unwrap();
    assert_eq!(error.reason, reason::UPSTREAM_ERROR);
    assert!(
        error.retriable && error.message.contains("bytes a second"),
        "{error}"
    );
}

#[test]
fn a_download_of_lfs_objects_that_stalls_is_given_up_and_goes_on_later() {
    let world = world(400_000, 33);
    // So little each time that the next attempts stall as well: a failure is there to be asked about
    // only until the next one begins.
    world.door.set(Mode::StallAfter(50_000));
    let registry = Server::with(|limits| {
        limits.fetch = hurried();
        limits.min_backoff = Duration::from_secs(1);
        limits.max_backoff = Duration::from_secs(1);
    });
    let source = upstream(&world.door.url("git/a/m.git"), "a", None);
    let error = settle(&registry, &source, &world.commit, &[])
        .error
        .unwrap();
    assert_eq!(error.reason, reason::UPSTREAM_ERROR, "{error}");
    world.door.set(Mode::Pass);
    ready(&registry, &source, &world.commit, &[]);
}

#[test]
fn a_fetch_that_nobody_asks_for_any_more_is_ended() {
    let world = world(6_000_000, 37);
    world.door.set(Mode::Drip);
    let registry = Server::with(|limits| limits.fetch.lease = Duration::from_secs(1));
    let source = upstream(&world.door.url("git/a/m.git"), "a", None);
    let start = Instant::now();
    while ask(&registry.address, &source, &world.commit, &[]).bytes_done == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut last = (world.door.bytes(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(4) {
        let bytes = world.door.bytes();
        if bytes != last.0 {
            last = (bytes, Instant::now());
        }
        assert!(start.elapsed() < Duration::from_secs(25), "it goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(last.0 < 6_000_000);
    // Who asks again goes on where it ended.
    world.door.set(Mode::Pass);
    let status = ready(&registry, &source, &world.commit, &[]);
    assert_eq!(status.bytes_done, 6_000_000);
}

#[test]
fn a_fetch_that_has_had_its_turn_lets_others_go_first_and_goes_on() {
    let (slow, quick) = (world(3_000_000, 34), world(50_000, 35));
    slow.door.set(Mode::Drip);
    let registry = Server::with(|limits| {
        limits.max_fetches = 1;
        limits.fetch.turn = Duration::from_millis(300);
    });
    let slow_source = upstream(&slow.door.url("git/a/m.git"), "a", None);
    let quick_source = upstream(&quick.door.url("git/a/m.git"), "b", None);
    let start = Instant::now();
    while ask(&registry.address, &slow_source, &slow.commit, &[]).bytes_done == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    ready(&registry, &quick_source, &quick.commit, &[]);
    let status = ask(&registry.address, &slow_source, &slow.commit, &[]);
    assert_eq!(status.state, MirrorState::Fetching, "{status:?}");
    slow.door.set(Mode::Pass);
    ready(&registry, &slow_source, &slow.commit, &[]);
}

#[test]
fn a_pack_that_drips_gives_its_place_to_those_that_wait() {
    let (work, origin) = (Workspace::new(), Server::start());
    work.model("a", 1000, 38);
    std::fs::write(work.path("a/noise.txt"), noise(400_000, 39)).unwrap();
    let commit = work.commit("a");
    let url = origin.git_url(ADMIN, "git/a/m.git");
    work.git("a", &["push", "-q", &url, "main"]);
    let (slow, quick) = (Door::open(origin.address, true), world(50_000, 40));
    slow.set(Mode::DripPack);
    // It is fast enough for the least rate, and would end after more than a minute.
    let registry = Server::with(|limits| {
        limits.max_fetches = 1;
        limits.fetch.least_bytes_per_second = 1;
        limits.fetch.turn = Duration::from_secs(1);
        // So that the failure is still there when it is asked for.
        limits.min_backoff = Duration::from_secs(20);
        limits.max_backoff = Duration::from_secs(20);
    });
    let slow_source = upstream(&slow.url("git/a/m.git"), "a", None);
    let quick_source = upstream(&quick.door.url("git/a/m.git"), "b", None);
    let status = ask(&registry.address, &slow_source, &commit, &[]);
    assert_eq!(status.state, MirrorState::Fetching, "{status:?}");
    ready(&registry, &quick_source, &quick.commit, &[]);
    let error = settle(&registry, &slow_source, &commit, &[]).error.unwrap();
    assert_eq!(error.reason, reason::UPSTREAM_ERROR);
    let told = "others wait for the place";
    assert!(error.retriable && error.message.contains(told), "{error}");
    slow.set(Mode::Pass);
    ready(&registry, &slow_source, &commit, &[]);
}

#[test]
fn an_upload_that_drips_is_ended_and_holds_nobody_up() {
    use std::io::{Read, Write};
    let server = Server::with(|limits| {
        limits.max_uploads = 2;
        limits.transfer_idle = Duration::from_secs(1);
    });
    let bytes = noise(10_000, 36);
    let hostile = token("hostile", true);
    let start = || {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        write!(
            stream,
            "PUT /git/hostile/m.git/info/lfs/objects/{} HTTP/1.1\r\nhost: x\r\n\
             content-length: 10000\r\nauthorization: Bearer {hostile}\r\n\r\n",
            oid(&bytes)
        )
        .unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..6).map(|_| start()).collect();
    let url = server.url(&format!("/git/a/m.git/info/lfs/objects/{}", oid(&bytes)));
    let put = call("PUT", &url, &token("a", true), &[], Some(&bytes));
    assert_eq!(put.status, 200);
    // A byte now and then does not keep it alive.
    let began = Instant::now();
    let mut stream = streams.remove(0);
    while stream.write_all(b"x").is_ok() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it still takes bytes"
        );
        std::thread::sleep(Duration::from_millis(100));
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    let answer = batch(
        &server,
        NODE,
        "git/hostile/m",
        "download",
        &oid(&bytes),
        10_000,
    );
    assert!(answer.status == 404 || answer.json()["objects"][0]["error"]["code"] == 404);
}

#[test]
fn the_api_has_connections_that_downloads_cannot_take() {
    let server = Server::with(|limits| limits.max_connections = 4);
    let held: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect(server.address).unwrap())
        .collect();
    // So that they have come in before what follows.
    std::thread::sleep(Duration::from_millis(300));
    let events = call(
        "GET",
        &server.url("/api/v1/events?after=0"),
        ADMIN,
        &[],
        None,
    );
    assert_eq!(events.status, 200);
    let refs = server.url("/git/a/m.git/info/refs?service=git-upload-pack");
    let refused = call("GET", &refs, NODE, &[], None);
    assert_eq!(
        (refused.status, refused.header("connection")),
        (503, "close")
    );
    drop(held);
}
