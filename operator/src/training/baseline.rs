//! What is served by the name of a job's adapter when it begins.

use hyprstream_api::{Adapter, Baseline, OnSuccess, TrainingLastKnownGood};
use kube::{Api, Client};

use super::validate::Plan;
use crate::{
    apply::{ApplyError, request_error},
    source::own_repository,
};

/// What the job would replace, if a gate asks for that.
///
/// # Errors
/// The API server does not say.
pub(super) async fn last_known_good(
    client: &Client,
    plan: &Plan,
) -> Result<Option<TrainingLastKnownGood>, ApplyError> {
    let is_asked = |baseline| matches!(baseline, Baseline::LastKnownGood);
    let mut gates = plan.spec.gates.iter();
    if plan.spec.output.on_success != OnSuccess::CreateAdapter
        || !gates.any(|gate| is_asked(gate.baseline))
    {
        return Ok(None);
    }
    let api: Api<Adapter> = Api::namespaced(client.clone(), &plan.namespace);
    let found = api
        .get_opt(&plan.adapter)
        .await
        .map_err(|source| request_error("get", "Adapter", &plan.adapter, source))?;
    Ok(found.and_then(|adapter| served(plan, &adapter)))
}

/// What an Adapter serves. `None` where that is none of the job's Model, nothing yet, or an adapter of
/// the Model's own commit, which the pod has.
fn served(plan: &Plan, adapter: &Adapter) -> Option<TrainingLastKnownGood> {
    if adapter.spec.model_ref.name != plan.spec.model_ref.name {
        return None;
    }
    let source = &adapter.spec.source;
    let url = source.url.as_ref()?;
    let answers = adapter.status.as_ref().and_then(|s| s.commit.clone());
    let pinned = || source.reference.as_ref()?.commit.clone();
    Some(TrainingLastKnownGood {
        repository: own_repository(url).map_or_else(
            || url.clone(),
            |(namespace, name)| format!("{namespace}/{name}"),
        ),
        commit: answers.or_else(pinned)?,
        path: source.path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training::build::tests::plan_of;

    #[test]
    fn it_is_what_answers_by_the_name_now() {
        let plan = plan_of(&json!({
            "modelRef": {"name": "m"},
            "dataset": {"configMap": {"name": "d"}, "path": "train.jsonl"},
        }));
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        let of = |model: &str, url: Option<&str>, status: Option<&str>| {
            let adapter: Adapter = serde_json::from_value(json!({
                "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
                "metadata": {"name": "sql", "namespace": "ns"},
                "spec": {"modelRef": {"name": model},
                    "source": {"url": url, "ref": {"commit": one}, "path": "adapters/01_sql.safetensors"}},
                "status": {"commit": status},
            }))
            .unwrap();
            let found = served(&plan, &adapter)?;
            assert_eq!(found.path, "adapters/01_sql.safetensors");
            Some((found.repository, found.commit))
        };
        let own = Some("hyprstream://ns/m.git");
        assert_eq!(of("m", own, None), Some(("ns/m".into(), one.clone())));
        // A commit that is not loaded yet answers nothing.
        assert_eq!(of("m", own, Some(&two)), Some(("ns/m".into(), two)));
        assert_eq!(of("other", own, None), None);
        assert_eq!(of("m", None, None), None);
        let far = "https://example.org/a";
        assert_eq!(of("m", Some(far), None), Some((far.into(), one.clone())));
    }
}
