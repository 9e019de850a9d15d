use hyprstream_api::Model;
use hyprstream_contract::{
    VolumeAttributes,
    volume::{MIN_CAPACITY_BYTES, VolumeMode},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::*;

fn content() -> Content {
    Content {
        attributes: VolumeAttributes {
            repository: "git/default/smollm2".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "hyprstream://default/smollm2".into(),
            reference: Some("main".into()),
            include: vec![],
            mode: VolumeMode::ReadOnly,
        },
        size_bytes: 500 << 20,
        secret: None,
    }
}

#[test]
fn a_volume_that_is_written_to_is_for_one_pod_and_has_a_capacity() {
    let reference = OwnerReference::default();
    let owner = Owner::new::<Model>("default", "smollm2", "1b4e28ba", &reference);
    let written = content().written(2 << 30);
    let claim = claim_name(&owner, &written);
    let read_only = claim_name(&owner, &content());
    assert_ne!(claim, read_only, "beside the one that serves");
    let larger = content().written(3 << 30);
    assert_ne!(claim_name(&owner, &larger), claim);

    let new = new_volume(&owner, &written, &claim);
    let volume = persistent_volume(&owner, BTreeMap::new(), &new);
    let volume = serde_json::to_value(volume).unwrap();
    assert_eq!(
        volume["spec"],
        json!({
            "accessModes": ["ReadWriteOncePod"],
            "capacity": {"storage": "2048Mi"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim,
                "namespace": "default",
            },
            "csi": {
                "driver": "csi.hyprstream.io",
                "nodeStageSecretRef": {"name": format!("{claim}-word"), "namespace": "default"},
                "readOnly": false,
                "volumeAttributes": {
                    "hyprstream.io/capacity": "2147483648",
                    "hyprstream.io/commit": "0123456789abcdef0123456789abcdef01234567",
                    "hyprstream.io/mode": "rw",
                    "hyprstream.io/ref": "main",
                    "hyprstream.io/repository": "git/default/smollm2",
                    "hyprstream.io/source": "hyprstream://default/smollm2",
                },
                "volumeHandle": new.handle,
            },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": "Filesystem",
        })
    );
    let bound = persistent_volume_claim(&owner, BTreeMap::new(), &new);
    let bound = serde_json::to_value(bound).unwrap();
    assert_eq!(bound["spec"]["accessModes"], json!(["ReadWriteOncePod"]));
    assert_eq!(
        bound["spec"]["resources"]["requests"],
        json!({"storage": "2048Mi"})
    );
    assert_eq!(bound["spec"]["volumeName"], volume["metadata"]["name"]);
}

#[test]
fn a_content_that_is_written_to_survives_its_text_form() {
    let written = content().written(MIN_CAPACITY_BYTES);
    let text = serde_json::to_string(&written).unwrap();
    assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), written);
    let small = serde_json::to_string(&content().written(1)).unwrap();
    let told = serde_json::from_str::<Content>(&small).unwrap_err();
    assert!(
        told.to_string().contains("hyprstream.io/capacity"),
        "{told}"
    );
}
