//! Pods on nodes that are lost.
//!
//! A node that cannot be reached cannot say that a pod has ended, and the Job makes no other before
//! that is said (`podReplacementPolicy: Failed`, which a failure policy needs; its finalizer keeps the
//! pod even when it is deleted by force): the job would wait for the node, for as long as it is away.
//! So once the cluster has given the pod up, we say that it has failed, as the cluster's own garbage
//! collector does for nodes that are deleted or marked as out of service, and delete it by force.
//! That is safe: should the pod still run somewhere, then its token opens nothing any
//! more, since the registry asks for the pod that it is bound to; its pushes follow commits that
//! the branch does not end with any more; and its disk is its node's own. The node ends it when it is
//! back.

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::fetch::{disruption, has_ended};
use crate::{
    apply::{ApplyError, request_error},
    lost_nodes,
};

/// Who deletes the pods of a node that does not answer, in the reason of a pod's `DisruptionTarget`.
const BY_TAINT: &str = "DeletionByTaintManager";

/// Whether the pod has not ended though it should, unless its node says otherwise: who does not
/// tolerate what became of the node has waited long enough, and of others the grace period is over.
pub(super) fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let Some(due) = pod.metadata.deletion_timestamp.as_ref() else {
        return false;
    };
    let by_taint = || disruption(pod).is_some_and(|c| c.reason.as_deref() == Some(BY_TAINT));
    !has_ended(pod) && (due.0 < now || by_taint())
}

/// Whether nothing is heard of a node. One that says itself that it is not ready ends its pods.
fn is_lost(node: Option<&Node>) -> bool {
    let Some(node) = node else { return true };
    let status = node.status.as_ref();
    let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status == "Unknown")
}

/// Says that an overdue pod has failed, and deletes its object, if its node is lost.
///
/// # Errors
/// See [`ApplyError`].
pub(super) async fn give_up(client: &Client, pod: &Pod, now: Timestamp) -> Result<(), ApplyError> {
    let Some(name) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) else {
        return Ok(());
    };
    let node = Api::<Node>::all(client.clone())
        .get_opt(name)
        .await
        .map_err(|source| request_error("get", "Node", name, source))?;
    if !is_lost(node.as_ref()) {
        return Ok(());
    }
    tracing::warn!(
        pod = pod.name_any(),
        node = name,
        "give up a pod: its node is lost, and the job goes on elsewhere"
    );
    let namespace = pod.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let failed = Patch::Strategic(failed(pod, name, now));
    match pods
        .patch_status(&pod.name_any(), &PatchParams::default(), &failed)
        .await
    {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
        Err(source) => return Err(request_error("patch", "Pod", &pod.name_any(), source)),
    }
    lost_nodes::delete_by_force(client, pod)
        .await
        .map_err(|source| request_error("delete", "Pod", &pod.name_any(), source))
}

/// The patch by which a pod has failed for no reason of its own.
fn failed(pod: &Pod, node: &str, now: Timestamp) -> serde_json::Value {
    let message = format!("nothing is heard of its node {node}");
    json!({
        "metadata": {"uid": pod.uid()},
        "status": {
            "phase": "Failed",
            "reason": "NodeLost",
            "message": message,
            "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "NodeLost",
                "message": message,
                "lastTransitionTime": now.to_string(),
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(phase: &str, due: &str, reason: &str) -> Pod {
        let conditions = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        let of = json!({"metadata": {"name": "p", "deletionTimestamp": due},
            "status": {"phase": phase, "conditions": conditions}});
        serde_json::from_value(of).unwrap()
    }

    #[test]
    fn only_what_was_given_up_is_overdue() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (past, soon) = ("2025-12-31T23:59:00Z", "2026-01-01T00:04:00Z");
        for (phase, due, reason, expected) in [
            ("Running", past, "EvictionByEvictionAPI", true),
            ("Running", soon, "EvictionByEvictionAPI", false),
            ("Running", soon, BY_TAINT, true),
            ("Pending", soon, BY_TAINT, true),
            ("Failed", past, BY_TAINT, false),
        ] {
            assert_eq!(
                is_overdue(&pod(phase, due, reason), now),
                expected,
                "{phase} {due} {reason}"
            );
        }
        let mut stays = pod("Running", past, BY_TAINT);
        stays.metadata.deletion_timestamp = None;
        assert!(!is_overdue(&stays, now));
    }

    #[test]
    fn a_node_is_lost_when_nothing_is_heard_of_it() {
        let node = |status: &str| -> Node {
            let conditions: Value = json!([{"type": "Ready", "status": status}]);
            serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap()
        };
        assert!(is_lost(None));
        assert!(is_lost(Some(&node("Unknown"))));
        assert!(!is_lost(Some(&node("False"))));
        assert!(!is_lost(Some(&node("True"))));
        assert!(!is_lost(Some(&Node::default())));
    }
}
