use hyprstream_api::{Device, Dtype, Model};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Toleration},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::json;

use super::*;
use crate::{
    args::{Images, PullPolicy},
    model::validate::validate,
    policy::{MasterKey, Policy, WorkerTls},
    source::Mirrored,
    volume::BoundVolume,
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
    let content = content(
        plan,
        &Mirrored {
            commit: COMMIT.parse().unwrap(),
            repository: "git/default/smollm2".into(),
            size_bytes: 3 * (1 << 20) + 1,
        },
    );
    new_volume(plan, &content, &claim_name(plan, &content))
}

fn workers_of(plan: &Plan) -> Workers {
    let new = volume_of(plan);
    workers(plan, new.revision, Some(new.content))
}

/// The Deployment of what a plan asks for.
fn deployment_of(plan: &Plan) -> Deployment {
    let notes = Notes {
        asked: Some(asked(plan, COMMIT)),
        ..Notes::default()
    };
    deployment(plan, &workers_of(plan), &notes)
}

#[test]
fn a_volume_and_its_claim_name_each_other() {
    let plan = simple();
    let new = volume_of(&plan);
    insta::assert_yaml_snapshot!("volume", persistent_volume(&plan, &new));
    insta::assert_yaml_snapshot!("claim", persistent_volume_claim(&plan, &new));
}

#[test]
fn the_adapters_of_a_model_have_one_volume_whatever_it_serves() {
    let plan = simple();
    let BoundVolume { volume, claim } = adapters_volume(&plan);
    insta::assert_yaml_snapshot!("adapters_volume", volume);
    insta::assert_yaml_snapshot!("adapters_claim", claim);
    assert!(crate::volume::shows_adapters(&volume) && crate::volume::shows_adapters(&claim));
    let mut other = plan.clone();
    other.source.url = "https://example.org/m".into();
    other.spec.adapters.max_rank = Some(8);
    assert_eq!(adapters_volume(&other).volume, volume);
    let made = desired(&plan, None, &Notes::default());
    assert_eq!(made.adapters.volume, volume, "before there is a commit");
    assert!(made.kept_claims.contains("smollm2-granted-adapters"));
}

#[test]
fn workers_follow_the_adapters_on_another_claim_too() {
    let plan = simple();
    let made = workers_of(&plan);
    assert_eq!(made.adapters_claim(), Some("smollm2-granted-adapters"));
    let moved = made.clone().on_adapters_claim("smollm2-granted-adapters-1");
    assert_ne!(moved.digest(), made.digest());
    assert_eq!(moved.revision, made.revision);
    // What is rendered for that claim is the same.
    let mut other = plan.clone();
    other.adapters_claim = "smollm2-granted-adapters-1".into();
    assert_eq!(workers_of(&other), moved);
}

#[test]
fn a_deployment_and_a_service_of_defaults() {
    let plan = simple();
    insta::assert_yaml_snapshot!("deployment", deployment_of(&plan));
    insta::assert_yaml_snapshot!("service", service(&plan, None));
}

#[test]
fn a_budget_lets_one_worker_go_at_a_time_and_a_single_one_too() {
    let budget = disruption_budget(&simple());
    let spec = budget.spec.unwrap();
    assert_eq!(spec.max_unavailable, Some(IntOrString::Int(1)));
    assert_eq!(spec.min_available, None);
    assert_eq!(
        spec.selector.unwrap().match_labels,
        Some(selector("smollm2"))
    );
}

#[test]
fn workers_ask_for_their_key_and_another_key_makes_other_pods() {
    let plan = simple();
    assert_eq!(worker_key(&plan), None);
    let file = tempfile::NamedTempFile::new().unwrap();
    let with_key = |master: &str| {
        std::fs::write(file.path(), master).unwrap();
        let keys = MasterKey::open(file.path().to_owned()).unwrap();
        let policy = Policy {
            insecure_hosts: vec![],
            keys,
            worker_tls: WorkerTls::Off,
        };
        policy.admit(plan.clone()).unwrap()
    };
    let first = with_key("0123456789abcdef0123456789abcdef");
    let other = with_key("fedcba9876543210fedcba9876543210");
    assert_ne!(workers_of(&first).digest(), workers_of(&other).digest());

    let secret = worker_key(&first).unwrap();
    assert_eq!(secret.metadata.name.as_deref(), Some("smollm2-worker-key"));
    let key = &secret.data.as_ref().unwrap()["key"].0;
    let keys = hyprstream_contract::WorkerKeys::new("0123456789abcdef0123456789abcdef").unwrap();
    assert_eq!(key, keys.of("default", "smollm2").as_bytes());

    let template = deployment_of(&first).spec.template;
    let annotations = template.metadata.unwrap().annotations.unwrap();
    let shown = annotations["hyprstream.io/worker-key"].as_bytes();
    assert!(!key.windows(8).any(|w| shown.windows(8).any(|s| s == w)));
    let pod = template.spec.unwrap();
    let container = &pod.containers[0];
    let env = container.env.as_ref().unwrap();
    let file = env.iter().find(|e| e.name == "HYPRSTREAM_API_KEY_FILE");
    let file = file.unwrap().value.clone().unwrap();
    let mounts = container.volume_mounts.as_ref().unwrap();
    let mount = mounts.iter().find(|m| m.name == "key").unwrap();
    assert_eq!(file, format!("{}/key", mount.mount_path));
    let volumes = pod.volumes.unwrap();
    let volume = volumes.iter().find(|v| v.name == "key").unwrap();
    let source = volume.secret.as_ref().unwrap();
    assert_eq!(source.secret_name, secret.metadata.name);
}

fn speaking(worker_tls: WorkerTls) -> Plan {
    Plan {
        worker_tls,
        ..simple()
    }
}

#[test]
fn workers_speak_tls_beside_plain_http_or_alone() {
    let of = |worker_tls: WorkerTls| {
        let plan = speaking(worker_tls);
        let pod = deployment_of(&plan).spec.template.spec.unwrap();
        let container = pod.containers[0].clone();
        let value = |name: &str| {
            let all = container.env.iter().flatten().filter(|e| e.name == name);
            all.map(|e| e.value.clone().unwrap())
                .collect::<Vec<_>>()
                .join(",")
        };
        let ports = container.ports.iter().flatten();
        let ports: Vec<_> = ports
            .map(|p| (p.name.clone().unwrap(), p.container_port))
            .collect();
        let probe = container.readiness_probe.clone().unwrap().http_get.unwrap();
        let told = (value("HYPRSTREAM_PORT"), value("HYPRSTREAM_TLS_PORT"));
        let file = (value("HYPRSTREAM_TLS_CERT"), value("HYPRSTREAM_TLS_KEY"));
        let volumes = pod.volumes.unwrap().into_iter();
        let secrets: Vec<_> = volumes.filter_map(|v| v.secret?.secret_name).collect();
        let has_mount = container
            .volume_mounts
            .iter()
            .flatten()
            .any(|m| m.mount_path == "/etc/hyprstream-tls");
        assert_eq!(has_mount, worker_tls != WorkerTls::Off);
        assert_eq!(
            container.startup_probe.unwrap().http_get.unwrap().scheme,
            probe.scheme
        );
        assert_eq!(
            container.liveness_probe.unwrap().http_get.unwrap().scheme,
            probe.scheme
        );
        (ports, told, file, probe.scheme, probe.port, secrets)
    };
    let named = |name: &str, port| (name.to_owned(), port);
    let told = |port: &str, tls: &str| (port.to_owned(), tls.to_owned());
    let port = |name: &str| IntOrString::String(name.to_owned());
    let files = told("/etc/hyprstream-tls/tls.crt", "/etc/hyprstream-tls/tls.key");
    let https = Some("HTTPS".to_owned());
    let secrets = vec!["smollm2-worker-tls".to_owned()];
    let off = (
        vec![named("http", 8000)],
        told("8000", ""),
        told("", ""),
        None,
        port("http"),
        vec![],
    );
    assert_eq!(of(WorkerTls::Off), off);
    let permissive = (
        vec![named("http", 8000), named("https", 8443)],
        told("8000", "8443"),
        files.clone(),
        https.clone(),
        port("https"),
        secrets.clone(),
    );
    assert_eq!(of(WorkerTls::Permissive), permissive);
    let strict = (
        vec![named("https", 8443)],
        told("8443", ""),
        files,
        https,
        port("https"),
        secrets,
    );
    assert_eq!(of(WorkerTls::Strict), strict);
}

/// So that a release that brings TLS changes a few Models at a time.
#[test]
fn that_workers_speak_tls_is_no_wish_of_the_model() {
    let (off, strict) = (simple(), speaking(WorkerTls::Strict));
    assert_eq!(asked(&off, COMMIT), asked(&strict, COMMIT));
    assert_ne!(workers_of(&off).digest(), workers_of(&strict).digest());
}

#[test]
fn a_service_has_a_port_for_each_thing_that_pods_may_speak() {
    let of = |worker_tls: WorkerTls| {
        let plan = speaking(worker_tls);
        let ports = service(&plan, None).spec.unwrap().ports.unwrap();
        let ports = ports.into_iter().map(|p| {
            let IntOrString::String(target) = p.target_port.unwrap() else {
                unreachable!("it is a name");
            };
            format!("{}:{}->{target}", p.name.unwrap(), p.port)
        });
        (ports.collect::<Vec<_>>().join(" "), url(&plan))
    };
    let plain = "http://smollm2.default.svc:8000/v1".to_owned();
    let both = "http:8000->http https:8443->https".to_owned();
    assert_eq!(
        of(WorkerTls::Off),
        ("http:8000->http".to_owned(), plain.clone())
    );
    assert_eq!(of(WorkerTls::Permissive), (both.clone(), plain));
    // Pods of before may still speak plain HTTP alone.
    let tls = "https://smollm2.default.svc:8443/v1".to_owned();
    assert_eq!(of(WorkerTls::Strict), (both, tls));
}

#[test]
fn a_certificate_is_made_anew_for_what_it_lacks_and_for_no_other_reason() {
    use std::time::{Duration, SystemTime};

    use hyprstream_tls::Authority;

    let plan = speaking(WorkerTls::Strict);
    let now = SystemTime::now();
    let authority = |name| Authority::generate(name, now, 4 * tls::LIFE).unwrap();
    let (signer, other) = (authority("one"), authority("two"));
    let issued = signer.issue(&tls::names(&plan), now, tls::LIFE).unwrap();
    let secret = tls::secret(&plan, &issued, &signer);
    let due = |secret: &_, signer: &_, now| tls::due(&plan, secret, signer, now);

    let at = due(&secret, &signer, now).unwrap();
    let day = Duration::from_hours(24);
    assert!(
        at > now + 59 * day && at < now + 61 * day,
        "two thirds of 90 days"
    );
    assert_eq!(due(&secret, &signer, at - day), Ok(at));
    assert!(due(&secret, &signer, at).is_err());
    assert_eq!(due(&secret, &other, now), Err("another authority signs"));

    let mut renamed = plan.clone();
    renamed.name = "other".into();
    let found = tls::due(&renamed, &secret, &signer, now);
    assert_eq!(found, Err("it is for other names"));

    let change = |change: &dyn Fn(&mut std::collections::BTreeMap<String, _>)| {
        let mut secret = secret.clone();
        change(secret.data.as_mut().unwrap());
        due(&secret, &signer, now)
    };
    assert_eq!(
        change(&|data| drop(data.remove("tls.key"))),
        Err("its Secret lacks it")
    );
    let garbage = k8s_openapi::ByteString(b"no PEM".to_vec());
    assert_eq!(
        change(&|data| drop(data.insert("tls.crt".into(), garbage.clone()))),
        Err("it cannot be used")
    );
    let another = signer.issue(&tls::names(&plan), now, tls::LIFE).unwrap();
    let key = k8s_openapi::ByteString(another.key.into_bytes());
    assert_eq!(
        change(&|data| drop(data.insert("tls.key".into(), key.clone()))),
        Err("it cannot be used")
    );
}

#[test]
fn every_field_of_the_spec_arrives_in_the_pod() {
    let plan = plan(&json!({
        "source": {"url": "https://example.org/m", "include": ["*.json"]},
        "replicas": 3,
        "rollout": {"maxSurge": "50%", "maxUnavailable": 1, "progressDeadlineSeconds": 60},
        "engine": {"device": "cuda", "dtype": "bfloat16", "maxModelLen": 8192, "maxBatch": 64,
            "threads": 4},
        "adapters": {"fromRepository": false, "maxRank": 64, "maxResident": 8, "memory": "2Gi"},
        "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"memory": "1Gi"}},
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [
            {"key": "gpu", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
        ],
        "runtimeClassName": "nvidia",
    }));
    insta::assert_yaml_snapshot!("deployment_full", deployment_of(&plan));
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
    let pod = deployment_of(&plan).spec.template.spec.unwrap();
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
        let pod = deployment_of(&plan).spec.template.spec.unwrap();
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
        of(&|p| p.spec.adapters.max_resident = Some(2)),
        of(&|p| p.spec.tolerations.push(Toleration::default())),
    ] {
        assert!(other.0 != same.0 && other.1 != same.1);
    }
}

#[test]
fn pods_carry_the_digest_that_finds_them() {
    let plan = simple();
    let revision = volume_of(&plan).revision;
    let deployment = deployment_of(&plan);
    let labels = deployment.spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels[REVISION], revision_of(&plan, &revision));
    assert_eq!(
        deployment.metadata.labels.unwrap()[REVISION],
        labels[REVISION]
    );
}

#[test]
fn what_workers_are_made_of_survives_as_text() {
    let plan = simple();
    let made = workers_of(&plan);
    let notes = Notes {
        good: Some(made.clone()),
        is_upgrade: true,
        is_replacing: false,
        ..Notes::default()
    };
    let annotations = deployment(&plan, &made, &notes)
        .metadata
        .annotations
        .unwrap();
    let read: Workers = serde_json::from_str(&annotations[GOOD]).unwrap();
    assert_eq!(read, made);
    let content: Content = serde_json::from_str(&annotations[CONTENT]).unwrap();
    assert_eq!(Some(content), made.content);
    assert_eq!(annotations[UPGRADE], made.digest());
}

#[test]
fn the_same_workers_on_another_claim_have_another_revision() {
    let plan = simple();
    let made = workers_of(&plan);
    let claim = format!("{}-1", made.revision.claim);
    let moved = made.clone().on_claim(claim.clone());
    assert_ne!(moved.digest(), made.digest());
    let spec = moved.template.spec.as_ref().unwrap();
    let volume = &spec.volumes.as_ref().unwrap()[0];
    let source = volume.persistent_volume_claim.as_ref().unwrap();
    assert_eq!(source.claim_name, claim);
    // What is rendered for that claim is the same.
    let revision = moved.revision.clone();
    assert_eq!(workers(&plan, revision, made.content), moved);
    let new = new_volume(&plan, moved.content.as_ref().unwrap(), &claim);
    assert!(new.handle.ends_with("-1") && new.volume.ends_with("-1"));
}

#[test]
fn what_a_model_asks_for_is_its_commit_and_spec_and_not_the_release() {
    let plan = simple();
    let of = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        asked(&plan, COMMIT)
    };
    let same = of(&|_| {});
    assert_eq!(of(&|p| p.image = "worker:2".into()), same);
    assert_eq!(of(&|p| p.spec.replicas = 7), same);
    assert_ne!(of(&|p| p.spec.engine.max_batch = Some(2)), same);
    assert_ne!(of(&|p| p.source.include = vec!["*.json".into()]), same);
    assert_ne!(of(&|p| p.spec.adapters.from_repository = false), same);
    assert_ne!(asked(&plan, "other"), same);
}

/// So that the workers that mount adapters come as a change of the release's, not of each Model's.
#[test]
fn a_model_that_says_nothing_of_adapters_asks_for_what_an_earlier_release_noted() {
    assert_eq!(asked_spec(&simple()), "6c809804cb5b7f0d");
}
