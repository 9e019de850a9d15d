//! `cleanup`: removes what was made for Models and TrainingJobs and runs or is mounted, and keeps
//! the Models and the TrainingJobs, which go on from their last checkpoint after another install.
//!
//! Run before an uninstall, while the node plugin can still unmount volumes. It takes the Lease
//! first, so that the operator ends and does not make anew what is deleted here.

use std::{fmt::Debug, time::Duration};

use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};
use hyprstream_api::Checked;
use hyprstream_contract::label;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    args::CleanupArgs,
    cache::scoped,
    leader::{Candidate, RENEW},
    run::OWNERS,
};

/// For how long the operator may not come back, should the uninstall end here.
const PAUSE: Duration = Duration::from_mins(10);

/// Removes it, and waits until it is gone. What could not be removed in time is warned of and is no
/// error: an uninstall goes on.
///
/// # Errors
/// None but a bug; for the sake of its caller.
pub fn run(args: CleanupArgs) -> BoxFuture<'static, anyhow::Result<()>> {
    remove(args).boxed()
}

async fn remove(args: CleanupArgs) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    match timeout_at(deadline, clean(&args)).await {
        Ok(Ok(())) => tracing::info!("all that was made for Models is gone"),
        Ok(Err(error)) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "not all of it could be removed"
            );
        }
        Err(_) => {
            tracing::warn!(
                timeout = args.timeout.as_secs(),
                "not all of it was gone in time; what is left has the label {}={}",
                label::MANAGED_BY,
                label::MANAGER
            );
        }
    }
    Ok(())
}

async fn clean(args: &CleanupArgs) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("find the API server")?;
    let candidate = Candidate::new(client.clone(), &args.namespace, "cleanup".to_owned());
    candidate.seize(PAUSE).await.context("stop the operator")?;
    sleep(RENEW + Duration::from_secs(2)).await;

    let namespaces: Vec<Option<&str>> = if args.watch_namespaces.is_empty() {
        vec![None]
    } else {
        args.watch_namespaces
            .iter()
            .map(|n| Some(n.as_str()))
            .collect()
    };
    loop {
        let mut left = 0;
        for namespace in &namespaces {
            left += delete_all::<Deployment>(&client, scoped(&client, *namespace)).await?;
            left += delete_all::<Job>(&client, scoped(&client, *namespace)).await?;
            left += delete_all::<PodDisruptionBudget>(&client, scoped(&client, *namespace)).await?;
            left += delete_all::<Service>(&client, scoped(&client, *namespace)).await?;
            left +=
                delete_all::<PersistentVolumeClaim>(&client, scoped(&client, *namespace)).await?;
            let pods: Api<Checked<Pod>> = scoped(&client, *namespace);
            left += pods.list(&ours()).await.context("list pods")?.items.len();
        }
        let volumes = Api::<Checked<PersistentVolume>>::all(client.clone());
        for volume in volumes.list(&ours()).await.context("list volumes")? {
            let labels = volume.labels();
            let namespace = OWNERS.iter().find_map(|owner| labels.get(owner.namespace));
            let is_in = |n: Option<&str>| n.is_none() || n == namespace.map(String::as_str);
            if namespaces.iter().copied().any(is_in) {
                left += 1;
                delete(&volumes, &volume).await?;
            }
        }
        if left == 0 {
            return Ok(());
        }
        tracing::info!(left, "waiting for objects to go");
        sleep(Duration::from_secs(2)).await;
    }
}

/// Objects that our types cannot hold go as well.
async fn delete_all<K>(client: &Client, api: Api<Checked<K>>) -> anyhow::Result<usize>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let objects = api
        .list(&ours())
        .await
        .with_context(|| format!("list {}", K::kind(&())))?
        .items;
    for object in &objects {
        let namespace = object.namespace().unwrap_or_default();
        delete(&Api::namespaced(client.clone(), &namespace), object).await?;
    }
    Ok(objects.len())
}

async fn delete<K>(api: &Api<Checked<K>>, object: &Checked<K>) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if object.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = object.name_any();
    match api.delete(&name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
    }
}

fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", label::MANAGED_BY, label::MANAGER))
}
