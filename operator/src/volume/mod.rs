//! Volumes that show a commit, or the adapters of a Model: a PersistentVolume for the node plugin,
//! bound beforehand to a claim. What they are is pure; [`ensure`] makes them. Both never change.

mod adapters;
mod content;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use hyprstream_contract::{label, volume::VolumeMode};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, Client, ResourceExt};

use self::shape::Shape;
pub use self::{
    adapters::{adapters_claim_name, adapters_volume, adapters_volume_name, shows_adapters},
    content::{Content, Revision},
};
use crate::{
    apply::{Applier, ApplyError, check_owner, request_error},
    cache::{Caches, digest},
    grants::{Grants, Wanted},
    owner::Owner,
};

/// A volume that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// The commit and its claim.
    pub revision: Revision,
    /// Name of the PersistentVolume.
    pub volume: String,
    /// Identifies the volume to the node plugin, at most 128 bytes.
    pub handle: String,
    /// What it shows.
    pub content: Content,
}

/// A PersistentVolume and the claim that takes exactly it.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundVolume {
    /// The volume.
    pub volume: PersistentVolume,
    /// The claim.
    pub claim: PersistentVolumeClaim,
}

/// Name of the claim of a content. It follows from the owner and from what the volume shows, so
/// that the same content has the same claim and other content another. Where a claim of the name
/// cannot be used, the name goes on with a dash and a number.
pub fn claim_name(owner: &Owner<'_>, content: &Content) -> String {
    let attributes = &content.attributes;
    // A volume cannot be given a word later: those of earlier releases, which have none, have other
    // names.
    let hash = digest(&(owner.uid, attributes.to_map(), "granted"));
    format!(
        "{}-{}-{}",
        owner.name,
        attributes.commit.short(),
        &hash[..8]
    )
}

/// Name of the PersistentVolume of a claim.
pub fn volume_name(namespace: &str, claim: &str) -> String {
    format!("hyprstream-{namespace}-{claim}")
}

/// The volume of a content, for that claim.
pub fn new_volume(owner: &Owner<'_>, content: &Content, claim: &str) -> NewVolume {
    let own = claim.strip_prefix(owner.name).unwrap_or(claim);
    NewVolume {
        revision: Revision {
            commit: content.attributes.commit.clone(),
            claim: claim.to_owned(),
        },
        volume: volume_name(owner.namespace, claim),
        handle: format!("{}{own}", owner.uid),
        content: content.clone(),
    }
}

/// The PersistentVolume, bound beforehand to the claim of the same content. `labels` are those of
/// everything that is made for the owner.
pub fn persistent_volume(
    owner: &Owner<'_>,
    labels: BTreeMap<String, String>,
    new: &NewVolume,
) -> PersistentVolume {
    shape(new).volume(owner, with_commit(labels, new))
}

/// The claim that takes exactly that PersistentVolume.
pub fn persistent_volume_claim(
    owner: &Owner<'_>,
    labels: BTreeMap<String, String>,
    new: &NewVolume,
) -> PersistentVolumeClaim {
    shape(new).claim(owner, with_commit(labels, new))
}

fn shape(new: &NewVolume) -> Shape<'_> {
    let (size_bytes, writable) = match new.content.attributes.mode {
        VolumeMode::ReadOnly => (new.content.size_bytes, false),
        VolumeMode::ReadWrite { capacity_bytes } => (capacity_bytes, true),
    };
    Shape {
        claim: &new.revision.claim,
        volume: &new.volume,
        handle: &new.handle,
        attributes: new.content.attributes.to_map(),
        size_bytes,
        writable,
        is_followed: false,
    }
}

fn with_commit(mut labels: BTreeMap<String, String>, new: &NewVolume) -> BTreeMap<String, String> {
    labels.insert(label::COMMIT.to_owned(), new.revision.commit.to_string());
    labels
}

/// Makes a volume, its claim and its word for `owner`, if they are not there.
///
/// # Errors
/// See [`ApplyError`].
pub async fn ensure(
    client: &Client,
    applier: &Applier,
    caches: &Caches,
    grants: &Grants,
    owner: &Owner<'_>,
    bound: &BoundVolume,
) -> Result<(), ApplyError> {
    let BoundVolume { volume, claim } = bound;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let name = volume.name_any();
    match caches.volumes.get(None, &name) {
        None => {
            let is_ours = |existing: &PersistentVolume| owner.made(existing);
            applier.create(&volumes, volume, is_ours).await?;
        }
        Some(existing) => {
            let phase = existing.status.as_ref().and_then(|s| s.phase.as_deref());
            if existing.metadata.deletion_timestamp.is_some()
                || matches!(phase, Some("Released" | "Failed"))
            {
                applier.delete(&volumes, existing.as_ref()).await?;
                return Err(ApplyError::leaving("PersistentVolume", &name));
            }
        }
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), owner.namespace);
    let name = claim.name_any();
    let meta = match caches.claims.get(Some(owner.namespace), &name) {
        None => {
            let is_ours = |existing: &PersistentVolumeClaim| owner.owns(existing);
            applier.create(&claims, claim, is_ours).await?;
            let kind = "PersistentVolumeClaim";
            let made = claims.get_opt(&name).await;
            let made = made.map_err(|source| request_error("get", kind, &name, source))?;
            made.ok_or_else(|| ApplyError::leaving(kind, &name))?
                .metadata
        }
        Some(existing) => {
            check_owner(owner, existing.as_ref())?;
            let phase = existing.status.as_ref().and_then(|s| s.phase.as_deref());
            // Lost since it was chosen. The next look chooses another name, and this claim goes
            // when no pod mounts it any more.
            if phase == Some("Lost") {
                return Err(ApplyError::leaving("PersistentVolumeClaim", &name));
            }
            existing.metadata.clone()
        }
    };
    match Wanted::of(volume) {
        Some(wanted) => grants.ensure(&wanted, &meta).await,
        None => Ok(()),
    }
}
