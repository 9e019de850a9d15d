//! An upstream: a door in front of another registry that counts what goes through it, lets
//! strangers in or not, and breaks things when told to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::StreamExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use parking_lot::Mutex;

use crate::{listen::Listening, server::ADMIN};

/// What the door does to downloads of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Gives other bytes.
    Corrupt,
    /// Gives so many bytes and then hangs.
    StallAfter(usize),
    /// Gives a little every 50 ms.
    Drip,
    /// Gives so little of a pack every 50 ms that it takes for ever.
    DripPack,
    /// Lets batch answers lead to another address.
    LeadTo(SocketAddr),
    /// Says that the object is not there, but offers it.
    Gone,
}

pub(crate) struct Door {
    listening: Listening,
    shared: Arc<Shared>,
}

struct Shared {
    behind: SocketAddr,
    /// Lets everyone in, as a public server does.
    public: bool,
    mode: Mutex<Mode>,
    downloads: AtomicUsize,
    bytes: AtomicU64,
    batches: AtomicUsize,
    requests: AtomicUsize,
    client: Client<HttpConnector, Body>,
}

impl Door {
    pub(crate) fn open(behind: SocketAddr, public: bool) -> Self {
        Self::open_at("127.0.0.1", behind, public)
    }

    /// The same at another address of this machine.
    pub(crate) fn open_at(address: &str, behind: SocketAddr, public: bool) -> Self {
        let shared = Arc::new(Shared {
            behind,
            public,
            mode: Mutex::new(Mode::Pass),
            downloads: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            client: Client::builder(TokioExecutor::new()).build_http(),
        });
        let app = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        Self {
            listening: Listening::app_at(SocketAddr::new(address.parse().unwrap(), 0), app),
            shared,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.listening.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.shared.mode.lock() = mode;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// Requests of all kinds.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Downloads of objects that were begun.
    pub(crate) fn downloads(&self) -> usize {
        self.shared.downloads.load(Ordering::SeqCst)
    }

    /// Bytes of objects that were given.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Batch calls.
    pub(crate) fn batches(&self) -> usize {
        self.shared.batches.load(Ordering::SeqCst)
    }
}

async fn pass(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let is_object = path.contains("/info/lfs/objects/")
        && !path.ends_with("/batch")
        && !path.ends_with("/verify");
    if path.ends_with("/batch") {
        shared.batches.fetch_add(1, Ordering::SeqCst);
    }
    let mode = *shared.mode.lock();
    if let (Mode::LeadTo(address), true) = (mode, path.ends_with("/batch")) {
        let host = HeaderValue::from_str(&address.to_string()).unwrap();
        request.headers_mut().insert(header::HOST, host);
    }
    if is_object {
        shared.downloads.fetch_add(1, Ordering::SeqCst);
        if mode == Mode::Gone {
            return StatusCode::NOT_FOUND.into_response();
        }
    }
    if shared.public {
        let basic = format!("Basic {}", STANDARD.encode(format!("door:{ADMIN}")));
        let value = HeaderValue::from_str(&basic).unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let target = request.uri().path_and_query().unwrap().clone();
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(shared.behind.to_string())
        .path_and_query(target)
        .build()
        .unwrap();
    let Ok(response) = shared.client.request(request).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let response = response.map(Body::new);
    if mode == Mode::DripPack && path.ends_with("/git-upload-pack") {
        return drip(response, 200);
    }
    if is_object && response.status().is_success() {
        object(&shared, response, mode)
    } else {
        response
    }
}

/// Gives so many bytes every 50 ms.
fn drip(response: Response, size: usize) -> Response {
    let (parts, body) = response.into_parts();
    let pieces = body.into_data_stream().flat_map(move |chunk| {
        let chunk: Bytes = chunk.unwrap();
        let pieces: Vec<_> = chunk.chunks(size).map(Bytes::copy_from_slice).collect();
        futures::stream::iter(pieces)
    });
    let slow = pieces.then(|piece| async move {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Ok::<_, std::convert::Infallible>(piece)
    });
    Response::from_parts(parts, Body::from_stream(slow))
}

fn object(shared: &Arc<Shared>, response: Response, mode: Mode) -> Response {
    let (parts, body) = response.into_parts();
    let shared = Arc::clone(shared);
    let counted = body.into_data_stream().map(move |chunk| {
        let chunk: Bytes = chunk?;
        shared.bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        Ok::<_, axum::Error>(match mode {
            Mode::Corrupt => chunk.iter().map(|byte| byte ^ 1).collect(),
            _ => chunk,
        })
    });
    if mode == Mode::Drip {
        return drip(
            Response::from_parts(parts, Body::from_stream(counted)),
            10_000,
        );
    }
    let Mode::StallAfter(limit) = mode else {
        return Response::from_parts(parts, Body::from_stream(counted));
    };
    let mut left = limit;
    let first = counted.map(move |chunk| {
        let mut chunk = chunk?;
        let whole = chunk.len() <= left;
        chunk.truncate(left);
        left -= chunk.len();
        Ok::<_, axum::Error>((chunk, whole))
    });
    let stalled = first.then(|chunk| async move {
        match chunk {
            Ok((chunk, _)) if chunk.is_empty() => std::future::pending().await,
            Ok((chunk, _)) => Ok(chunk),
            Err(error) => Err(error),
        }
    });
    Response::from_parts(parts, Body::from_stream(stalled))
}
