//! How pods leave nodes of which nothing is heard, or that cannot end them.

use k8s_openapi::api::core::v1::{Pod, Toleration};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
};

/// After how long pods of a lost node are replaced. Kubernetes' default is five minutes.
const SECONDS: i64 = 30;

/// The user's, and leaving a lost node sooner than by default unless the user says otherwise.
pub fn tolerations(theirs: &[Toleration]) -> Vec<Toleration> {
    let mut tolerations = theirs.to_vec();
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        if theirs.iter().any(|t| t.key.as_deref() == Some(key)) {
            continue;
        }
        tolerations.push(Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(SECONDS),
            ..Toleration::default()
        });
    }
    tolerations
}

/// Deletes a pod without waiting for its node. One that is gone, or another by now, is no error.
///
/// # Errors
/// The API server refused or failed.
pub async fn delete_by_force(client: &Client, pod: &Pod) -> Result<(), kube::Error> {
    let namespace = pod.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match pods.delete(&pod.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
