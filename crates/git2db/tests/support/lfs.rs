//! An LFS server in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use hyprstream_git2db::{Digest, lfs::Pointer, lfs::batch::*};

use super::http::{Request, Response, Server};

/// What a test puts in the way: looks at a request first and may answer it.
pub type Hook = dyn Fn(&Request) -> Option<Response> + Send + Sync;

pub struct LfsServer {
    pub http: Server,
    pub objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl LfsServer {
    pub fn start() -> Self {
        Self::with_hook(|_| None)
    }

    pub fn with_hook(hook: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static) -> Self {
        let objects: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let shared = objects.clone();
        let http = Server::start(move |request| match hook(request) {
            Some(response) => response,
            None => answer(request, &shared),
        });
        Self { http, objects }
    }

    pub fn put(&self, content: &[u8]) -> Pointer {
        let oid = Digest::of(content);
        self.objects
            .lock()
            .unwrap()
            .insert(oid.to_string(), content.to_vec());
        Pointer {
            oid,
            size: content.len() as u64,
        }
    }

    pub fn url(&self) -> hyprstream_git2db::RemoteUrl {
        hyprstream_git2db::RemoteUrl::parse(&self.http.url("/repo.git")).unwrap()
    }

    pub fn downloads(&self) -> Vec<Request> {
        let requests = self.http.requests();
        requests
            .into_iter()
            .filter(|r| r.method == "GET" && r.path.starts_with("/obj/"))
            .collect()
    }
}

/// The plain behaviour: batch, GET with ranges, PUT, verify.
pub fn answer(request: &Request, objects: &Mutex<HashMap<String, Vec<u8>>>) -> Response {
    let host = request.header("host").unwrap_or_default().to_owned();
    if request.path.ends_with("/objects/batch") {
        let batch: BatchRequest = serde_json::from_slice(&request.body).unwrap();
        return json(&respond(&batch, &host, objects));
    }
    if request.path == "/verify" {
        let object: BatchObject = serde_json::from_slice(&request.body).unwrap();
        let there = objects
            .lock()
            .unwrap()
            .get(&object.oid)
            .map(|c| c.len() as u64);
        return Response::new(if there == Some(object.size) { 200 } else { 422 });
    }
    let Some(oid) = request.path.strip_prefix("/obj/") else {
        return Response::new(404);
    };
    if request.method == "PUT" {
        if Digest::of(&request.body).as_str() != oid {
            return Response::new(422);
        }
        objects
            .lock()
            .unwrap()
            .insert(oid.to_owned(), request.body.clone());
        return Response::new(200);
    }
    match objects.lock().unwrap().get(oid) {
        None => Response::new(404),
        Some(content) => ranged(request, content),
    }
}

/// The content, or the part that a Range header asks for.
pub fn ranged(request: &Request, content: &[u8]) -> Response {
    let Some(range) = request
        .header("range")
        .and_then(|r| r.strip_prefix("bytes="))
    else {
        return Response::new(200).body(content);
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last
        .parse()
        .unwrap_or(content.len() - 1)
        .min(content.len().saturating_sub(1));
    if first >= content.len() {
        return Response::new(416);
    }
    Response::new(206)
        .header(
            "Content-Range",
            format!("bytes {first}-{last}/{}", content.len()),
        )
        .body(&content[first..=last])
}

pub fn json(value: &impl serde::Serialize) -> Response {
    Response::new(200)
        .header("Content-Type", CONTENT_TYPE)
        .body(serde_json::to_vec(value).unwrap())
}

fn respond(
    batch: &BatchRequest,
    host: &str,
    objects: &Mutex<HashMap<String, Vec<u8>>>,
) -> BatchResponse {
    let objects = objects.lock().unwrap();
    let action = |path: &str| Action {
        href: format!("http://{host}{path}"),
        ..Action::default()
    };
    let answers = batch.objects.iter().map(|object| {
        let there = objects.contains_key(&object.oid);
        let at = format!("/obj/{}", object.oid);
        let mut answer = ObjectResponse {
            oid: object.oid.clone(),
            size: object.size,
            ..Default::default()
        };
        match (batch.operation, there) {
            (Operation::Download, true) => {
                answer.actions = Some(Actions {
                    download: Some(action(&at)),
                    ..Actions::default()
                });
            }
            (Operation::Download, false) => {
                answer.error = Some(ObjectError {
                    code: 404,
                    message: "not here".into(),
                });
            }
            (Operation::Upload, true) => {}
            (Operation::Upload, false) => {
                answer.actions = Some(Actions {
                    upload: Some(action(&at)),
                    verify: Some(action("/verify")),
                    ..Actions::default()
                });
            }
        }
        answer
    });
    BatchResponse {
        transfer: Some("basic".into()),
        objects: answers.collect(),
        hash_algo: None,
    }
}
