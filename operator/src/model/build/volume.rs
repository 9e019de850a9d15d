use std::collections::BTreeMap;

use hyprstream_contract::{
    CommitId, VolumeAttributes, label,
    registry::Reference,
    volume::{DRIVER_NAME, VolumeMode},
};
use k8s_openapi::{
    api::core::v1::{
        CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeClaimSpec, PersistentVolumeSpec, VolumeResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;

use super::{Content, Plan, Revision, labels, metadata};
use crate::{cache::digest, source::Mirrored};

const MIB: u64 = 1 << 20;

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

/// What the volume of a mirrored commit shows.
pub fn content(plan: &Plan, mirrored: &Mirrored) -> Content {
    Content {
        attributes: VolumeAttributes {
            repository: mirrored.repository.clone(),
            commit: mirrored.commit.clone(),
            source: plan.source.url.clone(),
            reference: match &plan.source.reference {
                Reference::Branch(name) | Reference::Tag(name) => Some(name.clone()),
                Reference::Head | Reference::Commit(_) => None,
            },
            include: plan.source.include.clone(),
            mode: VolumeMode::ReadOnly,
        },
        size_bytes: mirrored.size_bytes,
    }
}

/// Name of the claim of a content. It follows from the Model and from what the volume shows, so
/// that the same content has the same claim and other content another. Where a claim of the name
/// cannot be used, the name goes on with a dash and a number.
pub fn claim_name(plan: &Plan, content: &Content) -> String {
    let attributes = &content.attributes;
    let hash = digest(&(&plan.uid, attributes.to_map()));
    format!("{}-{}-{}", plan.name, attributes.commit.short(), &hash[..8])
}

/// Name of the PersistentVolume of a claim.
pub fn volume_name(namespace: &str, claim: &str) -> String {
    format!("hyprstream-{namespace}-{claim}")
}

/// The volume of a content, for that claim.
pub fn new_volume(plan: &Plan, content: &Content, claim: &str) -> NewVolume {
    let Plan {
        namespace,
        name,
        uid,
        ..
    } = plan;
    let own = claim.strip_prefix(name.as_str()).unwrap_or(claim);
    NewVolume {
        revision: Revision {
            commit: content.attributes.commit.clone(),
            claim: claim.to_owned(),
        },
        volume: volume_name(namespace, claim),
        handle: format!("{uid}{own}"),
        content: content.clone(),
    }
}

/// The PersistentVolume, bound beforehand to the claim of the same content.
pub fn persistent_volume(plan: &Plan, new: &NewVolume) -> PersistentVolume {
    let mut labels = commit_labels(plan, &new.revision.commit);
    labels.insert(label::MODEL_NAMESPACE.to_owned(), plan.namespace.clone());
    labels.insert(label::MODEL_UID.to_owned(), plan.uid.clone());
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(new.volume.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec!["ReadOnlyMany".to_owned()]),
            capacity: Some(BTreeMap::from([("storage".to_owned(), size(new))])),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(plan.namespace.clone()),
                name: Some(new.revision.claim.clone()),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: DRIVER_NAME.to_owned(),
                volume_handle: new.handle.clone(),
                read_only: Some(true),
                volume_attributes: Some(new.content.attributes.to_map()),
                ..CSIPersistentVolumeSource::default()
            }),
            persistent_volume_reclaim_policy: Some("Retain".to_owned()),
            storage_class_name: Some(String::new()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// The claim that takes exactly that PersistentVolume.
pub fn persistent_volume_claim(plan: &Plan, new: &NewVolume) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            labels: Some(commit_labels(plan, &new.revision.commit)),
            ..metadata(plan, &new.revision.claim)
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadOnlyMany".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size(new))])),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: Some(String::new()),
            volume_name: Some(new.volume.clone()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn commit_labels(plan: &Plan, commit: &CommitId) -> BTreeMap<String, String> {
    let mut labels = labels(plan);
    labels.insert(label::COMMIT.to_owned(), commit.to_string());
    labels
}

/// The API wants a size; nothing is allocated by it.
fn size(new: &NewVolume) -> Quantity {
    Quantity(format!("{}Mi", new.content.size_bytes.div_ceil(MIB).max(1)))
}
