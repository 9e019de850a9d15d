//! The data of jobs that are gone.
//!
//! A TrainingJob is deleted by its owner or by the operator when its time has come, and nothing of
//! that passes here. So each gateway looks now and then which branches have no job any more: it
//! follows from what there is, whatever was missed while no gateway ran, and several at once do no
//! harm.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hyprstream_api::TrainingJob;
use hyprstream_contract::{label, repositories::Branch};
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    super::{FineTuning, FineTuningError, REPOSITORY, ids},
    CHUNK, now,
    spec::DATA_BRANCHES,
};

/// How often it is looked.
const EVERY: Duration = Duration::from_mins(10);
/// How old data are before they can be anybody's rest: a request makes its data before its job, and
/// is repeated when it broke off in between.
pub(super) const GRACE_SECONDS: i64 = 3600;

/// Deletes the data of jobs that are gone, now and then. Never ends.
pub async fn sweep(api: Arc<FineTuning>) {
    // Gateways that started together do not ask together.
    sleep(EVERY.mul_f64(fastrand::f64())).await;
    loop {
        api.sweep_data().await;
        sleep(EVERY).await;
    }
}

impl FineTuning {
    /// Deletes the branches with the data of jobs that are gone, in each namespace that has a key.
    /// Returns how many. What cannot be looked at now is left for the next time.
    pub async fn sweep_data(&self) -> usize {
        let mut swept = 0;
        for namespace in self.keys().namespaces() {
            match self.sweep_namespace(namespace).await {
                Ok(count) => swept += count,
                Err(error) => warn!(
                    error = &error as &dyn std::error::Error,
                    namespace = &**namespace,
                    "the data of jobs that are gone stay for now"
                ),
            }
        }
        swept
    }

    async fn sweep_namespace(&self, namespace: &str) -> Result<usize, FineTuningError> {
        let repository = format!("{namespace}/{REPOSITORY}");
        let newest = now() - GRACE_SECONDS;
        let branches = self.registry.branches(&repository, DATA_BRANCHES).await?;
        let old: Vec<(&str, &Branch)> = branches
            .iter()
            .filter(|branch| branch.committed_at <= newest)
            .filter_map(|branch| Some((branch.name.strip_prefix(DATA_BRANCHES)?, branch)))
            // What others pushed here is theirs.
            .filter(|(id, _)| ids::is_job(id))
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        let api: Api<TrainingJob> = Api::namespaced(self.cluster.clone(), namespace);
        let there = names(&api).await?;
        let mut swept = 0;
        let gone = old.into_iter().filter(|(id, _)| !there.contains(*id));
        for (id, Branch { name, commit, .. }) in gone {
            // One that was made meanwhile, or that lost its label, has its data still.
            if api.get_metadata_opt(id).await?.is_some() {
                debug!(namespace, job = id, "a job without its label");
                continue;
            }
            // A request that is repeated just now has made it anew, and names another commit.
            let deleted = self.registry.delete_branch(&repository, name, Some(commit));
            if deleted.await? {
                info!(namespace, name, "deleted the data of a job that is gone");
                swept += 1;
            }
        }
        Ok(swept)
    }
}

/// The names of the jobs that were made through this API.
async fn names(api: &Api<TrainingJob>) -> Result<HashSet<String>, kube::Error> {
    let mut params = ListParams::default()
        .labels(&format!("{}=true", label::FINE_TUNING))
        .limit(CHUNK);
    let mut names = HashSet::new();
    loop {
        let list = api.list_metadata(&params).await?;
        names.extend(list.items.iter().map(ResourceExt::name_any));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(names),
        }
    }
}
