use hyprstream_api::{Device, Dtype, Model};
use k8s_openapi::api::core::v1::Toleration;
use serde_json::json;

use super::*;
use crate::{
    args::{Images, PullPolicy},
    controller::validate::validate,
    source::Mirrored,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn plan(spec: &serde_json::Value) -> Plan {
    let model: Model = serde_json::from_value(json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
        "metadata": {"name": "smollm2", "namespace": "default", "uid": "1b4e28ba"},
        "spec": spec,
    }))
    .unwrap();
    let images = Images {
        cpu: "worker:1".into(),
        cuda: Some("worker-cuda:1".into()),
        rocm: Some("worker-rocm:1".into()),
        pull_policy: PullPolicy::IfNotPresent,
    };
    validate(&model, &images).unwrap()
}

fn simple() -> Plan {
    plan(&json!({"source": {"url": "hyprstream://default/smollm2", "ref": {"branch": "main"}}}))
}

fn volume_of(plan: &Plan) -> NewVolume {
    new_volume(
        plan,
        &Mirrored {
            commit: COMMIT.parse().unwrap(),
            repository: "git/default/smollm2".into(),
            size_bytes: 3 * (1 << 20) + 1,
        },
    )
}

#[test]
fn a_volume_and_its_claim_name_each_other() {
    let plan = simple();
    let new = volume_of(&plan);
    insta::assert_yaml_snapshot!("volume", persistent_volume(&plan, &new));
    insta::assert_yaml_snapshot!("claim", persistent_volume_claim(&plan, &new));
}

#[test]
fn a_deployment_and_a_service_of_defaults() {
    let plan = simple();
    let revision = volume_of(&plan).revision;
    insta::assert_yaml_snapshot!("deployment", deployment(&plan, &revision));
    insta::assert_yaml_snapshot!("service", service(&plan));
}

#[test]
fn every_field_of_the_spec_arrives_in_the_pod() {
    let plan = plan(&json!({
        "source": {"url": "https://example.org/m", "include": ["*.json"]},
        "replicas": 3,
        "rollout": {"maxSurge": "50%", "maxUnavailable": 1, "progressDeadlineSeconds": 60},
        "engine": {"device": "cuda", "dtype": "bfloat16", "maxModelLen": 8192, "maxBatch": 64,
            "threads": 4},
        "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"memory": "1Gi"}},
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [
            {"key": "gpu", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
        ],
        "runtimeClassName": "nvidia",
    }));
    let revision = volume_of(&plan).revision;
    insta::assert_yaml_snapshot!("deployment_full", deployment(&plan, &revision));
}

#[test]
fn a_gpu_of_amd_is_a_cuda_device_to_libtorch_with_an_image_of_its_own() {
    let mut plan = plan(&json!({
        "source": {"url": "https://example.org/m"}, "engine": {"device": "rocm"},
    }));
    assert_eq!(
        (plan.spec.engine.device, plan.image.as_str()),
        (Device::Rocm, "worker-rocm:1")
    );
    plan.spec.engine.dtype = Dtype::Float16;
    let revision = volume_of(&plan).revision;
    let pod = deployment(&plan, &revision).spec.template.spec.unwrap();
    let env = pod.containers[0].env.as_ref().unwrap();
    let value = |name: &str| env.iter().find(|e| e.name == name).unwrap().value.clone();
    assert_eq!(value("HYPRSTREAM_DEVICE").as_deref(), Some("cuda"));
    assert_eq!(value("HYPRSTREAM_DTYPE").as_deref(), Some("float16"));
}

#[test]
fn quantization_is_told_where_it_is_asked_for() {
    let told = |engine: serde_json::Value| {
        let plan = plan(&json!({
            "source": {"url": "https://example.org/m"}, "engine": engine,
        }));
        let revision = volume_of(&plan).revision;
        let pod = deployment(&plan, &revision).spec.template.spec.unwrap();
        let env = pod.containers[0].env.clone().unwrap();
        let told = env
            .into_iter()
            .find(|e| e.name == "HYPRSTREAM_QUANTIZATION");
        told.and_then(|e| e.value)
    };
    assert_eq!(told(json!({})), None);
    assert_eq!(
        told(json!({"quantization": "int8"})).as_deref(),
        Some("int8")
    );
}

#[test]
fn other_content_has_another_volume_and_the_same_content_the_same() {
    let plan = simple();
    let first = volume_of(&plan);
    assert_eq!(first, volume_of(&plan));
    assert!(first.handle.len() <= 128, "the CSI's limit");
    let change = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        volume_of(&plan).revision.claim
    };
    assert_ne!(change(&|p| p.uid = "other".into()), first.revision.claim);
    assert_ne!(
        change(&|p| p.source.include = vec!["*.json".into()]),
        first.revision.claim
    );
    assert_eq!(change(&|p| p.spec.replicas = 7), first.revision.claim);
}

#[test]
fn the_longest_names_fit() {
    let mut plan = simple();
    plan.name = "m".repeat(52);
    plan.namespace = "n".repeat(63);
    let new = volume_of(&plan);
    assert!(new.volume.len() <= 253 && new.revision.claim.len() <= 253);
}

#[test]
fn only_what_makes_a_pod_changes_its_revision() {
    let plan = simple();
    let revision = volume_of(&plan).revision;
    let of = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        (revision_of(&plan, &revision), attempt(&plan, &revision))
    };
    let same = of(&|_| {});
    assert_eq!(of(&|p| p.spec.replicas = 7), same);
    assert_eq!(of(&|p| p.spec.storage.keep_revisions = 9), same);
    // A longer deadline is worth another try, and no reason to replace running workers.
    let patient = of(&|p| p.spec.rollout.progress_deadline_seconds = 60);
    assert_eq!(patient.0, same.0);
    assert_ne!(patient.1, same.1);
    for other in [
        of(&|p| p.image = "worker:2".into()),
        of(&|p| p.spec.engine.max_batch = Some(2)),
        of(&|p| p.spec.tolerations.push(Toleration::default())),
    ] {
        assert!(other.0 != same.0 && other.1 != same.1);
    }
}

#[test]
fn pods_carry_the_digest_that_finds_them() {
    let plan = simple();
    let revision = volume_of(&plan).revision;
    let deployment = deployment(&plan, &revision);
    let labels = deployment.spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels[REVISION], revision_of(&plan, &revision));
    assert_eq!(
        deployment.metadata.labels.unwrap()[REVISION],
        labels[REVISION]
    );
}
