//! `/v1/fine_tuning/jobs`.

mod change;
mod checkpoints;
mod create;
mod events;
mod record;
mod spec;
mod sweep;
mod template;
mod view;

use std::{
    cmp::Reverse,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    extract::{Path, RawQuery},
};
use hyprstream_api::{Checked, TrainingJob};
use hyprstream_contract::label;
use hyprstream_openai::{
    ApiError, Page,
    fine_tuning::{Checkpoint, Event, Job},
};
use kube::{Api, ResourceExt, api::ListParams};
use tracing::warn;

pub(super) use self::{
    change::{cancel, pause, resume},
    create::create,
};
use self::{record::JobRecord, view::View};
pub use self::{sweep::sweep, template::JobTemplate};
use super::{FineTuningError, client::Client, ids, paging::Paging};

/// Jobs, events and checkpoints of a page without a limit.
const LIMIT: usize = 20;
/// Most of them.
const MAX_LIMIT: usize = 100;
/// Objects that the API server is asked for at once.
const CHUNK: u32 = 500;
/// Most events of a job that the API server is asked for.
const MAX_EVENTS: u32 = 1000;

/// A TrainingJob that was made through this API.
struct Ours {
    object: TrainingJob,
    record: JobRecord,
}

pub(super) async fn list(
    client: Client,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Job>>, FineTuningError> {
    let paging = Paging::read(query.as_deref(), LIMIT, MAX_LIMIT, |name| {
        name == "metadata" || metadata_key(name).is_some()
    })?;
    let mut jobs = all(&client).await?;
    jobs.sort_by_key(|job| {
        (
            Reverse(view::created_at(&job.object)),
            job.object.name_any(),
        )
    });
    let wanted: Vec<(&str, &str)> = paging
        .others
        .iter()
        .filter_map(|(name, value)| Some((metadata_key(name)?, value.as_str())))
        .collect();
    // As OpenAI has it.
    let without = match paging.others.get("metadata").map(String::as_str) {
        None => false,
        Some("null") => true,
        Some(_) => {
            let why = "must be null, or metadata[KEY] a value";
            return Err(ApiError::invalid("metadata", why).into());
        }
    };
    let jobs = jobs
        .iter()
        .filter(|job| {
            let metadata = job.record.metadata.as_ref();
            let has = |key: &str, value: &str| {
                metadata.is_some_and(|own| own.get(key).is_some_and(|own| own == value))
            };
            wanted.iter().all(|(key, value)| has(key, value))
                && !(without && metadata.is_some_and(|own| !own.is_empty()))
        })
        .map(|job| show(&client, job))
        .collect();
    Ok(Json(paging.page(jobs, |job| &job.id)?))
}

pub(super) async fn retrieve(
    client: Client,
    Path(id): Path<String>,
) -> Result<Json<Job>, FineTuningError> {
    let job = find(&client, &id).await?;
    Ok(Json(show(&client, &job)))
}

pub(super) async fn events(
    client: Client,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Event>>, FineTuningError> {
    let paging = Paging::read(query.as_deref(), LIMIT, MAX_LIMIT, |_| false)?;
    let job = find(&client, &id).await?;
    let api: Api<k8s_openapi::api::core::v1::Event> =
        Api::namespaced(client.api.cluster.clone(), &client.namespace);
    let uid = job.object.uid().unwrap_or_default();
    let params = ListParams::default()
        .fields(&format!("involvedObject.uid={uid}"))
        .limit(MAX_EVENTS);
    let of_cluster = api.list(&params).await?.items;
    let events = events::events(&job.object, &of_cluster);
    Ok(Json(paging.page(events, |event| &event.id)?))
}

pub(super) async fn checkpoints(
    client: Client,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Checkpoint>>, FineTuningError> {
    let paging = Paging::read(query.as_deref(), LIMIT, MAX_LIMIT, |_| false)?;
    let job = find(&client, &id).await?;
    let shown = show(&client, &job);
    let known = checkpoints::checkpoints(&job.object, &shown);
    Ok(Json(paging.page(known, |checkpoint| &checkpoint.id)?))
}

/// `KEY` of `metadata[KEY]`.
fn metadata_key(name: &str) -> Option<&str> {
    name.strip_prefix("metadata[")?.strip_suffix(']')
}

/// The TrainingJobs of the client's namespace.
fn api<K: kube::Resource<Scope = kube::core::NamespaceResourceScope>>(client: &Client) -> Api<K>
where
    K::DynamicType: Default,
{
    Api::namespaced(client.api.cluster.clone(), &client.namespace)
}

/// All jobs of the namespace that were made through this API.
async fn all(client: &Client) -> Result<Vec<Ours>, FineTuningError> {
    let api: Api<Checked<TrainingJob>> = api(client);
    let mut params = ListParams::default()
        .labels(&format!("{}=true", label::FINE_TUNING))
        .limit(CHUNK);
    let mut jobs = Vec::new();
    loop {
        let list = api.list(&params).await?;
        for object in list.items {
            let name = object.name_any();
            match ours(object, &name) {
                Ok(job) => jobs.push(job),
                Err(error) => warn!(
                    error = &error as &dyn std::error::Error,
                    namespace = &*client.namespace,
                    "a job is left out of the list"
                ),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(jobs),
        }
    }
}

/// The job of an id in the client's namespace.
async fn find(client: &Client, id: &str) -> Result<Ours, FineTuningError> {
    let missing = || FineTuningError::NoJob { id: id.to_owned() };
    if !ids::is_job(id) {
        return Err(missing());
    }
    let api: Api<Checked<TrainingJob>> = api(client);
    let object = api.get_opt(id).await?.ok_or_else(missing)?;
    if !object.labels().contains_key(label::FINE_TUNING) {
        return Err(missing());
    }
    ours(object, id)
}

fn ours(object: Checked<TrainingJob>, id: &str) -> Result<Ours, FineTuningError> {
    let unreadable = |why: String| FineTuningError::Unreadable {
        id: id.to_owned(),
        why,
    };
    let object = object.into_inner().map_err(|bad| {
        let why = bad.get().err().map(ToString::to_string);
        unreadable(why.unwrap_or_default())
    })?;
    let record = JobRecord::of_object(&object).map_err(unreadable)?;
    Ok(Ours { object, record })
}

fn show(client: &Client, job: &Ours) -> Job {
    let table = std::sync::Arc::clone(&client.state.tables.borrow());
    let view = View {
        object: &job.object,
        record: &job.record,
        table: &table,
        now: now(),
    };
    view.job()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
