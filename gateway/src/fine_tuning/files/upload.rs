//! A file on its way from the client to the registry.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::extract::Request;
use http::header;
use hyprstream_openai::{ApiError, excerpt};
use multer::{Constraints, Field, Multipart, SizeLimit};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    super::{FineTuningError, client::Client, registry::Object},
    FileRecord, Form,
    lines::Lines,
    record::{PURPOSE, clean_name},
};
use crate::{
    GatewayError,
    budget::{Exhausted, Share},
    table::ModelKey,
};

/// Longest text of a field that is no file.
const MAX_TEXT_BYTES: usize = 1024;
/// What a form may have beside its file.
const FORM_BYTES: u64 = 64 << 10;

/// What budgets are told of.
const SPOOL: &str = "disk for files";

/// A file that has come whole.
pub(super) struct Upload {
    spooled: Spooled,
    filename: String,
    created_at: i64,
}

/// A file on the disk, without a name.
struct Spooled {
    file: File,
    object: Object,
    records: u64,
    form: Form,
    /// Its bytes, until the registry has them.
    _share: Share,
}

impl Upload {
    /// Reads a form, field by field, to its end.
    pub(super) async fn receive(
        client: &Client,
        request: Request,
    ) -> Result<Self, FineTuningError> {
        let limit = client.api.config.upload_timeout;
        let read = timeout(limit, read_form(client, request)).await;
        read.map_err(|_| GatewayError::BodyTimeout(limit))?
    }

    /// Its bytes, from the first. They lie on the disk until this is dropped.
    pub(super) async fn file(&self) -> Result<File, FineTuningError> {
        let file = self.spooled.file.try_clone().await;
        file.map_err(FineTuningError::Spool)
    }

    /// What is known of it.
    pub(super) fn record(&self) -> FileRecord {
        FileRecord {
            filename: self.filename.clone(),
            purpose: PURPOSE.to_owned(),
            created_at: self.created_at,
            object: self.spooled.object.clone(),
            records: self.spooled.records,
            form: self.spooled.form,
        }
    }
}

async fn read_form(client: &Client, request: Request) -> Result<Upload, FineTuningError> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(form)?;
    let config = &client.api.config;
    let declared = parts.headers.get(header::CONTENT_LENGTH);
    let declared: Option<u64> = declared.and_then(|n| n.to_str().ok()?.parse().ok());
    if declared.is_some_and(|bytes| bytes > config.max_file_bytes.saturating_add(FORM_BYTES)) {
        return Err(too_large(client));
    }
    let whole = SizeLimit::new().whole_stream(config.max_file_bytes.saturating_add(FORM_BYTES));
    let constraints = Constraints::new().size_limit(whole);
    let mut fields = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
    let (mut file, mut purpose) = (None, None);
    while let Some(mut field) = in_time(client, fields.next_field()).await? {
        match field.name().unwrap_or_default() {
            "file" if file.is_none() => {
                let name = clean_name(field.file_name().unwrap_or_default());
                file = Some((spool(client, &mut field).await?, name));
            }
            "purpose" if purpose.is_none() => purpose = Some(text(client, &mut field).await?),
            name @ ("file" | "purpose") => {
                return Err(ApiError::invalid(name, "is there twice").into());
            }
            name if name.starts_with("expires_after") => {
                let why = "files stay until they are deleted";
                return Err(ApiError::invalid("expires_after", why).into());
            }
            name => {
                let why = "is not a field that this server knows";
                let error = ApiError::invalid(excerpt(name), why);
                return Err(error.with_code("unknown_field").into());
            }
        }
    }
    let required = |name: &str| ApiError::invalid(name, "is required");
    let (spooled, filename) = file.ok_or_else(|| required("file"))?;
    match purpose.ok_or_else(|| required("purpose"))? {
        purpose if purpose == PURPOSE => {}
        other => {
            let why = format!("must be {PURPOSE:?}, not {:?}", excerpt(&other));
            return Err(ApiError::invalid("purpose", why).into());
        }
    }
    Ok(Upload {
        spooled,
        filename,
        created_at: now(),
    })
}

/// Writes a field to the disk, and checks it meanwhile.
async fn spool(client: &Client, field: &mut Field<'_>) -> Result<Spooled, FineTuningError> {
    let config = &client.api.config;
    let folder = config.spool.clone();
    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
    let file = file
        .map_err(io::Error::other)
        .and_then(|file| file)
        .map_err(FineTuningError::Spool)?;
    let mut file = File::from_std(file);
    let owner = ModelKey::new(&client.namespace, super::super::REPOSITORY);
    let mut share = client.api.spooled.take_for(&owner, 0).map_err(exhausted)?;
    let (mut hash, mut size, mut lines) = (Sha256::new(), 0_u64, Lines::default());
    while let Some(chunk) = in_time(client, field.chunk()).await? {
        size += chunk.len() as u64;
        if size > config.max_file_bytes {
            return Err(too_large(client));
        }
        share.grow(chunk.len()).map_err(exhausted)?;
        hash.update(&chunk);
        lines.push(&chunk)?;
        file.write_all(&chunk)
            .await
            .map_err(FineTuningError::Spool)?;
    }
    let (records, form) = lines.finish()?;
    file.flush().await.map_err(FineTuningError::Spool)?;
    file.rewind().await.map_err(FineTuningError::Spool)?;
    let oid = format!("{:x}", hash.finalize());
    Ok(Spooled {
        file,
        object: Object { oid, size },
        records,
        form,
        _share: share,
    })
}

async fn text(client: &Client, field: &mut Field<'_>) -> Result<String, FineTuningError> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = in_time(client, field.chunk()).await? {
        if bytes.len() + chunk.len() > MAX_TEXT_BYTES {
            let why = format!("is longer than {MAX_TEXT_BYTES} bytes");
            return Err(ApiError::invalid(name, why).into());
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid(name, "is not UTF-8").into())
}

/// The next piece, which must come in the time that any body has.
async fn in_time<T>(
    client: &Client,
    next: impl Future<Output = multer::Result<T>>,
) -> Result<T, FineTuningError> {
    let limit = client.body_timeout();
    let next = timeout(limit, next).await;
    let next = next.map_err(|_| GatewayError::BodyTimeout(limit))?;
    next.map_err(|error| match error {
        multer::Error::StreamSizeExceeded { .. } => too_large(client),
        other => form(other),
    })
}

fn too_large(client: &Client) -> FineTuningError {
    FineTuningError::FileTooLarge {
        limit_bytes: client.api.config.max_file_bytes,
    }
}

fn exhausted(why: Exhausted) -> FineTuningError {
    match why {
        Exhausted::Whole => GatewayError::Overloaded(SPOOL),
        Exhausted::Share => GatewayError::Contended(SPOOL),
    }
    .into()
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn form(error: multer::Error) -> FineTuningError {
    FineTuningError::Form(error.to_string().chars().take(200).collect())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
