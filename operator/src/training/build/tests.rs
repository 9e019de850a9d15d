use hyprstream_api::{Model, TrainingJob, TrainingLastKnownGood};
use hyprstream_contract::{
    registry::Reference::Commit, training::TrainingPod, training_defaults as default,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    adapter::validate::Base,
    args::{Images, PullPolicy},
    policy::{MasterKey, Policy, WorkerTls},
    training::validate::{Invalid, validate},
};

const MODEL_COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const DATA_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn planned(spec: &Value, labels: &Value) -> Result<Plan, Invalid> {
    let job: TrainingJob = serde_json::from_value(json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": "sql", "namespace": "ns", "uid": "u", "labels": labels,
            "creationTimestamp": "2026-11-29T01:02:03Z"},
        "spec": spec,
    }))
    .unwrap();
    let model: Model = serde_json::from_value(json!({
        "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
        "metadata": {"name": "m", "namespace": "ns"},
        "spec": {"source": {"url": "https://example.org/m", "ref": {"branch": "b"}}},
    }))
    .unwrap();
    let images = Images {
        cpu: "worker:1".into(),
        cuda: Some("cuda:1".into()),
        rocm: None,
        pull_policy: PullPolicy::IfNotPresent,
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef0123456789abcdef").unwrap();
    let policy = Policy {
        insecure_hosts: vec![],
        keys: MasterKey::open(file.path().to_owned()).unwrap(),
        worker_tls: WorkerTls::Off,
    };
    validate(&job, Base::Model(&model), &images, &policy)
}

fn plan(spec: &Value) -> Plan {
    planned(spec, &json!({})).unwrap()
}

/// The plan of a job with this spec, whose Model is `m`.
pub(in crate::training) fn plan_of(spec: &Value) -> Plan {
    plan(spec)
}

fn mirrored(commit: &str, repository: &str) -> Mirrored {
    Mirrored {
        commit: commit.parse().unwrap(),
        repository: repository.into(),
        size_bytes: 270 << 20,
    }
}

fn made(plan: &Plan) -> Desired {
    made_with(plan, None)
}

fn made_with(plan: &Plan, bundle: Option<&str>) -> Desired {
    let (model, data) = (
        mirrored(MODEL_COMMIT, "mirror/1"),
        mirrored(DATA_COMMIT, "mirror/2"),
    );
    let inputs = Inputs {
        model: &model,
        dataset: Some(&data),
        registry: "http://registry.system.svc:80/",
        bundle,
    };
    desired(plan, &inputs).unwrap()
}

#[test]
fn a_pod_of_a_registry_with_tls_has_its_authorities_where_the_pod_file_says() {
    let plan = plan(&small());
    let made = made_with(&plan, Some("PEM"));
    let pod: TrainingPod = serde_json::from_str(&file(&made.config, training::POD_FILE)).unwrap();
    let path = pod.registry_ca_file.unwrap();
    let spec = made.batch.spec.unwrap().template.spec.unwrap();
    let mounts = spec.containers[0].volume_mounts.clone().unwrap();
    let mount = mounts
        .iter()
        .find(|m| path.starts_with(&m.mount_path))
        .unwrap();
    let volume = spec
        .volumes
        .unwrap()
        .into_iter()
        .find(|v| v.name == mount.name)
        .unwrap();
    let trust = made.trust.unwrap();
    assert_eq!(Some(volume.config_map.unwrap().name), trust.metadata.name);
    let name = path
        .strip_prefix(&format!("{}/", mount.mount_path))
        .unwrap();
    assert_eq!(trust.data.unwrap()[name], "PEM");
    assert_ne!(trust.immutable, Some(true));
}

#[test]
fn a_pod_of_a_registry_without_tls_has_none() {
    let made = made(&plan(&small()));
    assert!(made.trust.is_none());
    let pod: TrainingPod = serde_json::from_str(&file(&made.config, training::POD_FILE)).unwrap();
    assert_eq!(pod.registry_ca_file, None);
    let spec = made.batch.spec.unwrap().template.spec.unwrap();
    assert!(
        spec.volumes
            .unwrap()
            .iter()
            .all(|volume| volume.name != TRUST)
    );
}

fn small() -> Value {
    json!({
        "modelRef": {"name": "m"},
        "dataset": {"url": "https://example.org/d", "path": "train.jsonl"},
    })
}

fn full() -> Value {
    json!({
        "modelRef": {"name": "m", "ref": {"tag": "v1"}},
        "dataset": {"url": "https://example.org/d", "path": "data"},
        "data": {"lossOn": "Completion", "maxLength": 512, "packing": true,
            "maxBadRecords": "0.1", "templateVariables": {"enable_thinking": "false"}},
        "method": {"type": "LoRA", "objective": "DPO", "rank": 8, "alpha": "16", "dropout": "0",
            "targetModules": ["q_proj"], "rsLora": true, "beta": "0.2", "steps": 10,
            "batchSize": 4, "microBatchTokens": 1024, "learningRate": "2e-5",
            "warmupRatio": "0.1", "schedule": "Linear", "weightDecay": "0.01",
            "maxGradNorm": "0.5", "seed": 7},
        "eval": {"path": "eval.jsonl", "everySteps": 5, "patience": 2, "keepBest": true},
        "checkpoint": {"everySteps": 5, "keep": 2, "tag": false},
        "gates": [{"metric": "JsonSchema", "min": "0.9", "path": "gate.jsonl",
            "schema": "{\"type\": \"object\"}"}],
        "output": {"name": "tone", "repository": "out", "onSuccess": "PushBranch"},
        "resources": {"limits": {"cpu": "2"}, "storage": "1Gi"},
        "backoffLimit": 4, "activeDeadlineSeconds": 60,
    })
}

fn file(config: &ConfigMap, name: &str) -> String {
    config.data.as_ref().unwrap()[name].clone()
}

#[test]
fn the_trainer_takes_every_job_that_is_written_for_it() {
    for spec in [small(), full()] {
        let made = made(&plan(&spec));
        let text = file(&made.config, training::JOB_FILE);
        let job = hyprstream_training::Job::parse(&text).unwrap();
        assert_eq!(job.model.to_str(), Some(training::WORKSPACE_DIR));
        assert_eq!(job.data.date.as_deref(), Some("2026-11-29"));
        let pod: TrainingPod =
            serde_json::from_str(&file(&made.config, training::POD_FILE)).unwrap();
        assert_eq!(pod.registry, "http://registry.system.svc:80");
    }
}

#[test]
fn what_the_spec_says_stands_in_the_job() {
    let made = made(&plan(&full()));
    let text = file(&made.config, training::JOB_FILE);
    let job = hyprstream_training::Job::parse(&text).unwrap();
    assert_eq!(job.method, hyprstream_training::Method::Dpo);
    assert_eq!((job.beta(), job.learning_rate(), job.seed), (0.2, 2e-5, 7));
    assert_eq!(job.training.steps, Some(10));
    assert_eq!(job.adapter.rank, Some(8));
    assert_eq!(job.data.template_variables["enable_thinking"], json!(false));
    assert_eq!(job.data.path.to_str(), Some("/dataset/data"));
    let eval = job.eval.unwrap();
    assert_eq!(eval.path.unwrap().to_str(), Some("/dataset/eval.jsonl"));
    assert_eq!((eval.every, eval.patience), (Some(5), Some(2)));
    let pod: TrainingPod = serde_json::from_str(&file(&made.config, training::POD_FILE)).unwrap();
    assert_eq!(
        (pod.repository.as_str(), pod.adapter.as_str()),
        ("ns/out", "tone")
    );
    assert_eq!(pod.gates[0].schema, Some(json!({"type": "object"})));
    assert_eq!(pod.gates[0].path.as_deref(), Some("/dataset/gate.jsonl"));
    assert_eq!(pod.model.commit.unwrap().to_string(), MODEL_COMMIT);
}

/// What a spec leaves out is written down all the same, so that another release changes nothing of a
/// job that runs, and is what the trainer would have done.
#[test]
fn a_spec_that_says_little_is_written_as_the_trainer_reads_a_file_that_says_little() {
    for (objective, method) in [("SFT", "sft"), ("DPO", "dpo")] {
        let mut spec = small();
        spec["method"] = json!({"objective": objective});
        let text = file(&made(&plan(&spec)).config, training::JOB_FILE);
        let job = hyprstream_training::Job::parse(&text).unwrap();
        let bare = json!({"model": "/m", "data": {"path": "/d"}, "output": "/o", "method": method});
        let bare = hyprstream_training::Job::parse(&bare.to_string()).unwrap();
        assert_eq!(job.adapter.rank, Some(bare.rank()));
        assert_eq!(job.adapter.alpha, Some(bare.alpha()));
        assert_eq!(
            job.adapter.dropout.to_bits(),
            bare.adapter.dropout.to_bits()
        );
        assert_eq!(job.training.epochs, Some(bare.epochs()));
        assert_eq!(job.training.learning_rate, Some(bare.learning_rate()));
        assert_eq!(
            job.training.micro_batch_tokens,
            Some(bare.micro_batch_tokens())
        );
        assert_eq!(job.beta().to_bits(), bare.beta().to_bits());
        assert_eq!(job.beta.is_some(), objective == "DPO");
        assert_eq!(job.training.batch, bare.training.batch);
        let warmup = |job: &hyprstream_training::Job| job.training.warmup.to_bits();
        assert_eq!(warmup(&job), warmup(&bare));
        assert_eq!(job.training.decay, bare.training.decay);
        assert_eq!(job.training.optimiser, bare.training.optimiser);
        assert_eq!(job.checkpoints, bare.checkpoints);
        assert_eq!(
            (job.data.max_length, job.data.max_bad, job.data.loss),
            (bare.data.max_length, bare.data.max_bad, bare.data.loss)
        );
    }
    // And what people read of the kind.
    let schema = serde_json::to_value(<TrainingJob as kube::CustomResourceExt>::crd()).unwrap();
    let method = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        ["properties"]["method"]["properties"];
    for (field, value) in [
        ("rank", default::RANK.to_string()),
        ("alpha", default::ALPHA.to_string()),
        ("dropout", default::DROPOUT.to_string()),
        ("epochs", default::EPOCHS.to_string()),
        ("beta", default::DPO_BETA.to_string()),
        ("microBatchTokens", default::MICRO_BATCH_TOKENS.to_string()),
        ("learningRate", format!("{:e}", default::SFT_LEARNING_RATE)),
        ("learningRate", format!("{:e}", default::DPO_LEARNING_RATE)),
    ] {
        let text = method[field]["description"].as_str().unwrap();
        assert!(text.contains(&format!(" {value}")), "{field}: {text}");
    }
}

#[test]
fn a_pod_may_push_its_branch_and_nothing_else() {
    let made = made(&plan(&small()));
    let account = made.account.unwrap();
    let rules = serde_json::to_value(account.role.rules.unwrap()).unwrap();
    assert_eq!(
        rules,
        json!([
            {"apiGroups": ["hyprstream.io"], "resources": ["repositories"],
                "resourceNames": ["m"], "verbs": ["get"]},
            {"apiGroups": ["hyprstream.io"], "resources": ["repositories/train"],
                "resourceNames": ["m"], "verbs": ["push"]},
        ])
    );
    // The branch is that of the account's name.
    assert_eq!(account.account.metadata.name.as_deref(), Some("sql"));
    let pod = made.batch.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.account.metadata.name);
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.security_context.unwrap().run_as_non_root, Some(true));
}

#[test]
fn an_account_of_the_specs_is_used_and_not_made() {
    let mut spec = full();
    spec["serviceAccountName"] = json!("merger");
    let made = made(&plan(&spec));
    assert_eq!(made.account, None);
    let pod = made.batch.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name.as_deref(), Some("merger"));
}

#[test]
fn a_job_is_one_pod_and_only_its_own_failures_count() {
    let made = made(&plan(&full()));
    let spec = made.batch.spec.unwrap();
    assert_eq!((spec.parallelism, spec.backoff_limit), (Some(1), Some(4)));
    assert_eq!(spec.pod_replacement_policy.as_deref(), Some("Failed"));
    assert_eq!(spec.active_deadline_seconds, Some(60));
    let rules = spec.pod_failure_policy.unwrap().rules;
    let actions: Vec<_> = rules.iter().map(|rule| rule.action.as_str()).collect();
    assert_eq!(actions, ["Ignore", "Ignore", "FailJob"]);
    let codes = rules[1].on_exit_codes.as_ref().unwrap();
    assert_eq!(codes.values, [74, 75, 128, 137]);
}

#[test]
fn a_queue_of_kueues_starts_the_job_itself() {
    let labels =
        json!({kueue::QUEUE: "gpus", "kueue.x-k8s.io/priority-class": "high", "team": "a"});
    let made = made(&planned(&small(), &labels).unwrap());
    let labels = made.batch.metadata.labels.unwrap();
    assert_eq!(labels[kueue::QUEUE], "gpus");
    assert_eq!(labels["kueue.x-k8s.io/priority-class"], "high");
    assert!(!labels.contains_key("team"));
    assert_eq!(made.batch.spec.unwrap().suspend, Some(true));
}

#[test]
fn the_workspace_is_written_to_and_has_the_room_that_is_asked_for() {
    let capacity = |made: &Desired| {
        let csi = made.workspace.volume.spec.clone().unwrap().csi.unwrap();
        assert_eq!(csi.read_only, Some(false));
        csi.volume_attributes.unwrap()["hyprstream.io/capacity"].clone()
    };
    let asked = made(&plan(&full()));
    assert_eq!(capacity(&asked), (1_u64 << 30).to_string());
    let estimated: u64 = capacity(&made(&plan(&small()))).parse().unwrap();
    assert!(estimated > 128 << 20, "{estimated}");
    // Of its records, as many bytes again as they have, twice.
    let plan = plan(&small());
    let sized = |size_bytes: u64| -> u64 {
        let data = Mirrored {
            size_bytes,
            ..mirrored(DATA_COMMIT, "mirror/2")
        };
        let model = mirrored(MODEL_COMMIT, "mirror/1");
        let inputs = Inputs {
            model: &model,
            dataset: Some(&data),
            registry: "http://registry",
            bundle: None,
        };
        capacity(&desired(&plan, &inputs).unwrap()).parse().unwrap()
    };
    assert_eq!(sized(10 << 30), sized(0) + (20 << 30));
}

#[test]
fn only_the_files_that_are_read_are_fetched_of_a_dataset() {
    let plan = plan(&full());
    let include = &plan.dataset_source().unwrap().include;
    for path in ["data", "data/**", "eval.jsonl", "gate.jsonl"] {
        assert!(
            include.iter().any(|glob| glob == path),
            "{path}: {include:?}"
        );
    }
}

#[test]
fn a_dataset_of_a_claim_is_mounted_read_only_and_nothing_is_fetched_for_it() {
    let mut spec = small();
    spec["dataset"] = json!({"persistentVolumeClaim": {"claimName": "chats"}, "path": "a/*.jsonl"});
    let plan = planned(&spec, &json!({})).unwrap();
    assert!(plan.dataset_source().is_none());
    let made = made(&plan);
    let pod = made.batch.spec.unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    let mount = mounts
        .iter()
        .find(|m| m.mount_path == training::DATASET_DIR);
    let mount = mount.unwrap();
    assert_eq!(mount.read_only, Some(true));
    let volumes = pod.volumes.unwrap();
    let volume = volumes.iter().find(|v| v.name == mount.name).unwrap();
    let claim = volume.persistent_volume_claim.as_ref().unwrap();
    assert_eq!(
        (claim.claim_name.as_str(), claim.read_only),
        ("chats", Some(true))
    );
    let job = file(&made.config, training::JOB_FILE);
    let job = hyprstream_training::Job::parse(&job).unwrap();
    let path = format!("{}/a/*.jsonl", training::DATASET_DIR);
    assert_eq!(job.data.path.to_str(), Some(path.as_str()));
}

#[test]
fn a_pattern_fetches_what_the_trainer_reads_for_it() {
    let mut spec = full();
    spec["dataset"]["path"] = json!("da[t]a/train-*.parquet");
    let plan = planned(&spec, &json!({})).unwrap();
    let include = &plan.dataset_source().unwrap().include;
    let glob = "da[[]t[]]a/train-*.parquet".to_owned();
    assert!(include.contains(&glob), "{include:?}");
}

#[test]
fn what_can_never_work_is_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut spec = full();
        change(&mut spec);
        planned(&spec, &json!({})).unwrap_err()
    };
    for (change, told) in [
        (json!({"type": "DoRA"}), "spec.method.type: DoRA is"),
        (
            json!({"targetModules": ["q_proj", "lm_head"]}),
            "spec.method.targetModules: lm_head is",
        ),
        (
            json!({"targetModules": ["embed_tokens"]}),
            "spec.method.targetModules: embed_tokens is",
        ),
    ] {
        let on = |device: &str| {
            let mut spec = small();
            spec["method"] = change.clone();
            spec["device"] = json!(device);
            planned(&spec, &json!({}))
        };
        let refused = on("cpu").unwrap_err();
        assert!(refused.to_string().contains(told), "{refused}");
        assert!(refused.is_final());
        assert!(on("cuda").is_ok(), "{change}");
    }
    // What whoever runs the cluster may still set is waited for.
    let no_image = refused(&|spec| spec["device"] = json!("rocm"));
    assert_eq!(no_image, Invalid::NoImage("rocm"));
    assert!(!no_image.is_final());
    let storage = refused(&|spec| spec["resources"]["storage"] = json!("1k"));
    assert_eq!(storage, Invalid::Storage("1k".into()));
    let schema = refused(&|spec| spec["gates"][0]["schema"] = json!("{"));
    assert!(matches!(schema, Invalid::Schema(_)));
    let variable = refused(&|spec| spec["data"]["templateVariables"]["a"] = json!("no quotes"));
    assert_eq!(variable, Invalid::TemplateVariable("a".into()));
}

#[test]
fn the_device_chooses_the_image_and_the_learner() {
    let started = |device: &str| {
        let mut spec = small();
        spec["device"] = json!(device);
        spec["dtype"] = json!("bfloat16");
        spec["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
        let pod = made(&plan(&spec))
            .batch
            .spec
            .unwrap()
            .template
            .spec
            .unwrap();
        let [container] = <[_; 1]>::try_from(pod.containers).unwrap();
        let limits = container.resources.unwrap().limits.unwrap();
        assert_eq!(limits["nvidia.com/gpu"].0, "1");
        let args = container.args.unwrap().join(" ");
        (container.image.unwrap(), args)
    };
    let (image, args) = started("cuda");
    assert_eq!(image, "cuda:1");
    assert!(args.ends_with("--device cuda --dtype bfloat16"), "{args}");
    let (image, args) = started("cpu");
    assert_eq!(image, "worker:1");
    assert!(args.ends_with("--device cpu --dtype bfloat16"), "{args}");
}

#[test]
fn what_is_pinned_does_not_move() {
    let inputs = hyprstream_api::TrainingInputs {
        model_commit: MODEL_COMMIT.into(),
        dataset_commit: Some(DATA_COMMIT.into()),
        dataset_digest: None,
        repository: "ns/first".into(),
        last_known_good: Some(TrainingLastKnownGood {
            repository: "ns/first".into(),
            commit: DATA_COMMIT.into(),
            path: "adapters/01_sql.safetensors".into(),
        }),
    };
    let plan = plan(&small()).pinned(Some(&inputs));
    let made = made(&plan);
    let pod: TrainingPod = serde_json::from_str(&file(&made.config, training::POD_FILE)).unwrap();
    let good = pod.last_known_good.unwrap();
    assert_eq!(good.commit.to_string(), DATA_COMMIT);
    assert_eq!(good.repository, "ns/first");
    assert_eq!(good.weights, "adapters/01_sql.safetensors");
    assert_eq!(good.config, "adapters/01_sql.config.json");
    assert_eq!(plan.model.reference, Commit(MODEL_COMMIT.parse().unwrap()));
    let dataset = plan.dataset_source().unwrap();
    assert_eq!(dataset.reference, Commit(DATA_COMMIT.parse().unwrap()));
    assert_eq!(plan.repository, "first");
}
