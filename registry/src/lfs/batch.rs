//! `POST <repository>.git/info/lfs/objects/batch` and `.../verify`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Bytes,
    extract::State as AxumState,
    http::{HeaderMap, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use hyprstream_git2db::lfs::{
    Pointer,
    batch::{
        Action, Actions, BatchObject, BatchRequest, BatchResponse, ObjectError, ObjectResponse,
        Operation,
    },
};

use super::{json, object_missing, parse, parse_oid, parts, unprocessable};
use crate::{
    access::Access,
    let_go,
    names::Repository,
    refusal::Refusal,
    scrub,
    state::{State, blocking},
};

/// Says where to read or write objects.
pub(crate) async fn batch(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    parts: Parts,
    body: Bytes,
) -> Result<Response, Refusal> {
    let request: BatchRequest = parse(&body)?;
    if request.objects.len() > state.limits.max_batch_objects {
        let message = format!(
            "at most {} objects in one call",
            state.limits.max_batch_objects
        );
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BadRequest",
            message,
            false,
        ));
    }
    if request
        .hash_algo
        .as_deref()
        .is_some_and(|hash| hash != "sha256")
    {
        let message = "only the hash algorithm sha256 is known";
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "BadRequest",
            message,
            false,
        ));
    }
    let knows = |name: &str| request.transfers.iter().any(|transfer| transfer == name);
    // An empty object has no rest that could be sent.
    let resumes = request.operation == Operation::Upload
        && knows("tus")
        && request.objects.iter().all(|object| object.size > 0);
    if !request.transfers.is_empty() && !knows("basic") && !resumes {
        return Err(unprocessable(
            "only basic transfers are offered, and tus for uploads",
        ));
    }
    let repository = match request.operation {
        Operation::Download => access.readable(&state).await?,
        Operation::Upload => access.writable(&state).await?,
    }
    .clone();
    if request.operation == Operation::Download {
        state.touch(&repository);
    }
    let caller = Caller::new(&parts, &repository)?;
    let objects = blocking(move || {
        let free = state.layout.store().available_bytes().unwrap_or(0);
        let mut free = free.saturating_sub(state.limits.min_free_bytes);
        let answer = |object| match request.operation {
            Operation::Download => download(&state, &repository, &caller, object),
            Operation::Upload => upload(&state, &repository, &caller, object, resumes, &mut free),
        };
        request.objects.into_iter().map(answer).collect()
    })
    .await?;
    let hash_algo = Some("sha256".to_owned());
    json(&BatchResponse {
        transfer: Some(if resumes { "tus" } else { "basic" }.to_owned()),
        objects,
        hash_algo,
    })
}

/// Says whether an upload has arrived.
pub(crate) async fn verify(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    body: Bytes,
) -> Result<Response, Refusal> {
    let object: BatchObject = parse(&body)?;
    let repository = access.readable(&state).await?;
    let oid = parse_oid(&object.oid)?;
    let size = state
        .layout
        .member_size(repository, &oid)
        .map_err(|error| Refusal::internal("looking for an object", &error))?;
    match size {
        Some(size) if size == object.size => Ok(StatusCode::OK.into_response()),
        Some(size) => Err(unprocessable(format!("object {oid} has {size} bytes"))),
        None => Err(object_missing(&state, repository, &oid)),
    }
}

fn download(
    state: &Arc<State>,
    repository: &Repository,
    caller: &Caller,
    object: BatchObject,
) -> ObjectResponse {
    match size_here(state, repository, &object) {
        Err(error) => failed(object, error),
        Ok(None) => {
            let oid = object.oid.parse().ok();
            let why = oid.and_then(|oid| let_go::why(&state.layout, repository, &oid));
            let error = match why {
                Some(message) => ObjectError { code: 410, message },
                None => ObjectError {
                    code: 404,
                    message: "the object is not in this repository".to_owned(),
                },
            };
            failed(object, error)
        }
        Ok(Some(_)) => {
            let download = Some(caller.action(&format!("objects/{}", object.oid)));
            offered(
                object,
                Actions {
                    download,
                    ..Actions::default()
                },
            )
        }
    }
}

fn upload(
    state: &Arc<State>,
    repository: &Repository,
    caller: &Caller,
    object: BatchObject,
    resumes: bool,
    free: &mut u64,
) -> ObjectResponse {
    // Looked for only then: from here on it stays, since the client hears that it need not be sent.
    let oid = parse_oid(&object.oid).ok();
    if let Some(oid) = &oid {
        state.promised.promise(repository, oid);
    }
    let found = size_here(state, repository, &object);
    if let (Ok(None) | Err(_), Some(oid)) = (&found, &oid) {
        state.promised.forget(repository, oid);
    }
    match found {
        Err(error) => return failed(object, error),
        // No action means that there is nothing to upload.
        Ok(Some(_)) => {
            let BatchObject { oid, size } = object;
            return ObjectResponse {
                oid,
                size,
                ..ObjectResponse::default()
            };
        }
        Ok(None) => {}
    }
    if object.size > state.limits.max_object_bytes {
        let message = format!(
            "objects of more than {} bytes are not taken",
            state.limits.max_object_bytes
        );
        return failed(object, ObjectError { code: 413, message });
    }
    let folder = if resumes { "uploads" } else { "objects" };
    let here = match (resumes, oid) {
        (true, Some(oid)) => {
            let size = object.size;
            parts::offset(&state.layout, repository, &Pointer { oid, size })
        }
        _ => 0,
    };
    let Some(rest) = free.checked_sub(object.size - here) else {
        let message = format!(
            "no space is left on the registry: the object has {} bytes, {free} may still be \
             written; enlarge its volume or remove repositories",
            object.size
        );
        return failed(object, ObjectError { code: 507, message });
    };
    *free = rest;
    let actions = Actions {
        upload: Some(caller.action(&format!("{folder}/{}?size={}", object.oid, object.size))),
        verify: Some(caller.action("objects/verify")),
        ..Actions::default()
    };
    offered(object, actions)
}

/// The size of the object if the repository has it.
fn size_here(
    state: &Arc<State>,
    repository: &Repository,
    object: &BatchObject,
) -> Result<Option<u64>, ObjectError> {
    let invalid = |message: String| ObjectError { code: 422, message };
    let oid = parse_oid(&object.oid).map_err(|refusal| invalid(refusal.message))?;
    let size = state
        .layout
        .member_size(repository, &oid)
        .map_err(|error| {
            tracing::error!(%error, %oid, "an object cannot be looked at");
            ObjectError {
                code: 500,
                message: "the registry cannot read the object".to_owned(),
            }
        })?;
    match size {
        Some(size) if size != object.size => {
            // The client is wrong, or the disk has lost the end.
            scrub::suspect(state, &oid);
            Err(invalid(format!("the object has {size} bytes")))
        }
        other => Ok(other),
    }
}

fn failed(object: BatchObject, error: ObjectError) -> ObjectResponse {
    let BatchObject { oid, size } = object;
    ObjectResponse {
        oid,
        size,
        error: Some(error),
        ..ObjectResponse::default()
    }
}

fn offered(object: BatchObject, actions: Actions) -> ObjectResponse {
    let BatchObject { oid, size } = object;
    let (authenticated, actions) = (Some(true), Some(actions));
    ObjectResponse {
        oid,
        size,
        authenticated,
        actions,
        error: None,
    }
}

/// How the caller reaches us, and what it authenticated with.
struct Caller {
    base: String,
    header: BTreeMap<String, String>,
}

impl Caller {
    fn new(parts: &Parts, repository: &Repository) -> Result<Self, Refusal> {
        let origin = origin(&parts.uri, &parts.headers)
            .ok_or_else(|| Refusal::bad_request("the request names no host"))?;
        let authorization = parts.headers.get(header::AUTHORIZATION);
        let header = authorization
            .and_then(|value| value.to_str().ok())
            .map(|value| ("Authorization".to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        Ok(Self {
            base: format!("{origin}/{repository}.git/info/lfs/"),
            header,
        })
    }

    fn action(&self, path: &str) -> Action {
        let href = format!("{}{path}", self.base);
        Action {
            href,
            header: self.header.clone(),
            ..Action::default()
        }
    }
}

/// Scheme and host as the client wrote them: whatever leads here leads here again.
fn origin(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => text("host")?,
    };
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        _ => "http",
    };
    let harmless = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b));
    harmless.then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hrefs_lead_back_the_way_the_client_came() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| {
                    (
                        header::HeaderName::from_static(name),
                        value.parse().unwrap(),
                    )
                })
                .collect::<HeaderMap>()
        };
        let plain = Uri::from_static("/git/a/m.git/info/lfs/objects/batch");
        let host = headers(&[("host", "127.0.0.1:8080")]);
        assert_eq!(
            origin(&plain, &host).as_deref(),
            Some("http://127.0.0.1:8080")
        );
        let proxied = headers(&[("host", "r.example"), ("x-forwarded-proto", "https")]);
        assert_eq!(
            origin(&plain, &proxied).as_deref(),
            Some("https://r.example")
        );
        let http2 = Uri::from_static("http://registry.svc/x");
        assert_eq!(
            origin(&http2, &HeaderMap::new()).as_deref(),
            Some("http://registry.svc")
        );
        assert_eq!(origin(&plain, &headers(&[("host", "a/b")])), None);
        assert_eq!(origin(&plain, &HeaderMap::new()), None);
    }
}
