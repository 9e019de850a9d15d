use std::collections::BTreeMap;

use hyprstream_contract::volume::DRIVER_NAME;
use k8s_openapi::{
    api::core::v1::{
        CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeClaimSpec, PersistentVolumeSpec, SecretReference,
        VolumeResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{grants::secret_name, owner::Owner};

const MIB: u64 = 1 << 20;

/// What tells volumes of ours apart, whatever they show.
pub(super) struct Shape<'a> {
    /// Name of the claim.
    pub(super) claim: &'a str,
    /// Name of the PersistentVolume.
    pub(super) volume: &'a str,
    /// Identifies the volume to the node plugin, at most 128 bytes.
    pub(super) handle: &'a str,
    /// What the node plugin is told.
    pub(super) attributes: BTreeMap<String, String>,
    /// Size, as far as known, or the capacity of one that is written to.
    pub(super) size_bytes: u64,
    /// Whether one pod at a time writes to it, rather than many reading it.
    pub(super) writable: bool,
    /// Whether nodes go on asking the registry while it is mounted, so that its word is brought
    /// again and again.
    pub(super) is_followed: bool,
}

impl Shape<'_> {
    /// The PersistentVolume, bound beforehand to the claim.
    pub(super) fn volume(
        self,
        owner: &Owner<'_>,
        labels: BTreeMap<String, String>,
    ) -> PersistentVolume {
        let word = SecretReference {
            name: Some(secret_name(self.claim)),
            namespace: Some(owner.namespace.to_owned()),
        };
        PersistentVolume {
            metadata: owner.cluster_metadata(self.volume, labels),
            spec: Some(PersistentVolumeSpec {
                access_modes: Some(vec![self.access_mode()]),
                capacity: Some(BTreeMap::from([("storage".to_owned(), self.size())])),
                claim_ref: Some(ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("PersistentVolumeClaim".to_owned()),
                    namespace: Some(owner.namespace.to_owned()),
                    name: Some(self.claim.to_owned()),
                    ..ObjectReference::default()
                }),
                csi: Some(CSIPersistentVolumeSource {
                    driver: DRIVER_NAME.to_owned(),
                    volume_handle: self.handle.to_owned(),
                    read_only: Some(!self.writable),
                    volume_attributes: Some(self.attributes),
                    node_publish_secret_ref: self.is_followed.then(|| word.clone()),
                    node_stage_secret_ref: Some(word),
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
    pub(super) fn claim(
        self,
        owner: &Owner<'_>,
        labels: BTreeMap<String, String>,
    ) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: owner.metadata(self.claim, labels),
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec![self.access_mode()]),
                resources: Some(VolumeResourceRequirements {
                    requests: Some(BTreeMap::from([("storage".to_owned(), self.size())])),
                    ..VolumeResourceRequirements::default()
                }),
                storage_class_name: Some(String::new()),
                volume_name: Some(self.volume.to_owned()),
                volume_mode: Some("Filesystem".to_owned()),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    fn access_mode(&self) -> String {
        if self.writable {
            "ReadWriteOncePod".to_owned()
        } else {
            "ReadOnlyMany".to_owned()
        }
    }

    /// The API wants a size. Nothing is allocated by it: the node plugin goes by the attributes.
    fn size(&self) -> Quantity {
        Quantity(format!("{}Mi", self.size_bytes.div_ceil(MIB).max(1)))
    }
}
