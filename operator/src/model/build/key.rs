use std::collections::BTreeMap;

use hyprstream_contract::{worker, worker_key};
use k8s_openapi::{
    ByteString,
    api::core::v1::{
        Container, EnvVar, PodTemplateSpec, Secret, SecretVolumeSource, Volume, VolumeMount,
    },
};

use super::{Plan, metadata};

/// Annotation on pods: digest of the key that they ask for, so that another key makes new pods.
const DIGEST: &str = "hyprstream.io/worker-key";
const VOLUME: &str = "key";
const MOUNT: &str = "/etc/hyprstream";
/// Workers run as a user of their own, and nobody else is in their pods.
const MODE: i32 = 0o444;

/// The Secret with the key of a Model's workers; `None` without one.
pub fn worker_key(plan: &Plan) -> Option<Secret> {
    let key = plan.worker_key.as_ref()?;
    let content = ByteString(key.secret().as_bytes().to_vec());
    Some(Secret {
        metadata: metadata(plan, &name(plan)),
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(worker_key::FILE.to_owned(), content)])),
        ..Secret::default()
    })
}

/// Makes the pods of a template ask for the key of their plan.
pub(super) fn ask_for_key(plan: &Plan, template: &mut PodTemplateSpec) {
    let Some(key) = &plan.worker_key else {
        return;
    };
    let meta = template.metadata.get_or_insert_default();
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(DIGEST.to_owned(), key.digest());
    let pod = template.spec.get_or_insert_default();
    pod.volumes.get_or_insert_default().push(Volume {
        name: VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name(plan)),
            default_mode: Some(MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    pod.containers.iter_mut().for_each(mount);
}

fn mount(container: &mut Container) {
    container.env.get_or_insert_default().push(EnvVar {
        name: worker::env::API_KEY_FILE.to_owned(),
        value: Some(format!("{MOUNT}/{}", worker_key::FILE)),
        ..EnvVar::default()
    });
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.push(VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
}

fn name(plan: &Plan) -> String {
    format!("{}-worker-key", plan.name)
}
