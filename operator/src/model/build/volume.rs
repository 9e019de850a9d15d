use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{Content, NewVolume, Plan, labels};
use crate::{
    source::Mirrored,
    volume::{self, BoundVolume},
};

/// What the volume of a mirrored commit shows.
pub fn content(plan: &Plan, mirrored: &Mirrored) -> Content {
    Content::of(&plan.source, mirrored)
}

/// Name of the claim of a content, see [`volume::claim_name`].
pub fn claim_name(plan: &Plan, content: &Content) -> String {
    volume::claim_name(&plan.owner(), content)
}

/// The volume of a content, for that claim.
pub fn new_volume(plan: &Plan, content: &Content, claim: &str) -> NewVolume {
    volume::new_volume(&plan.owner(), content, claim)
}

/// The PersistentVolume and the claim that takes it.
pub fn bound_volume(plan: &Plan, new: &NewVolume) -> BoundVolume {
    BoundVolume {
        volume: persistent_volume(plan, new),
        claim: persistent_volume_claim(plan, new),
    }
}

/// The PersistentVolume, bound beforehand to the claim of the same content.
pub fn persistent_volume(plan: &Plan, new: &NewVolume) -> PersistentVolume {
    volume::persistent_volume(&plan.owner(), labels(plan), new)
}

/// The claim that takes exactly that PersistentVolume.
pub fn persistent_volume_claim(plan: &Plan, new: &NewVolume) -> PersistentVolumeClaim {
    volume::persistent_volume_claim(&plan.owner(), labels(plan), new)
}

/// The volume of the Model's adapters and its claim.
pub fn adapters_volume(plan: &Plan) -> BoundVolume {
    volume::adapters_volume(
        &plan.owner(),
        labels(plan),
        &plan.model,
        &plan.adapters_claim,
    )
}
