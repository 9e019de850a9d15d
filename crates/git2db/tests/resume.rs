//! Uploads to servers that say where an object goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{sync::Mutex, time::Duration};

use hyprstream_git2db::{
    Credentials, Digest, RemoteUrl,
    lfs::{
        Client, LfsError, Options, Pointer, Transfer,
        batch::{BatchRequest, Operation},
    },
    store::ObjectStore,
};
use support::{Request, Response, Server};

const CONTENT: &[u8] = b"ten bytes.";

/// Sends [`CONTENT`] to a server of tus that answers `HEAD` and `PATCH` as told. What came of it,
/// and the calls but for the batch call.
fn send(
    answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
) -> (Result<Transfer, LfsError>, Vec<Request>) {
    let server = Server::start(move |request| {
        if !request.path.ends_with("/batch") {
            return answer(request);
        }
        let batch: BatchRequest = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(batch.transfers, ["tus", "basic"]);
        let object = &batch.objects[0];
        let host = request.header("host").unwrap();
        let body = format!(
            r#"{{"transfer":"tus","objects":[{{"oid":"{}","size":{},"actions":{{"upload":
            {{"href":"http://{host}/up","header":{{"X-Key":"k"}}}}}}}}]}}"#,
            object.oid, object.size
        );
        Response::new(200).body(body)
    });
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let object = Pointer {
        oid: store.insert_bytes(CONTENT).unwrap(),
        size: CONTENT.len() as u64,
    };
    let url = RemoteUrl::parse(&server.url("/a.git")).unwrap();
    let options = Options {
        attempts: 3,
        backoff: Duration::from_millis(1),
        ..Options::default()
    };
    let client = Client::new(&url, &Credentials::None, options).unwrap();
    let sent = client.upload(&[object], &store, None, &());
    let mut calls = server.requests();
    calls.retain(|call| !call.path.ends_with("/batch"));
    (sent, calls)
}

fn at(offset: usize) -> Response {
    Response::new(200).header("Upload-Offset", offset.to_string())
}

#[test]
fn what_the_server_has_is_not_sent_again() {
    let (sent, calls) = send(|request| match &*request.method {
        "HEAD" => at(7),
        _ => Response::new(204).header("Upload-Offset", "10"),
    });
    let moved = Transfer {
        objects_moved: 1,
        bytes_moved: 3,
        ..Transfer::default()
    };
    assert_eq!(sent.unwrap(), moved);
    let [head, patch] = &calls[..] else {
        panic!("{} calls", calls.len());
    };
    for call in [head, patch] {
        assert_eq!(call.header("tus-resumable"), Some("1.0.0"));
        assert_eq!(call.header("x-key"), Some("k"));
    }
    assert_eq!((&*patch.method, &patch.body[..]), ("PATCH", &CONTENT[7..]));
    assert_eq!(patch.header("upload-offset"), Some("7"));
    let kind = Some("application/offset+octet-stream");
    assert_eq!(patch.header("content-type"), kind);
}

#[test]
fn an_attempt_that_got_further_counts_anew() {
    // Ten attempts of a byte each, though three that get nowhere would be the end.
    let stands = Mutex::new(0);
    let (sent, calls) = send(move |request| {
        let mut stands = stands.lock().unwrap();
        if request.method == "HEAD" {
            return at(*stands);
        }
        *stands += 1;
        Response::new(if *stands == 10 { 204 } else { 502 })
    });
    assert_eq!(sent.unwrap().objects_moved, 1);
    assert_eq!(calls.len(), 20);
}

#[test]
fn an_upload_that_others_overtook_is_asked_about_again() {
    let stands = Mutex::new(0);
    let (sent, calls) = send(move |request| {
        let mut stands = stands.lock().unwrap();
        match (&*request.method, *stands) {
            ("HEAD", offset) => at(offset),
            (_, 0) => {
                *stands = 10;
                Response::new(409)
            }
            _ => Response::new(500),
        }
    });
    assert_eq!(sent.unwrap().bytes_moved, 0);
    assert_eq!(calls.len(), 3);
}

#[test]
fn a_server_that_does_not_say_where_is_named() {
    for offset in ["", "11", "-1", "x"] {
        let (sent, calls) =
            send(move |_| Response::new(200).header("Upload-Offset", offset.to_owned()));
        let error = sent.unwrap_err();
        assert!(error.to_string().contains("goes on"), "{offset}: {error}");
        assert_eq!(calls.len(), 1);
    }
}

#[test]
fn an_answer_that_breaks_off_is_no_success() {
    let (sent, calls) = send(|request| match &*request.method {
        "HEAD" => at(0),
        // It says that more is to come, and ends.
        _ => Response {
            declared: Some(5),
            ..Response::new(200).body("  ")
        },
    });
    assert_eq!(sent.unwrap_err().reason(), "UpstreamError");
    assert_eq!(calls.len(), 6);
}

#[test]
fn downloads_are_asked_for_in_the_old_way() {
    let server = Server::start(|request| {
        let batch: BatchRequest = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(batch.operation, Operation::Download);
        assert_eq!(batch.transfers, ["basic"]);
        Response::new(200).body(r#"{"transfer":"tus","objects":[]}"#)
    });
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let url = RemoteUrl::parse(&server.url("/a.git")).unwrap();
    let client = Client::new(&url, &Credentials::None, Options::default()).unwrap();
    let object = Pointer {
        oid: Digest::of(b"x"),
        size: 1,
    };
    let error = client.download(&[object], &store, &()).unwrap_err();
    assert!(error.to_string().contains("not offered"), "{error}");
}
