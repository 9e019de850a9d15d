use hyprstream_api::{Device, Dtype};
use hyprstream_contract::{training, worker};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
        PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
        ProjectedVolumeSource, SeccompProfile, SecretVolumeSource, SecurityContext,
        ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{DatasetPlan, Plan, account_name, config_name, key_name, labels, trust_name};
use crate::lost_nodes;

/// The user of all our images.
const USER: i64 = 65532;
/// Time for a step to end, and for its checkpoint to be written and pushed.
const GRACE_SECONDS: i64 = 300;
/// Life of a token; the kubelet renews it at four fifths.
const TOKEN_SECONDS: i64 = 3600;
/// The pod runs as a user of its own, and nobody else is in it.
const KEY_MODE: i32 = 0o444;

/// The volume with the authorities by which the registry is trusted.
pub(in super::super) const TRUST: &str = "trust";

/// What a pod mounts.
pub(super) struct Mounts<'a> {
    /// Of the Model's commit.
    pub(super) workspace: &'a str,
    /// Of the dataset, where it lies in git.
    pub(super) dataset: Option<&'a str>,
    /// Whether there are authorities by which the registry is trusted.
    pub(super) has_trust: bool,
}

/// The pod of a job.
pub(super) fn template(plan: &Plan, mounts: &Mounts<'_>) -> PodTemplateSpec {
    let spec = &plan.spec;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(plan)),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(account_name(plan)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            containers: vec![container(plan, mounts)],
            node_selector: Some(spec.node_selector.clone()).filter(|s| !s.is_empty()),
            runtime_class_name: spec.runtime_class_name.clone(),
            tolerations: Some(lost_nodes::tolerations(&spec.tolerations)),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            volumes: Some(volumes(plan, mounts)),
            ..PodSpec::default()
        }),
    }
}

fn volumes(plan: &Plan, mounts: &Mounts<'_>) -> Vec<Volume> {
    let claimed = |name: &str, claim: &str, read_only: bool| Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: Some(read_only),
        }),
        ..Volume::default()
    };
    let mapped = |name: &str, map: &str| Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: map.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let dataset = match (&plan.dataset, mounts.dataset) {
        (DatasetPlan::Git(_), claim) => claimed("dataset", claim.unwrap_or_default(), true),
        (DatasetPlan::Claim(claim), _) => claimed("dataset", claim, true),
        (DatasetPlan::ConfigMap(map), _) => mapped("dataset", map),
    };
    let token = ServiceAccountTokenProjection {
        audience: Some(hyprstream_contract::repositories::rbac::AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: file_of(training::TOKEN_FILE).to_owned(),
        user: None,
    };
    let mut volumes = vec![
        claimed("workspace", mounts.workspace, false),
        dataset,
        mapped("config", &config_name(plan)),
        Volume {
            name: "key".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(key_name(plan)),
                default_mode: Some(KEY_MODE),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "token".to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
    ];
    if mounts.has_trust {
        volumes.push(mapped(TRUST, &trust_name(plan)));
    }
    volumes
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(folder, _)| folder)
}

fn file_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, file)| file)
}

fn container(plan: &Plan, mounts: &Mounts<'_>) -> Container {
    let mounted = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let dtype = match plan.spec.dtype {
        Dtype::Auto => None,
        dtype => Some(dtype.as_str()),
    };
    let path = |file: &str| format!("{}/{file}", training::CONFIG_DIR);
    let mut args = vec![
        "train".to_owned(),
        "--job".to_owned(),
        path(training::JOB_FILE),
        "--pod".to_owned(),
        path(training::POD_FILE),
    ];
    args.extend(["--device".to_owned(), device(plan).to_owned()]);
    if let Some(dtype) = dtype {
        args.extend(["--dtype".to_owned(), dtype.to_owned()]);
    }
    let mut mounted_there = vec![
        mounted("workspace", training::WORKSPACE_DIR, false),
        mounted("dataset", training::DATASET_DIR, true),
        mounted("config", training::CONFIG_DIR, true),
        mounted("key", training::KEY_DIR, true),
        mounted("token", folder_of(training::TOKEN_FILE), true),
        mounted("tmp", "/tmp", false),
    ];
    if mounts.has_trust {
        mounted_there.push(mounted(TRUST, folder_of(training::CA_FILE), true));
    }
    Container {
        name: training::CONTAINER.to_owned(),
        image: Some(plan.image.clone()),
        image_pull_policy: Some(plan.pull_policy.to_owned()),
        args: Some(args),
        ports: Some(vec![ContainerPort {
            name: Some(training::PORT_NAME.to_owned()),
            container_port: i32::from(training::PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(plan.spec.resources.requirements()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        termination_message_path: Some(worker::TERMINATION_LOG.to_owned()),
        // The end of the log of a pod that ended without last words.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounted_there),
        ..Container::default()
    }
}

/// What it is trained on, which also chooses the learner.
fn device(plan: &Plan) -> &'static str {
    match plan.spec.device {
        Device::Cpu => "cpu",
        // To libtorch a GPU of AMD is a cuda device as well.
        Device::Cuda | Device::Rocm => "cuda",
    }
}
