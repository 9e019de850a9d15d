//! How pods leave nodes of which nothing is heard.

use k8s_openapi::api::core::v1::Toleration;

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
