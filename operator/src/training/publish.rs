//! The Adapter that serves what a job made.

use std::collections::BTreeMap;

use hyprstream_api::{
    Adapter, AdapterSource, AdapterSpec, BaseCommitPolicy, LocalModelRef, SourceRef,
    TrainingOutputStatus,
};
use hyprstream_contract::label;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
};

use super::validate::Plan;

/// Annotation on an Adapter: the TrainingJob that made what it serves.
pub const JOB: &str = "hyprstream.io/training-job";
/// Annotation on an Adapter: the UID of that job.
pub const JOB_UID: &str = "hyprstream.io/training-job-uid";
/// Annotation on an Adapter: the Model of that job.
const MODEL: &str = "hyprstream.io/training-model";

/// An Adapter was not made.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is one of the name that no job made.
    #[error(
        "there is an Adapter {0} that no TrainingJob of this Model made; it is left alone. The \
         adapter is on its branch: point that Adapter to it, or delete it"
    )]
    Exists(String),
    /// The API server refused or failed.
    #[error("the Adapter {name} cannot be written")]
    Request {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The Adapter of what a job made. The job does not own it: it serves when the job is gone.
pub fn adapter(plan: &Plan, output: &TrainingOutputStatus) -> Adapter {
    let annotations = BTreeMap::from([
        (JOB.to_owned(), plan.name.clone()),
        (JOB_UID.to_owned(), plan.uid.clone()),
        (MODEL.to_owned(), plan.spec.model_ref.name.clone()),
    ]);
    let mut adapter = Adapter::new(
        &plan.adapter,
        AdapterSpec {
            model_ref: LocalModelRef {
                name: plan.spec.model_ref.name.clone(),
            },
            source: AdapterSource {
                url: Some(format!("hyprstream://{}", output.repository)),
                reference: Some(SourceRef {
                    commit: Some(output.commit.clone()),
                    ..SourceRef::default()
                }),
                interval: None,
                secret_ref: None,
                path: output.path.clone(),
            },
            served_name: None,
            scale: "1".to_owned(),
            base_commit_policy: BaseCommitPolicy::Warn,
        },
    );
    adapter.metadata = ObjectMeta {
        name: Some(plan.adapter.clone()),
        namespace: Some(plan.namespace.clone()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    adapter
}

/// Whether a job of the plan's Model made what an Adapter serves, so that this one may replace it.
fn is_a_jobs(plan: &Plan, existing: &Adapter) -> bool {
    let annotations = existing.annotations();
    annotations.contains_key(JOB_UID) && annotations.get(MODEL) == Some(&plan.spec.model_ref.name)
}

/// Makes the Adapter, or has the one that an earlier job made serve this output.
///
/// # Errors
/// See [`PublishError`].
pub async fn publish(
    client: &Client,
    plan: &Plan,
    output: &TrainingOutputStatus,
) -> Result<String, PublishError> {
    let api: Api<Adapter> = Api::namespaced(client.clone(), &plan.namespace);
    let desired = adapter(plan, output);
    let name = plan.adapter.clone();
    let failed = |source| PublishError::Request {
        name: name.clone(),
        source: Box::new(source),
    };
    if let Some(existing) = api.get_opt(&name).await.map_err(failed)?
        && !is_a_jobs(plan, &existing)
    {
        return Err(PublishError::Exists(name));
    }
    let params = PatchParams::apply(label::MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&desired))
        .await
        .map_err(failed)?;
    Ok(name)
}
