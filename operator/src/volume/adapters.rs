use std::collections::BTreeMap;

use hyprstream_contract::{adapters::ModelName, volume::VolumeContent};
use kube::{Resource, ResourceExt};

use super::{BoundVolume, shape::Shape, volume_name};
use crate::{cache::digest, owner::Owner};

/// Label on the volume and the claim of a Model's adapters.
const SHOWS: &str = "hyprstream.io/shows";
const ADAPTERS: &str = "adapters";

/// Name of the claim of the adapters of the Model `model`. Where a claim of the name cannot be used,
/// the name goes on with a dash and a number.
pub fn adapters_claim_name(model: &str) -> String {
    // Those of earlier releases, whose volumes have no words, are called MODEL-adapters.
    format!("{model}-granted-{ADAPTERS}")
}

/// Name of the PersistentVolume of such a claim. With the Model's UID in it: the names of a namespace
/// and a Model alone could be those of two others with another dash between them.
pub fn adapters_volume_name(namespace: &str, claim: &str, uid: &str) -> String {
    let hash = digest(&uid);
    format!("{}-{}", volume_name(namespace, claim), &hash[..8])
}

/// The volume of a Model's adapters and its claim, which has that name.
pub fn adapters_volume(
    owner: &Owner<'_>,
    mut labels: BTreeMap<String, String>,
    model: &ModelName,
    claim: &str,
) -> BoundVolume {
    labels.insert(SHOWS.to_owned(), ADAPTERS.to_owned());
    let own = claim.strip_prefix(owner.name).unwrap_or(claim);
    let handle = format!("{}{own}", owner.uid);
    let volume = adapters_volume_name(owner.namespace, claim, owner.uid);
    let shape = || Shape {
        claim,
        volume: &volume,
        handle: &handle,
        attributes: VolumeContent::Adapters(model.clone()).to_map(),
        size_bytes: 0,
        writable: false,
        is_followed: true,
    };
    BoundVolume {
        volume: shape().volume(owner, labels.clone()),
        claim: shape().claim(owner, labels),
    }
}

/// Whether a volume or claim of ours is one of a Model's adapters.
pub fn shows_adapters(object: &impl Resource) -> bool {
    object.labels().get(SHOWS).map(String::as_str) == Some(ADAPTERS)
}
