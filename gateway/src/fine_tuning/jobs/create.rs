//! A new job.

use axum::{Json, extract::Request};
use hyprstream_api::TrainingJob;
use hyprstream_contract::{CommitId, ModelRef, repositories::CommitRequest};
use hyprstream_openai::{
    ApiError, excerpt,
    fine_tuning::{CreateJob, Job, Objective},
};
use kube::{Api, api::PostParams};
use tracing::warn;

use super::{
    super::{
        FineTuningError,
        client::Client,
        files::{self, FileRecord, Form},
        ids,
        registry::RegistryError,
    },
    Ours, api, find, now,
    record::JobRecord,
    show,
    spec::{Plan, TRAIN, VALID, data_branch},
    sweep::GRACE_SECONDS,
};
use crate::{GatewayError, table::ModelKey};

/// Seeds that are drawn are below this, as OpenAI's.
const MAX_DRAWN_SEED: i64 = 1 << 31;
/// Age of data that no sweep takes before their job is made.
const YOUNG_SECONDS: i64 = GRACE_SECONDS / 2;
/// How often data are tried to be made while others make or delete the same.
const ATTEMPTS: usize = 3;

/// Makes a job: first a commit with its data, then the TrainingJob that names it.
pub(in super::super) async fn create(
    client: Client,
    request: Request,
) -> Result<Json<Job>, FineTuningError> {
    let body = client.read_json(request.into_body()).await?;
    let record = JobRecord::from(CreateJob::from_json(&body)?);
    let name = ids::job(client.origin());
    if client.idempotency_key.is_some() {
        match find(&client, &name).await {
            Ok(before) => return repeated(&client, &record, &before),
            Err(FineTuningError::NoJob { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let model = model(&client, &record.model)?;
    let form = match record.method.objective {
        Objective::Supervised => Form::Chat,
        Objective::Dpo => Form::Preference,
    };
    let train = file(&client, "training_file", &record.training_file, form).await?;
    let valid = match &record.validation_file {
        None => None,
        Some(id) => Some(file(&client, "validation_file", id, form).await?),
    };
    let data = commit(&client, &name, &train, valid.as_ref()).await?;
    let plan = Plan {
        namespace: &client.namespace,
        name: &name,
        record: &record,
        model: &model,
        seed: record
            .seed
            .unwrap_or_else(|| fastrand::i64(0..MAX_DRAWN_SEED)),
        data: &data,
        template: &client.api.config.jobs,
    };
    let api: Api<TrainingJob> = api(&client);
    match api
        .create(&PostParams::default(), &plan.training_job())
        .await
    {
        Ok(object) => Ok(Json(show(&client, &Ours { object, record }))),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            repeated(&client, &record, &find(&client, &name).await?)
        }
        Err(error) => {
            // Without an answer the job may be there all the same.
            if !matches!(&error, kube::Error::Api(status) if status.code < 500) {
                return Err(error.into());
            }
            let (repository, branch) = (client.repository(), data_branch(&name));
            let registry = &client.api.registry;
            let removed = registry.delete_branch(&repository, &branch, Some(&data));
            if let Err(error) = removed.await {
                warn!(
                    error = &error as &dyn std::error::Error,
                    branch, "the data of a job that was not made stay"
                );
            }
            Err(error.into())
        }
    }
}

/// What came of the same request before.
fn repeated(
    client: &Client,
    record: &JobRecord,
    before: &Ours,
) -> Result<Json<Job>, FineTuningError> {
    if before.record == *record {
        Ok(Json(show(client, before)))
    } else {
        Err(FineTuningError::KeyReused)
    }
}

/// The name of the Model that a reference names, which is one of the client's namespace.
fn model(client: &Client, asked: &str) -> Result<String, FineTuningError> {
    let reference: ModelRef = asked
        .parse()
        .map_err(|error| ApiError::invalid("model", error))?;
    if reference.branch.is_some() || !reference.adapters.is_empty() {
        let why =
            "must be MODEL or NAMESPACE/MODEL: the commit that the Model follows is trained on";
        return Err(ApiError::invalid("model", why).into());
    }
    let table = std::sync::Arc::clone(&client.state.tables.borrow());
    let namespace = reference.namespace.as_deref().unwrap_or(&client.namespace);
    let key = ModelKey::new(&client.namespace, &reference.name);
    if *namespace == *client.namespace && table.get(&key).is_some() {
        return Ok(reference.name);
    }
    if !table.is_complete() {
        return Err(GatewayError::Starting.into());
    }
    let asked = excerpt(asked);
    let message = format!("the model {asked:?} does not exist in the namespace of this key");
    Err(ApiError::model_not_found(message).into())
}

async fn file(
    client: &Client,
    param: &str,
    id: &str,
    form: Form,
) -> Result<FileRecord, FineTuningError> {
    let record = match files::find(client, id).await {
        Err(FineTuningError::NoFile { .. }) => {
            let why = format!("there is no file {:?}", excerpt(id));
            return Err(ApiError::invalid(param, why)
                .with_code("file_not_found")
                .into());
        }
        found => found?,
    };
    if record.form != form {
        let why = match form {
            Form::Chat => "holds preferences, which the method dpo learns: its lines need messages",
            Form::Preference => {
                "holds messages, which the method supervised learns: its lines need input, \
                 preferred_output and non_preferred_output"
            }
        };
        return Err(ApiError::invalid(param, why)
            .with_code("invalid_file_format")
            .into());
    }
    Ok(record)
}

/// The commit with a job's data: the objects of its files, on a branch of its own.
async fn commit(
    client: &Client,
    name: &str,
    train: &FileRecord,
    valid: Option<&FileRecord>,
) -> Result<CommitId, FineTuningError> {
    let registry = &client.api.registry;
    let mut changes = vec![train.object.at(TRAIN)];
    changes.extend(valid.map(|valid| valid.object.at(VALID)));
    let mut request = CommitRequest {
        repository: client.repository(),
        branch: data_branch(name),
        expected: Some(None),
        changes,
        author: None,
        message: message(name, train, valid),
    };
    for _ in 0..ATTEMPTS {
        match registry.commit(&request).await {
            Ok(made) => return Ok(made.commit),
            // A repetition whose first attempt broke off here, or goes on at the same time.
            Err(RegistryError::Moved { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let there = registry.branch(&request.repository, &request.branch);
        request.expected = Some(match there.await? {
            Some(there) if there.message != request.message => {
                return Err(FineTuningError::KeyReused);
            }
            Some(there) if there.committed_at > now() - YOUNG_SECONDS => return Ok(there.commit),
            // Another commit on top: a sweep that is about to delete the old one leaves it.
            there => there.map(|there| there.commit),
        });
    }
    Err(FineTuningError::Busy {
        id: name.to_owned(),
    })
}

/// Says which content it is, by which a repetition of a request is known from another one.
fn message(name: &str, train: &FileRecord, valid: Option<&FileRecord>) -> String {
    let valid = valid.map_or("none", |valid| &valid.object.oid);
    format!(
        "Data of {name}\n\nTrain: {}\nValid: {valid}\n",
        train.object.oid
    )
}
