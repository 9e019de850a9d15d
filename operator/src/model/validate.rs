//! The only place where a spec is refused.

use hyprstream_api::{Model, ModelSpec, condition};
use hyprstream_contract::adapters::{InvalidModelName, ModelName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::{
    args::Images,
    owner::Owner,
    policy::{Policy, WorkerKey, WorkerTls},
    source::{InvalidSource, SourceKey},
    volume::adapters_claim_name,
};

/// A Model that can be worked on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Namespace of the Model.
    pub namespace: String,
    /// Name of the Model.
    pub name: String,
    /// Both, as the registry and the nodes call it.
    pub model: ModelName,
    /// UID of the Model.
    pub uid: String,
    /// Makes the Model the owner of an object.
    pub reference: OwnerReference,
    /// What to follow.
    pub source: SourceKey,
    /// Image of the workers.
    pub image: String,
    /// When to pull it.
    pub pull_policy: &'static str,
    /// The claim of its adapters: the name that it should have, until what exists says another.
    pub adapters_claim: String,
    /// What workers ask for, once the policy gave it.
    pub worker_key: Option<WorkerKey>,
    /// Whether they speak TLS, once the policy said it.
    pub worker_tls: WorkerTls,
    /// The spec.
    pub spec: ModelSpec,
}

impl Plan {
    /// The Model, for which objects are made.
    pub fn owner(&self) -> Owner<'_> {
        Owner::new::<Model>(&self.namespace, &self.name, &self.uid, &self.reference)
    }
}

/// Why a spec cannot work. Only an edit helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object came without what the API server always sets.
    #[error("the Model has no {0}")]
    Incomplete(&'static str),
    /// The source cannot be had as it is said.
    #[error(transparent)]
    Source(#[from] InvalidSource),
    /// There is no image for the device.
    #[error(
        "spec.engine.device: this installation has no worker image for {0}; set it in the Helm \
         values, or use another device"
    )]
    NoImage(&'static str),
    /// The memory of adapters is no number of bytes.
    #[error("spec.adapters.memory: {0:?} is no number of bytes such as 512Mi or 4Gi")]
    AdapterMemory(String),
    /// The name cannot be one of a Model.
    #[error("the name of the Model, {0:?}, cannot be told to the registry: {1}")]
    Name(String, InvalidModelName),
}

impl Invalid {
    /// Reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Source(error) => error.reason(),
            _ => condition::reason::INVALID_SPEC,
        }
    }
}

/// Checks what the schema of the CRD cannot.
///
/// # Errors
/// See [`Invalid`].
pub fn validate(model: &Model, images: &Images) -> Result<Plan, Invalid> {
    let spec = &model.spec;
    let namespace = model.namespace().ok_or(Invalid::Incomplete("namespace"))?;
    let owner_reference = model
        .controller_owner_ref(&())
        .ok_or(Invalid::Incomplete("name"))?;
    let uid = model.uid().ok_or(Invalid::Incomplete("uid"))?;
    let source = SourceKey::of(&namespace, "a Model", &spec.source)?;
    let device = spec.engine.device;
    let image = images.of(device).ok_or(Invalid::NoImage(device.as_str()))?;
    if let Some(text) = &spec.adapters.memory
        && spec.adapters.memory_bytes().is_none()
    {
        return Err(Invalid::AdapterMemory(text.clone()));
    }
    let name = model.name_any();
    let full = format!("{namespace}/{name}");
    Ok(Plan {
        model: full.parse().map_err(|why| Invalid::Name(full, why))?,
        adapters_claim: adapters_claim_name(&name),
        name,
        namespace,
        uid,
        reference: owner_reference,
        source,
        image: image.to_owned(),
        pull_policy: images.pull_policy.as_str(),
        worker_key: None,
        worker_tls: WorkerTls::Off,
        spec: spec.clone(),
    })
}

impl Policy {
    /// The plan, with the key of its workers and what they speak.
    ///
    /// # Errors
    /// It would send credentials where anybody can read them.
    pub fn admit(&self, plan: Plan) -> Result<Plan, Invalid> {
        self.check(&plan.source)?;
        let key = self.keys.of(&plan.namespace, &plan.name);
        Ok(Plan {
            worker_key: Some(key),
            worker_tls: self.worker_tls,
            ..plan
        })
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::registry::Reference;
    use serde_json::json;

    use super::*;
    use crate::args::PullPolicy;

    fn images() -> Images {
        Images {
            cpu: "w:1".into(),
            cuda: None,
            rocm: None,
            pull_policy: PullPolicy::IfNotPresent,
        }
    }

    #[track_caller]
    fn check(spec: &serde_json::Value, expected: Result<Reference, &str>) {
        let model: Model = serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": "m", "namespace": "ns", "uid": "u"}, "spec": spec,
        }))
        .unwrap();
        let found = validate(&model, &images());
        match (found, expected) {
            (Ok(plan), Ok(reference)) => assert_eq!(plan.source.reference, reference),
            (Err(error), Err(reason)) => assert_eq!(error.reason(), reason),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_reference_is_the_default_branch_or_what_is_named() {
        let url = "https://example.org/m";
        check(&json!({"source": {"url": url}}), Ok(Reference::Head));
        check(
            &json!({"source": {"url": url, "ref": {"tag": "v1"}}}),
            Ok(Reference::Tag("v1".into())),
        );
        check(
            &json!({"source": {"url": url, "ref": {"tag": "v1", "branch": "b"}}}),
            Err("InvalidSpec"),
        );
        check(
            &json!({"source": {"url": url, "ref": {"commit": "abc"}}}),
            Err("InvalidSpec"),
        );
    }

    #[test]
    fn a_repository_of_another_namespace_is_denied() {
        check(
            &json!({"source": {"url": "hyprstream://ns/m"}}),
            Ok(Reference::Head),
        );
        check(
            &json!({"source": {"url": "hyprstream://other/m"}}),
            Err("AccessDenied"),
        );
    }

    #[test]
    fn credentials_for_the_own_registry_are_refused() {
        check(
            &json!({"source": {"url": "hyprstream://ns/m", "secretRef": {"name": "s"}}}),
            Err("InvalidSpec"),
        );
    }

    #[test]
    fn memory_of_adapters_that_is_no_number_is_refused() {
        let of = |memory: &str| json!({"source": {"url": "hyprstream://ns/m"}, "adapters": {"memory": memory}});
        check(&of("4Gi"), Ok(Reference::Head));
        check(&of("much"), Err("InvalidSpec"));
    }

    #[test]
    fn a_device_without_an_image_is_refused() {
        check(
            &json!({"source": {"url": "hyprstream://ns/m"}, "engine": {"device": "cuda"}}),
            Err("InvalidSpec"),
        );
    }
}
