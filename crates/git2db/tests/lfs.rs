//! Downloads and uploads against LFS servers that behave well and badly.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyprstream_git2db::{
    Cancel, Credentials, Digest, Observer, Progress, RemoteUrl, Watch,
    lfs::{Client, LfsError, ObjectSource, Options, Pointer, Transfer},
    store::ObjectStore,
};
use support::{LfsServer, Request, Response, Server, git::basic, lfs};

fn options() -> Options {
    Options {
        backoff: Duration::from_millis(1),
        stall_timeout: Duration::from_secs(5),
        max_wait: Duration::from_secs(2),
        ..Options::default()
    }
}

fn client(url: &RemoteUrl) -> Client {
    Client::new(url, &Credentials::None, options()).unwrap()
}

fn with_token(url: &RemoteUrl) -> Client {
    Client::new(url, &Credentials::Token("t0ken".into()), options()).unwrap()
}

fn store() -> (tempfile::TempDir, ObjectStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    (dir, store)
}

fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[track_caller]
fn is_stored(store: &ObjectStore, pointer: &Pointer, content: &[u8]) {
    assert_eq!(std::fs::read(store.path(&pointer.oid)).unwrap(), content);
}

/// Nothing is visible of the object, and no part is left that counts as it.
#[track_caller]
fn is_absent(store: &ObjectStore, pointer: &Pointer) {
    assert!(!store.contains(&pointer.oid));
}

fn is_get(request: &Request) -> bool {
    request.method == "GET" && request.path.starts_with("/obj/")
}

#[test]
fn objects_come_once_and_progress_ends_at_the_total() {
    let server = LfsServer::start();
    let contents: Vec<_> = (0..10)
        .map(|i| content(i, 50_000 + usize::from(i)))
        .collect();
    let pointers: Vec<_> = contents.iter().map(|c| server.put(c)).collect();
    let (_dir, store) = store();
    let seen = Mutex::new(Vec::new());
    let watch = Watch {
        on_progress: |p| seen.lock().unwrap().push(p),
        cancel: Cancel::new(),
    };
    let moved = client(&server.url())
        .fetch(&pointers, &store, &watch)
        .unwrap();
    let total: u64 = pointers.iter().map(|p| p.size).sum();
    assert_eq!(
        moved,
        Transfer {
            objects_present: 0,
            objects_moved: 10,
            bytes_moved: total
        }
    );
    for (pointer, content) in pointers.iter().zip(&contents) {
        is_stored(&store, pointer, content);
    }
    let end = Progress::Objects {
        bytes_done: total,
        bytes_total: total,
    };
    assert!(seen.lock().unwrap().contains(&end));
    let again = client(&server.url())
        .download(&pointers, &store, &())
        .unwrap();
    assert_eq!(
        again,
        Transfer {
            objects_present: 10,
            ..Transfer::default()
        }
    );
    assert_eq!(server.downloads().len(), 10);
}

#[test]
fn many_clients_at_once_download_an_object_once() {
    let server = LfsServer::start();
    let big = content(1, 3_000_000);
    let pointer = server.put(&big);
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let own = ObjectStore::open(store.root()).unwrap();
                client(&server.url())
                    .download(&[pointer.clone()], &own, &())
                    .unwrap();
            });
        }
    });
    is_stored(&store, &pointer, &big);
    assert_eq!(server.downloads().len(), 1);
}

#[test]
fn a_missing_object_is_named_and_the_others_stay() {
    let server = LfsServer::start();
    let there = server.put(b"there");
    let missing = Pointer {
        oid: Digest::of(b"missing"),
        size: 7,
    };
    let (_dir, store) = store();
    let one_by_one = Options {
        parallel: 1,
        ..options()
    };
    let client = Client::new(&server.url(), &Credentials::None, one_by_one).unwrap();
    let error = client
        .download(&[there.clone(), missing.clone()], &store, &())
        .unwrap_err();
    assert_eq!(error.reason(), "MissingLFSObject", "{error}");
    assert!(error.to_string().contains(missing.oid.as_str()), "{error}");
    is_stored(&store, &there, b"there");
}

#[test]
fn a_shared_store_gives_only_what_the_server_offers() {
    let server = LfsServer::start();
    let (_dir, store) = store();
    let ours = server.put(b"ours");
    let shared = Options {
        shared_store: true,
        ..options()
    };
    let client = Client::new(&server.url(), &Credentials::None, shared).unwrap();
    client.download(&[ours.clone()], &store, &()).unwrap();
    let again = client.download(&[ours.clone()], &store, &()).unwrap();
    assert_eq!((again.objects_present, again.objects_moved), (1, 0));

    let other = LfsServer::start();
    let theirs = other.put(b"theirs");
    Client::new(&other.url(), &Credentials::None, shared)
        .unwrap()
        .download(&[theirs.clone()], &store, &())
        .unwrap();
    let error = client
        .download(&[ours, theirs.clone()], &store, &())
        .unwrap_err();
    assert_eq!(error.reason(), "MissingLFSObject", "{error}");
    assert!(error.to_string().contains(theirs.oid.as_str()), "{error}");
    assert_eq!(server.downloads().len(), 1);
}

#[test]
fn corrupt_bytes_are_fetched_once_more_and_never_visible() {
    let gets = Arc::new(AtomicUsize::new(0));
    let counter = gets.clone();
    let server = LfsServer::with_hook(move |request| {
        is_get(request).then(|| {
            counter.fetch_add(1, Ordering::SeqCst);
            Response::new(200).body("hellO")
        })
    });
    let pointer = server.put(b"hello");
    let (_dir, store) = store();
    let error = client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap_err();
    assert!(matches!(error, LfsError::Mismatch { .. }), "{error}");
    assert_eq!(error.reason(), "DigestMismatch");
    assert_eq!(gets.load(Ordering::SeqCst), 2);
    is_absent(&store, &pointer);
    // Once the server has the right bytes, the same store takes them.
    let good = LfsServer::start();
    good.put(b"hello");
    client(&good.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    is_stored(&store, &pointer, b"hello");
}

#[test]
fn bytes_beyond_the_size_are_refused() {
    let server = LfsServer::with_hook(|request| {
        is_get(request).then(|| Response::new(200).body(vec![0; 1 << 20]))
    });
    let pointer = server.put(b"hello");
    let (_dir, store) = store();
    let error = client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch", "{error}");
    is_absent(&store, &pointer);
}

#[test]
fn a_broken_transfer_is_continued_with_a_range() {
    let big = content(2, 1_000_000);
    let whole = big.clone();
    let broken = AtomicUsize::new(0);
    let server = LfsServer::with_hook(move |request| {
        (is_get(request) && broken.fetch_add(1, Ordering::SeqCst) < 2).then(|| {
            let mut response = lfs::ranged(request, &whole);
            response.declared = Some(response.body.len());
            response.body.truncate(300_000);
            response
        })
    });
    let pointer = server.put(&big);
    let (_dir, store) = store();
    let moved = client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    is_stored(&store, &pointer, &big);
    assert_eq!(moved.bytes_moved, 1_000_000, "nothing is sent twice");
    let ranges: Vec<_> = server
        .downloads()
        .iter()
        .map(|r| r.header("range").map(str::to_owned))
        .collect();
    let range = |from: usize| Some(format!("bytes={from}-999999"));
    assert_eq!(ranges, [None, range(300_000), range(600_000)]);
}

#[test]
fn a_part_left_by_a_killed_process_is_continued_also_if_it_went_bad() {
    for (good, sent) in [(true, 600_000), (false, 600_000 + 1_000_000)] {
        let big = content(3, 1_000_000);
        let server = LfsServer::start();
        let pointer = server.put(&big);
        let (_dir, store) = store();
        let mut part = big[..400_000].to_vec();
        if !good {
            part[5] ^= 1;
        }
        let path = store.root().join("parts").join(pointer.oid.as_str());
        std::fs::write(path, part).unwrap();
        let moved = client(&server.url())
            .download(&[pointer.clone()], &store, &())
            .unwrap();
        is_stored(&store, &pointer, &big);
        assert_eq!(moved.bytes_moved, sent);
        assert_eq!(
            server.downloads()[0].header("range"),
            Some("bytes=400000-999999")
        );
    }
}

#[test]
fn a_server_that_ignores_or_refuses_ranges_starts_over() {
    for status in [200, 206, 416] {
        let big = content(4, 100_000);
        let whole = big.clone();
        let server = LfsServer::with_hook(move |request| {
            (is_get(request) && request.header("range").is_some()).then(|| match status {
                // A range that was not asked for.
                206 => Response::new(206)
                    .header("Content-Range", "bytes 0-9/100000")
                    .body(&whole[..10]),
                200 => Response::new(200).body(whole.clone()),
                other => Response::new(other),
            })
        });
        let pointer = server.put(&big);
        let (_dir, store) = store();
        let path = store.root().join("parts").join(pointer.oid.as_str());
        std::fs::write(path, &big[..50_000]).unwrap();
        client(&server.url())
            .download(&[pointer.clone()], &store, &())
            .unwrap();
        is_stored(&store, &pointer, &big);
    }
}

#[test]
fn failures_that_pass_are_waited_out_and_others_not() {
    for (status, attempts) in [(429, 2), (500, 2), (503, 2), (408, 2)] {
        for on_batch in [true, false] {
            let failures = Arc::new(AtomicUsize::new(0));
            let counter = failures.clone();
            let server = LfsServer::with_hook(move |request| {
                let here = if on_batch {
                    request.method == "POST"
                } else {
                    is_get(request)
                };
                (here && counter.fetch_add(1, Ordering::SeqCst) + 1 < attempts)
                    .then(|| Response::new(status).header("Retry-After", "0"))
            });
            let pointer = server.put(b"hello");
            let (_dir, store) = store();
            client(&server.url())
                .download(&[pointer.clone()], &store, &())
                .unwrap();
            is_stored(&store, &pointer, b"hello");
            assert_eq!(failures.load(Ordering::SeqCst), attempts);
        }
    }
    for (status, reason, calls) in [
        (401, "AuthenticationFailed", 1),
        (403, "AuthenticationFailed", 1),
        (404, "UpstreamError", 1),
        (422, "UpstreamError", 1),
        (500, "UpstreamError", 5),
        (429, "UpstreamError", 5),
    ] {
        let server = Server::start(move |_| Response::new(status));
        let url = RemoteUrl::parse(&server.url("/repo")).unwrap();
        let (_dir, store) = store();
        let pointer = Pointer {
            oid: Digest::of(b"x"),
            size: 1,
        };
        let error = client(&url).download(&[pointer], &store, &()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert_eq!(server.requests().len(), calls, "{status}");
        assert_eq!(
            server.requests()[0].path,
            "/repo.git/info/lfs/objects/batch"
        );
    }
}

#[test]
fn a_wait_longer_than_we_grant_is_reported() {
    let server = Server::start(|_| Response::new(429).header("Retry-After", "3600"));
    let url = RemoteUrl::parse(&server.url("/repo")).unwrap();
    let (_dir, store) = store();
    let pointer = Pointer {
        oid: Digest::of(b"x"),
        size: 1,
    };
    let error = client(&url).download(&[pointer], &store, &()).unwrap_err();
    let hour = Some(Duration::from_hours(1));
    assert!(matches!(error, LfsError::RateLimited { retry_after, .. } if retry_after == hour));
}

#[test]
fn a_batch_that_is_too_large_is_halved() {
    let server = LfsServer::with_hook(|request| {
        let objects = request.body.windows(5).filter(|w| w == b"\"oid\"").count();
        (request.method == "POST" && objects > 3).then(|| Response::new(413))
    });
    let pointers: Vec<_> = (0..10).map(|i| server.put(&content(i, 10))).collect();
    let (_dir, store) = store();
    let moved = client(&server.url())
        .download(&pointers, &store, &())
        .unwrap();
    assert_eq!(moved.objects_moved, 10);
}

/// A batch answer that sends every object to `href`, with these headers.
fn directed(href: String, header: &str) -> impl Fn(&Request) -> Option<Response> {
    let header = header.to_owned();
    move |request| {
        request.path.ends_with("/batch").then(|| {
            let batch: hyprstream_git2db::lfs::batch::BatchRequest =
                serde_json::from_slice(&request.body).unwrap();
            let object = &batch.objects[0];
            let body = format!(
                r#"{{"objects":[{{"oid":"{}","size":{},"actions":{{"download":
                {{"href":"{href}/{}","header":{header}}}}}}}]}}"#,
                object.oid, object.size, object.oid
            );
            Response::new(200).body(body)
        })
    }
}

#[test]
fn the_token_goes_to_the_endpoint_and_its_own_actions_only() {
    let expected = basic("x-access-token", "t0ken");
    // Its own actions get it.
    let server = LfsServer::start();
    let pointer = server.put(b"hello");
    let (_dir, own) = store();
    with_token(&server.url())
        .download(&[pointer.clone()], &own, &())
        .unwrap();
    for request in server.http.requests() {
        assert_eq!(
            request.header("authorization"),
            Some(&*expected),
            "{}",
            request.path
        );
    }
    // Another host does not, though it is the same machine; and our host gets what the action
    // says instead.
    let storage = LfsServer::start();
    let pointer = storage.put(b"hello");
    let asked = LfsServer::with_hook(directed(storage.http.url_as_localhost("/obj"), "{}"));
    let (_dir, other) = store();
    with_token(&asked.url())
        .download(&[pointer.clone()], &other, &())
        .unwrap();
    assert_eq!(
        asked.http.requests()[0].header("authorization"),
        Some(&*expected)
    );
    assert_eq!(storage.downloads()[0].header("authorization"), None);

    let action = r#"{"Authorization":"Bearer once","X-Own":"1"}"#;
    let asked = LfsServer::with_hook(directed(storage.http.url_as_localhost("/obj"), action));
    let (_dir, third) = store();
    with_token(&asked.url())
        .download(&[pointer], &third, &())
        .unwrap();
    assert_eq!(
        storage.downloads()[1].header("authorization"),
        Some("Bearer once")
    );
    assert_eq!(storage.downloads()[1].header("x-own"), Some("1"));
}

#[test]
fn no_credential_follows_a_redirect_to_another_host() {
    let storage = LfsServer::start();
    let pointer = storage.put(b"hello");
    let elsewhere = storage.http.url_as_localhost("");
    let server = LfsServer::with_hook(move |request| {
        let to = format!("{elsewhere}{}", request.path);
        (!request.path.contains("nowhere")).then(|| Response::new(307).header("Location", to))
    });
    let (_dir, first) = store();
    // The batch call itself is redirected, and then every download too.
    with_token(&server.url())
        .download(&[pointer.clone()], &first, &())
        .unwrap();
    is_stored(&first, &pointer, b"hello");
    let action = r#"{"Authorization":"Bearer once","Cookie":"c"}"#;
    let asked = LfsServer::with_hook(directed(server.http.url("/obj"), action));
    let (_dir, second) = store();
    with_token(&asked.url())
        .download(&[pointer.clone()], &second, &())
        .unwrap();
    is_stored(&second, &pointer, b"hello");
    assert!(storage.http.requests().len() >= 3);
    for request in storage.http.requests() {
        assert_eq!(request.header("authorization"), None, "{}", request.path);
        assert_eq!(request.header("cookie"), None, "{}", request.path);
    }
}

#[test]
fn an_expired_action_is_asked_for_again() {
    let refused = AtomicUsize::new(0);
    let server = LfsServer::with_hook(move |request| {
        (is_get(request) && refused.fetch_add(1, Ordering::SeqCst) == 0).then(|| Response::new(403))
    });
    let pointer = server.put(b"hello");
    let (_dir, store) = store();
    client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    is_stored(&store, &pointer, b"hello");
    let batches = server
        .http
        .requests()
        .iter()
        .filter(|r| r.method == "POST")
        .count();
    assert_eq!(batches, 2);
}

#[test]
fn an_action_to_anything_but_http_is_refused() {
    let server = LfsServer::with_hook(directed("file:///etc/passwd?".to_owned(), "{}"));
    let (_dir, store) = store();
    let pointer = Pointer {
        oid: Digest::of(b"x"),
        size: 1,
    };
    let error = client(&server.url())
        .download(&[pointer], &store, &())
        .unwrap_err();
    assert_eq!(error.reason(), "UpstreamError", "{error}");
}

#[test]
fn unreachable_and_unsupported_remotes_are_told_apart() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (_dir, store) = store();
    let pointer = Pointer {
        oid: Digest::of(b"x"),
        size: 1,
    };
    for url in [
        format!("http://{closed}/a"),
        "http://no-such-host.invalid/a".to_owned(),
    ] {
        let url = RemoteUrl::parse(&url).unwrap();
        let error = client(&url)
            .download(&[pointer.clone()], &store, &())
            .unwrap_err();
        assert_eq!(error.reason(), "HostUnreachable", "{error}");
    }
    let ssh = RemoteUrl::parse("git@host:a/b").unwrap();
    let Err(error) = Client::new(&ssh, &Credentials::None, options()) else {
        panic!("LFS over ssh is not supported");
    };
    assert!(
        error.to_string().contains("git-lfs-authenticate"),
        "{error}"
    );
}

#[test]
fn cancelling_ends_a_download_and_keeps_the_part() {
    let big = content(5, 4_000_000);
    let server = LfsServer::start();
    let pointer = server.put(&big);
    let (_dir, store) = store();
    let cancel = Cancel::new();
    let watch = Watch {
        on_progress: |p| {
            if matches!(p, Progress::Objects { bytes_done, .. } if bytes_done > 1_000_000) {
                cancel.cancel();
            }
        },
        cancel: cancel.clone(),
    };
    let error = client(&server.url())
        .download(&[pointer.clone()], &store, &watch)
        .unwrap_err();
    assert!(matches!(error, LfsError::Cancelled), "{error}");
    is_absent(&store, &pointer);
    let moved = client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    assert!(moved.bytes_moved < 3_100_000, "{moved:?}");
    is_stored(&store, &pointer, &big);
    assert!(cancel.is_cancelled());
}

#[test]
fn uploads_are_verified_and_only_what_is_missing_is_sent() {
    let server = LfsServer::start();
    let there = server.put(b"there");
    let (_dir, store) = store();
    let new = content(6, 700_000);
    let pointer = Pointer {
        oid: store.insert_bytes(&new).unwrap(),
        size: 700_000,
    };
    let objects = [there, pointer.clone()];
    let client = with_token(&server.url());
    let moved = client
        .upload(&objects, &store, Some("refs/heads/main"), &())
        .unwrap();
    let expected = Transfer {
        objects_present: 1,
        objects_moved: 1,
        bytes_moved: 700_000,
    };
    assert_eq!(moved, expected);
    assert_eq!(server.objects.lock().unwrap()[pointer.oid.as_str()], new);
    let requests = server.http.requests();
    let methods: Vec<_> = requests.iter().map(|r| (&*r.method, &*r.path)).collect();
    assert!(methods.contains(&("POST", "/verify")), "{methods:?}");
    let put = requests.iter().find(|r| r.method == "PUT").unwrap();
    assert_eq!(put.header("content-length"), Some("700000"));
    assert_eq!(put.header("content-type"), Some("application/octet-stream"));
    assert!(String::from_utf8_lossy(&requests[0].body).contains("refs/heads/main"));
    let missing = Pointer {
        oid: Digest::of(b"nowhere"),
        size: 7,
    };
    let error = client.upload(&[missing], &store, None, &()).unwrap_err();
    assert!(matches!(error, LfsError::NotInStore { .. }), "{error}");
}

#[test]
fn a_failed_upload_is_repeated_and_a_failed_verification_reported() {
    let failures = AtomicUsize::new(0);
    let server = LfsServer::with_hook(move |request| {
        (request.method == "PUT" && failures.fetch_add(1, Ordering::SeqCst) == 0)
            .then(|| Response::new(502))
    });
    let (_dir, store) = store();
    let pointer = Pointer {
        oid: store.insert_bytes(b"hello").unwrap(),
        size: 5,
    };
    client(&server.url())
        .upload(&[pointer.clone()], &store, None, &())
        .unwrap();
    assert_eq!(
        server.objects.lock().unwrap()[pointer.oid.as_str()],
        b"hello"
    );

    let server =
        LfsServer::with_hook(|request| (request.path == "/verify").then(|| Response::new(422)));
    let error = client(&server.url())
        .upload(&[pointer], &store, None, &())
        .unwrap_err();
    assert_eq!(error.reason(), "UpstreamError", "{error}");
}
