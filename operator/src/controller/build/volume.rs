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

use super::{NewVolume, Plan, Revision, labels, metadata};
use crate::{cache::digest, source::Mirrored};

const MIB: u64 = 1 << 20;

/// The volume of a mirrored commit. Its names follow from the Model and from what the volume
/// shows, so that the same content has the same volume and other content another.
pub fn new_volume(plan: &Plan, mirrored: &Mirrored) -> NewVolume {
    let attributes = VolumeAttributes {
        repository: mirrored.repository.clone(),
        commit: mirrored.commit.clone(),
        source: plan.source.url.clone(),
        reference: match &plan.source.reference {
            Reference::Branch(name) | Reference::Tag(name) => Some(name.clone()),
            Reference::Head | Reference::Commit(_) => None,
        },
        include: plan.source.include.clone(),
        mode: VolumeMode::ReadOnly,
    };
    let hash = digest(&(&plan.uid, attributes.to_map()));
    let hash = &hash[..8];
    let short = mirrored.commit.short();
    let Plan {
        namespace,
        name,
        uid,
        ..
    } = plan;
    NewVolume {
        revision: Revision {
            commit: mirrored.commit.clone(),
            claim: format!("{name}-{short}-{hash}"),
        },
        volume: format!("hyprstream-{namespace}-{name}-{short}-{hash}"),
        handle: format!("{uid}-{short}-{hash}"),
        attributes,
        size_bytes: mirrored.size_bytes,
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
                volume_attributes: Some(new.attributes.to_map()),
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
    Quantity(format!("{}Mi", new.size_bytes.div_ceil(MIB).max(1)))
}
