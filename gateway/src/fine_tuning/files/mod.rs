//! `/v1/files`.

mod lines;
mod record;
mod upload;

use std::cmp::Reverse;

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, Request},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http::{HeaderValue, header};
use hyprstream_contract::repositories::CommitRequest;
use hyprstream_openai::{
    ApiError, Page,
    files::{DeletedFile, File},
};

use self::upload::Upload;
pub(super) use self::{
    lines::{Form, LineError},
    record::{FileRecord, branch},
};
use super::{FineTuningError, client::Client, ids, paging::Paging, registry::RegistryError};

/// Where a file's content lies in its commit.
pub(super) const PATH: &str = "data.jsonl";
/// What the branches of files begin with.
const PREFIX: &str = "files/";
/// Most files of a page, which is also how many there are without a limit.
const MAX_LIMIT: usize = 10_000;

/// Takes a file in: it is checked and hashed as it comes, and then sent on to the registry.
pub(super) async fn create(
    client: Client,
    request: Request,
) -> Result<Json<File>, FineTuningError> {
    let upload = Upload::receive(&client, request).await?;
    let id = ids::file(client.origin());
    let record = upload.record();
    let repository = client.repository();
    let registry = &client.api.registry;
    registry
        .upload(&repository, &record.object, upload.file().await?)
        .await?;
    let request = CommitRequest {
        repository: repository.clone(),
        branch: branch(&id),
        expected: Some(None),
        changes: vec![record.object.at(PATH)],
        author: None,
        message: record.message(),
    };
    match registry.commit(&request).await {
        Ok(_) => Ok(Json(record.file(&id))),
        // A client that repeats a request gets what came of the first.
        Err(RegistryError::Moved { .. }) => {
            let before = find(&client, &id).await?;
            if before.is_same(&record) {
                Ok(Json(before.file(&id)))
            } else {
                Err(FineTuningError::KeyReused)
            }
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn list(
    client: Client,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<File>>, FineTuningError> {
    let knows = |name: &str| matches!(name, "order" | "purpose");
    let paging = Paging::read(query.as_deref(), MAX_LIMIT, MAX_LIMIT, knows)?;
    let order = paging.others.get("order").map_or("desc", String::as_str);
    if !matches!(order, "asc" | "desc") {
        return Err(ApiError::invalid("order", "must be asc or desc").into());
    }
    let purpose = paging.others.get("purpose");
    let repository = client.repository();
    let branches = client.api.registry.branches(&repository, PREFIX).await?;
    let mut files: Vec<File> = branches
        .iter()
        .filter_map(|branch| {
            let id = branch.name.strip_prefix(PREFIX)?;
            // What others pushed here is no file of this API.
            Some(FileRecord::read(&branch.message)?.file(id))
        })
        .filter(|file| purpose.is_none_or(|purpose| *purpose == file.purpose))
        .collect();
    files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    if order == "desc" {
        files.sort_by_key(|file| Reverse(file.created_at));
    }
    Ok(Json(paging.page(files, |file| &file.id)?))
}

pub(super) async fn retrieve(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<File>, FineTuningError> {
    Ok(Json(find(&client, &id).await?.file(&id)))
}

pub(super) async fn delete(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<DeletedFile>, FineTuningError> {
    // What is no file of this API is not deleted by it.
    find(&client, &id).await?;
    let registry = &client.api.registry;
    if !registry
        .delete_branch(&client.repository(), &branch(&id), None)
        .await?
    {
        return Err(FineTuningError::NoFile { id });
    }
    Ok(Json(DeletedFile {
        id,
        object: "file".to_owned(),
        deleted: true,
    }))
}

/// The file's bytes as the registry sends them.
pub(super) async fn content(
    client: Client,
    Path(id): Path<String>,
) -> Result<Response, FineTuningError> {
    let record = find(&client, &id).await?;
    let registry = &client.api.registry;
    let answer = registry
        .download(&client.repository(), &record.object)
        .await?;
    let Client { place, .. } = client;
    // The request has its place until all of it is sent.
    let bytes = answer.bytes_stream().map(move |chunk| {
        let _until_then = &place;
        chunk
    });
    let name = record.filename.replace(['"', '\\'], "_");
    let disposition = format!("attachment; filename=\"{name}\"");
    let mut response = Body::from_stream(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, record.object.size.into());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    // A name that no header can hold is told by /v1/files/ID alone.
    if let Ok(disposition) = HeaderValue::from_str(&disposition) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// The file of an id in the client's namespace.
pub(super) async fn find(client: &Client, id: &str) -> Result<FileRecord, FineTuningError> {
    let missing = || FineTuningError::NoFile { id: id.to_owned() };
    if !ids::is_file(id) {
        return Err(missing());
    }
    let registry = &client.api.registry;
    let branch = registry.branch(&client.repository(), &branch(id)).await?;
    let branch = branch.ok_or_else(missing)?;
    FileRecord::read(&branch.message).ok_or_else(missing)
}
