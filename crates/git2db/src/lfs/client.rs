//! The LFS client and its batch call.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ureq::http::Method;

use super::{
    Guard, LfsError, ObjectSource, Pointer,
    batch::{
        Action, BatchObject, BatchRef, BatchRequest, BatchResponse, CONTENT_TYPE, ObjectResponse,
        Operation,
    },
    http::{Call, Failure, Http, Payload, read_body},
    retry::Retry,
};
use crate::{Credentials, Digest, Observer, Pace, RemoteUrl, pace::Meter, store::ObjectStore};

/// The transfer that every server knows.
const BASIC: &str = "basic";
/// The one for uploads that can be continued: <https://tus.io/protocols/resumable-upload>.
const TUS: &str = "tus";
/// Most bytes of the answer to a batch call.
const MAX_ANSWER_BYTES: u64 = 10 << 20;

/// Downloads and uploads the LFS objects of one repository.
///
/// Credentials go only to the endpoint's own origin (scheme, host and port), never along a
/// redirect or an action to another one. A `.lfsconfig` in the repository is not read.
pub struct Client {
    pub(super) endpoint: String,
    pub(super) http: Http,
    pub(super) options: Options,
}

/// How a [`Client`] works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Transfers at the same time.
    pub parallel: usize,
    /// Objects in one batch call.
    pub batch_objects: usize,
    /// Attempts per call after failures that may pass. A download that gets on counts anew.
    pub attempts: u32,
    /// Wait after the first failure; doubled after every further one.
    pub backoff: Duration,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time without a byte after which a transfer is broken off and continued.
    pub stall_timeout: Duration,
    /// How slow the server may be: for each batch call, and for each object with all attempts at
    /// it and the waits between them. What came of a slow one is continued by the next call.
    pub pace: Pace,
    /// Longest wait between two attempts, also where the server asks for one (`Retry-After`).
    pub max_wait: Duration,
    /// The store holds objects of repositories that others own. The server is then asked about
    /// every object, those that the store has included, and one that it does not offer counts as
    /// missing: knowing the digest of an object is no right to its bytes.
    pub shared_store: bool,
}

impl Default for Options {
    /// 4 transfers, 100 objects, 5 attempts, half a second of wait doubled up to 60 s, 15 s to
    /// connect, 60 s without a byte, [`Pace::default`], a store of our own.
    fn default() -> Self {
        Self {
            parallel: 4,
            batch_objects: 100,
            attempts: 5,
            backoff: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_mins(1),
            pace: Pace::default(),
            max_wait: Duration::from_mins(1),
            shared_store: false,
        }
    }
}

/// What a transfer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Objects that were there already.
    pub objects_present: u64,
    /// Objects that this call transferred.
    pub objects_moved: u64,
    /// Bytes that came or went over the network for content, wasted ones included.
    pub bytes_moved: u64,
}

/// An answer about one object, with the time it came.
pub(super) struct Answer {
    pub(super) response: ObjectResponse,
    /// Whether an upload goes on where it broke off, by the protocol tus.
    pub(super) resumes: bool,
    came: Instant,
}

impl Client {
    /// A client for the LFS API beside `url`.
    pub fn new(
        url: &RemoteUrl,
        credentials: &Credentials,
        options: Options,
    ) -> Result<Self, LfsError> {
        let endpoint = url
            .lfs_endpoint()
            .ok_or_else(|| LfsError::UnsupportedRemote {
                url: url.to_string(),
            })?;
        let http = Http::new(&endpoint, credentials, &options)?;
        Ok(Self {
            endpoint,
            http,
            options,
        })
    }

    /// The client, which from now on connects only where `guard` allows it, also where an action
    /// or a redirect leads.
    #[must_use = "the client without the guard is gone"]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.http.guard(guard);
        self
    }

    /// Asks what to do with `objects`, as often as need be.
    pub(super) fn batch(
        &self,
        operation: Operation,
        objects: &[&Pointer],
        reference: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<HashMap<Digest, Answer>, LfsError> {
        let mut answers = HashMap::new();
        let mut pending = vec![objects];
        let mut retry = Retry::new(&self.options, observer);
        let url = format!("{}/objects/batch", self.endpoint);
        while let Some(part) = pending.pop() {
            if observer.is_cancelled() {
                return Err(LfsError::Cancelled);
            }
            match self.batch_once(&url, operation, part, reference) {
                Ok(response) => {
                    retry.reset();
                    let came = Instant::now();
                    let resumes = response.transfer.as_deref() == Some(TUS);
                    answers.extend(response.objects.into_iter().filter_map(|response| {
                        let oid = response.oid.parse().ok()?;
                        let answer = Answer {
                            response,
                            resumes,
                            came,
                        };
                        Some((oid, answer))
                    }));
                }
                Err(Failure::Status { status: 413, .. }) if part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    pending.extend([right, left]);
                }
                Err(Failure::Status {
                    status: status @ (404 | 405 | 410 | 501),
                    ..
                }) => {
                    return Err(LfsError::NoEndpoint {
                        url: self.endpoint.clone(),
                        status,
                    });
                }
                Err(failure) => {
                    retry.after(failure, &self.endpoint)?;
                    pending.push(part);
                }
            }
        }
        Ok(answers)
    }

    fn batch_once(
        &self,
        url: &str,
        operation: Operation,
        objects: &[&Pointer],
        reference: Option<&str>,
    ) -> Result<BatchResponse, Failure> {
        // The first one that a server knows is what it should take.
        let transfers: &[&str] = match operation {
            Operation::Download => &[BASIC],
            Operation::Upload => &[TUS, BASIC],
        };
        let request = BatchRequest {
            operation,
            transfers: transfers.iter().map(|&name| name.to_owned()).collect(),
            reference: reference.map(|name| BatchRef {
                name: name.to_owned(),
            }),
            objects: objects
                .iter()
                .map(|o| BatchObject {
                    oid: o.oid.to_string(),
                    size: o.size,
                })
                .collect(),
            hash_algo: Some("sha256".to_owned()),
        };
        let protocol = |detail: String| Failure::Broken {
            detail,
            may_pass: false,
        };
        let body = serde_json::to_vec(&request).map_err(|e| protocol(e.to_string()))?;
        let headers = ["Accept", "Content-Type"].map(|n| (n.to_owned(), CONTENT_TYPE.to_owned()));
        let response = self.http.call(&Call {
            method: Method::POST,
            url,
            headers: headers.to_vec(),
            body: Payload::Bytes(&body),
        })?;
        let text = read_body(
            response,
            MAX_ANSWER_BYTES,
            &mut Meter::new(self.options.pace),
        )?;
        let answer: BatchResponse = serde_json::from_slice(&text)
            .map_err(|e| protocol(format!("the batch answer cannot be read: {e}")))?;
        if let Some(other) = answer.transfer.as_deref()
            && !transfers.contains(&other)
        {
            return Err(protocol(format!(
                "it chose the transfer {other:?}, which was not offered"
            )));
        }
        if let Some(other) = answer.hash_algo.as_deref().filter(|t| *t != "sha256") {
            return Err(protocol(format!("it hashes with {other:?}, not sha256")));
        }
        Ok(answer)
    }

    /// The error of an object that the server does not transfer.
    pub(super) fn object_error(&self, oid: &Digest, answer: &ObjectResponse) -> LfsError {
        match &answer.error {
            Some(error) if matches!(error.code, 401 | 403) => LfsError::AuthenticationFailed {
                url: self.endpoint.clone(),
                status: error.code,
            },
            Some(error) if matches!(error.code, 404 | 410) => LfsError::MissingObject {
                oid: oid.clone(),
                detail: error
                    .message
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect(),
            },
            Some(error) => LfsError::Upstream {
                url: self.endpoint.clone(),
                detail: format!("object {oid}: {} ({})", error.message, error.code),
            },
            None => LfsError::Upstream {
                url: self.endpoint.clone(),
                detail: format!("it says nothing about object {oid}"),
            },
        }
    }
}

impl Answer {
    /// Where to get the object, if the server offers it.
    pub(super) fn download(&self) -> Option<&Action> {
        self.response.actions.as_ref()?.download.as_ref()
    }

    /// Whether the action may still be used.
    pub(super) fn is_fresh(&self, action: &Action) -> bool {
        match action.expires_in {
            // Some servers send 0 for "never".
            Some(seconds) if seconds > 0 => {
                self.came.elapsed() + Duration::from_secs(5)
                    < Duration::from_secs(seconds.unsigned_abs())
            }
            _ => true,
        }
    }
}

/// The headers of an action that we send; those that HTTP itself sets are left out.
pub(super) fn action_headers(action: &Action) -> Vec<(String, String)> {
    let own = [
        "host",
        "content-length",
        "connection",
        "transfer-encoding",
        "accept-encoding",
    ];
    action
        .header
        .iter()
        .filter(|(name, _)| !own.contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

impl ObjectSource for Client {
    fn fetch(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        self.download(objects, store, observer)
    }
}
