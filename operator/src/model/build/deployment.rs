use std::collections::BTreeMap;

use hyprstream_api::{Device, ModelAdapters};
use hyprstream_contract::{label, worker};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
            Lifecycle, LifecycleHandler, PersistentVolumeClaimVolumeSource, PodSecurityContext,
            PodSpec, PodTemplateSpec, Probe, SeccompProfile, SecurityContext, SleepAction,
            TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde::Serialize;

use super::{
    ADAPTERS_VOLUME, ASKED, CLAIM, CONTENT, GOOD, MODEL_VOLUME, Plan, REPLACING, REVISION,
    Revision, UPGRADE, Workers, key, labels, metadata, selector, tls,
};
use crate::{cache::digest, lost_nodes};

const TMP_VOLUME: &str = "tmp";
/// The user of all our images.
const USER: i64 = 65532;
/// Time for load balancers to learn that a worker ends before it stops listening.
const PRE_STOP_SECONDS: i64 = 3;
/// Time for running generations to end.
const GRACE_SECONDS: i64 = 120;
/// Longest that loading may take.
const LOADING_SECONDS: i32 = 24 * 3600;

/// What a Deployment tells the next reconciliation, beside its pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// The last workers that were all ready.
    pub good: Option<Workers>,
    /// What the Model asked for, see [`asked`].
    pub asked: Option<String>,
    /// Another release of the operator is the cause of these pods.
    pub is_upgrade: bool,
    /// These pods take the place of others one by one, for want of room.
    pub is_replacing: bool,
}

/// The Deployment of a Model's workers. It has the Model's name.
pub fn deployment(plan: &Plan, workers: &Workers, notes: &Notes) -> Deployment {
    let rollout = &plan.spec.rollout;
    let (max_surge, max_unavailable) = if notes.is_replacing {
        (IntOrString::Int(0), IntOrString::Int(1))
    } else {
        (rollout.max_surge.clone(), rollout.max_unavailable.clone())
    };
    let revision = &workers.revision;
    let mut meta = metadata(plan, &plan.name);
    meta.labels.get_or_insert_default().extend([
        (label::COMMIT.to_owned(), revision.commit.to_string()),
        (REVISION.to_owned(), workers.digest().to_owned()),
    ]);
    meta.annotations = Some(annotations(workers, notes));
    Deployment {
        metadata: meta,
        spec: DeploymentSpec {
            replicas: Some(plan.spec.replicas),
            selector: LabelSelector {
                match_labels: Some(selector(&plan.name)),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(max_surge),
                    max_unavailable: Some(max_unavailable),
                }),
            }),
            progress_deadline_seconds: Some(rollout.progress_deadline_seconds),
            revision_history_limit: Some(2),
            template: workers.template.clone(),
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

fn annotations(workers: &Workers, notes: &Notes) -> BTreeMap<String, String> {
    let claim = Some(workers.revision.claim.clone());
    let digest = || workers.digest().to_owned();
    [
        (CLAIM, claim),
        (CONTENT, workers.content.as_ref().map(json)),
        (GOOD, notes.good.as_ref().map(json)),
        (ASKED, notes.asked.clone()),
        (UPGRADE, notes.is_upgrade.then(digest)),
        (REPLACING, notes.is_replacing.then(digest)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

/// What came out of JSON, and maps of text, have a JSON form.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What a Model itself asks for, without what the operator adds: [`asked_spec`] and the commit.
pub fn asked(plan: &Plan, commit: &str) -> String {
    format!("{}/{commit}", asked_spec(plan))
}

/// Digest of the parts of the spec that make a worker.
pub fn asked_spec(plan: &Plan) -> String {
    let spec = &plan.spec;
    let asked = (
        (
            &plan.source.url,
            &plan.source.reference,
            &plan.source.include,
        ),
        &spec.engine,
        &spec.resources,
        &spec.node_selector,
        &spec.tolerations,
        &spec.runtime_class_name,
    );
    // Who asks for nothing here asks for what an earlier release, which knew no adapters, noted:
    // the workers that mount them are a change of the release's, which waits for its turn.
    if spec.adapters == ModelAdapters::default() {
        digest(&asked)
    } else {
        digest(&(asked, &spec.adapters))
    }
}

/// Digest of the pods that a revision gives. Pods carry it as the label [`REVISION`].
pub fn revision_of(plan: &Plan, revision: &Revision) -> String {
    digest(&bare_template(plan, revision))
}

/// Digest of what trying a revision means. A failed attempt is not repeated while it is the same.
pub fn attempt(plan: &Plan, revision: &Revision) -> String {
    digest(&(
        bare_template(plan, revision),
        plan.spec.rollout.progress_deadline_seconds,
    ))
}

pub(super) fn template(plan: &Plan, revision: &Revision) -> PodTemplateSpec {
    let mut template = bare_template(plan, revision);
    let digest = digest(&template);
    if let Some(meta) = &mut template.metadata {
        meta.labels
            .get_or_insert_default()
            .insert(REVISION.to_owned(), digest);
    }
    template
}

fn bare_template(plan: &Plan, revision: &Revision) -> PodTemplateSpec {
    let mut labels = labels(plan);
    labels.insert(label::COMMIT.to_owned(), revision.commit.to_string());
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            containers: vec![container(plan)],
            node_selector: Some(plan.spec.node_selector.clone()).filter(|s| !s.is_empty()),
            runtime_class_name: plan.spec.runtime_class_name.clone(),
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
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            tolerations: Some(lost_nodes::tolerations(&plan.spec.tolerations)),
            topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: "kubernetes.io/hostname".to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(LabelSelector {
                    match_labels: Some(selector(&plan.name)),
                    ..LabelSelector::default()
                }),
                // Old workers, which are about to go, do not count.
                match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
                ..TopologySpreadConstraint::default()
            }]),
            volumes: Some(vec![
                claimed(MODEL_VOLUME, &revision.claim),
                claimed(ADAPTERS_VOLUME, &plan.adapters_claim),
                Volume {
                    name: TMP_VOLUME.to_owned(),
                    empty_dir: Some(EmptyDirVolumeSource::default()),
                    ..Volume::default()
                },
            ]),
            ..PodSpec::default()
        }),
    };
    key::ask_for_key(plan, &mut template);
    tls::speak_tls(plan, &mut template);
    template
}

fn claimed(name: &str, claim: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: Some(true),
        }),
        ..Volume::default()
    }
}

fn mounted(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn container(plan: &Plan) -> Container {
    Container {
        name: worker::CONTAINER.to_owned(),
        image: Some(plan.image.clone()),
        image_pull_policy: Some(plan.pull_policy.to_owned()),
        args: Some(vec!["serve".to_owned()]),
        env: Some(environment(plan)),
        ports: Some(vec![ContainerPort {
            name: Some(worker::PORT_NAME.to_owned()),
            container_port: i32::from(worker::PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: plan.spec.resources.clone(),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        // The other probes begin once the model is loaded; one that never is falls to the
        // rollout's deadline long before this.
        startup_probe: Some(probe(worker::READY_PATH, 1, 5, LOADING_SECONDS)),
        readiness_probe: Some(probe(worker::READY_PATH, 2, 5, 3)),
        // Patient: on a node short of CPU a restart only adds to the load.
        liveness_probe: Some(probe(worker::HEALTH_PATH, 30, 30, 6)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        termination_message_path: Some(worker::TERMINATION_LOG.to_owned()),
        // The end of the log of a worker that ended without last words.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            mounted(MODEL_VOLUME, worker::MODEL_DIR),
            mounted(ADAPTERS_VOLUME, worker::ADAPTERS_DIR),
            VolumeMount {
                name: TMP_VOLUME.to_owned(),
                mount_path: "/tmp".to_owned(),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

fn environment(plan: &Plan) -> Vec<EnvVar> {
    let engine = &plan.spec.engine;
    let adapters = &plan.spec.adapters;
    let device = match engine.device {
        Device::Cpu => "cpu",
        // To libtorch a GPU of AMD is a cuda device as well.
        Device::Cuda | Device::Rocm => "cuda",
    };
    let mut pairs = vec![
        (worker::env::MODEL, worker::MODEL_DIR.to_owned()),
        (worker::env::NAME, plan.name.clone()),
        (worker::env::NAMESPACE, plan.namespace.clone()),
        (worker::env::PORT, worker::PORT.to_string()),
        (worker::env::DEVICE, device.to_owned()),
        (worker::env::DTYPE, engine.dtype.as_str().to_owned()),
        (worker::env::ADAPTERS, worker::ADAPTERS_DIR.to_owned()),
        (
            worker::env::REPOSITORY_ADAPTERS,
            adapters.from_repository.to_string(),
        ),
    ];
    if !engine.quantization.is_none() {
        let value = engine.quantization.as_str().to_owned();
        pairs.push((worker::env::QUANTIZATION, value));
    }
    let optional = [
        (worker::env::MAX_MODEL_LEN, engine.max_model_len),
        (worker::env::MAX_BATCH, engine.max_batch),
        (worker::env::THREADS, engine.threads),
        (worker::env::MAX_ADAPTER_RANK, adapters.max_rank),
        (worker::env::MAX_ADAPTERS, adapters.max_resident),
    ];
    pairs.extend(
        optional
            .into_iter()
            .filter_map(|(name, v)| Some((name, v?.to_string()))),
    );
    if let Some(bytes) = adapters.memory_bytes() {
        pairs.push((worker::env::ADAPTER_MEMORY_BYTES, bytes.to_string()));
    }
    pairs
        .into_iter()
        .map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value),
            ..EnvVar::default()
        })
        .collect()
}

fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(worker::PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
