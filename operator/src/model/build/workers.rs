use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::{Deserialize, Serialize};

use super::{
    ADAPTERS_VOLUME, Content, MODEL_VOLUME, Plan, REVISION, Revision, deployment::template,
};
use crate::cache::digest;

/// What workers are made of: a commit, the claim that holds it, and everything else that a pod
/// has. Enough to make the same workers again, whatever the Model and the operator say by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// The commit and its claim.
    #[serde(flatten)]
    pub revision: Revision,
    /// What the claim's volume shows, so that it can be made again. Unknown of what a release made
    /// that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The pods, with [`REVISION`] among their labels.
    pub template: PodTemplateSpec,
}

/// The workers that a Model asks for, on a revision.
pub fn workers(plan: &Plan, revision: Revision, content: Option<Content>) -> Workers {
    Workers {
        template: template(plan, &revision),
        revision,
        content,
    }
}

impl Workers {
    /// Digest by which their pods are found.
    pub fn digest(&self) -> &str {
        let labels = self
            .template
            .metadata
            .as_ref()
            .and_then(|m| m.labels.as_ref());
        labels
            .and_then(|l| l.get(REVISION))
            .map_or("", String::as_str)
    }

    /// The claim of the Model's adapters that their pods mount; `None` of what a release made that
    /// knew none.
    pub fn adapters_claim(&self) -> Option<&str> {
        let volumes = self.template.spec.iter().flat_map(|s| &s.volumes);
        let mut sources = volumes
            .flatten()
            .filter(|v| v.name == ADAPTERS_VOLUME)
            .filter_map(|v| v.persistent_volume_claim.as_ref());
        sources.next().map(|source| source.claim_name.as_str())
    }

    /// The same workers on another claim of the same content.
    #[must_use]
    pub fn on_claim(mut self, claim: String) -> Self {
        self.mount(MODEL_VOLUME, &claim);
        self.revision.claim = claim;
        self
    }

    /// The same workers on another claim of the Model's adapters.
    #[must_use]
    pub fn on_adapters_claim(mut self, claim: &str) -> Self {
        self.mount(ADAPTERS_VOLUME, claim);
        self
    }

    /// Has the volume of that name in their pods be another claim.
    fn mount(&mut self, name: &str, claim: &str) {
        let volumes = self.template.spec.iter_mut().flat_map(|s| &mut s.volumes);
        for volume in volumes.flatten().filter(|v| v.name == name) {
            if let Some(source) = &mut volume.persistent_volume_claim {
                claim.clone_into(&mut source.claim_name);
            }
        }
        let meta = self.template.metadata.get_or_insert_default();
        meta.labels.get_or_insert_default().remove(REVISION);
        let digest = digest(&self.template);
        let meta = self.template.metadata.get_or_insert_default();
        let labels = meta.labels.get_or_insert_default();
        labels.insert(REVISION.to_owned(), digest);
    }
}
