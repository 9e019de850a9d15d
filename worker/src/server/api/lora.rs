//! Adapters that are loaded and unloaded on request, and the list of all.

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyprstream_contract::worker_adapters::WorkerAdapters;
use hyprstream_openai::{
    ApiError, ErrorKind, ErrorObject, Model, Provenance,
    adapters::{AdapterErrorBody, LoadAdapterRequest, MISSING_FIELD, UnloadAdapterRequest},
};

use super::{Shared, compute};
use crate::{
    adapters::{LoadRequest, RequestError},
    server::{app::App, respond::Failure},
};

pub(super) async fn list(State(app): Shared) -> Result<Json<WorkerAdapters>, Failure> {
    Ok(Json(app.adapters()?.list()))
}

pub(super) async fn load(State(app): Shared, request: Request) -> Result<String, Refusal> {
    let _in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let request = compute(&app, move |_| LoadAdapterRequest::from_json(&body)).await?;
    let name = request.name.clone();
    let request = LoadRequest {
        name: request.name,
        path: request.path,
        in_place: request.in_place,
        expected_digest: request.expected_digest,
    };
    app.adapters()?.load(request).await?;
    Ok(format!(
        "Success: LoRA adapter '{name}' added successfully."
    ))
}

pub(super) async fn unload(State(app): Shared, request: Request) -> Result<String, Refusal> {
    let _in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let request = compute(&app, move |_| UnloadAdapterRequest::from_json(&body)).await?;
    let UnloadAdapterRequest { name } = request;
    app.adapters()?.unload(&name).await?;
    Ok(format!(
        "Success: LoRA adapter '{name}' removed successfully."
    ))
}

/// The adapters that requests may name as their `model`, each as a child of `model`.
pub(super) fn models(app: &App, model: &Model) -> Vec<Model> {
    // Until the model is loaded there are none.
    let list = app.adapters().map(|adapters| adapters.list().data);
    let served = list.unwrap_or_default().into_iter().filter_map(|adapter| {
        let serving = adapter.serving?;
        let provenance = Provenance {
            commit: adapter.commit.map(|c| c.to_string()).unwrap_or_default(),
            digest: Some(serving.digest),
            rank: Some(serving.rank),
            ..Provenance::default()
        };
        // The model's own name is the model's.
        (adapter.name != model.id).then(|| Model {
            id: adapter.name,
            root: Some(adapter.source),
            parent: Some(model.id.clone()),
            created: serving.loaded_at,
            hyprstream: Some(provenance),
            ..model.clone()
        })
    });
    served.collect()
}

/// An error of a load route.
#[derive(Debug)]
pub(super) struct Refusal {
    error: ApiError,
    /// vLLM's word for its class. `InvalidUserInput` is what clients read as "already loaded", so
    /// that nothing else may be called so but what vLLM does.
    kind: &'static str,
}

const TAKEN: &str = "InvalidUserInput";
const NOT_FOUND: &str = "NotFoundError";
const BAD: &str = "BadRequestError";

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let kind = match error.kind {
            _ if error.code.as_deref() == Some(MISSING_FIELD) => TAKEN,
            ErrorKind::NotFound => NOT_FOUND,
            ErrorKind::Internal => "InternalServerError",
            ErrorKind::Unavailable => "ServiceUnavailableError",
            _ => BAD,
        };
        Self { error, kind }
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        let of = |kind: &'static str, status, param: Option<&str>, code: &str| Self {
            error: ApiError {
                param: param.map(str::to_owned),
                ..ApiError::new(status, message).with_code(code.to_owned())
            },
            kind,
        };
        let (name, path) = (Some("lora_name"), Some("lora_path"));
        match error {
            RequestError::NoRoot => of(
                "NotImplementedError",
                ErrorKind::NotImplemented,
                None,
                "NoRoot",
            ),
            RequestError::Name { .. } => of(TAKEN, ErrorKind::Invalid, name, "InvalidName"),
            RequestError::AlreadyLoaded(_) => of(TAKEN, ErrorKind::Invalid, name, "AlreadyLoaded"),
            RequestError::NotLoaded(_) => of(NOT_FOUND, ErrorKind::NotFound, name, "NotLoaded"),
            RequestError::NotOurs { .. } => of(BAD, ErrorKind::Invalid, name, "NotOurs"),
            RequestError::NotFound(_) => of(NOT_FOUND, ErrorKind::NotFound, path, "NotFound"),
            RequestError::OtherDigest { .. } => {
                let param = Some("expected_digest");
                of("ConflictError", ErrorKind::Conflict, param, "OtherDigest")
            }
            RequestError::Refused { reason, .. } => of(BAD, ErrorKind::Invalid, path, &reason),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { error, kind } = self;
        let object = ErrorObject {
            kind: kind.to_owned(),
            ..error.body().error
        };
        let body = AdapterErrorBody::new(object, error.kind.status());
        let body = Json(body).into_response().into_body();
        // Status and headers are those of any error.
        Failure(error).into_response().map(|_: Body| body)
    }
}
