//! What the controllers of Kubernetes and the kubelet do with Deployments, claims and volumes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use hyprstream_tls::Issued;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{cluster::Cluster, workers::Workers};

pub const DEPLOYMENTS: &str = "apps/v1/deployments";
pub const PODS: &str = "v1/pods";
pub const JOBS: &str = "batch/v1/jobs";
pub const CLAIMS: &str = "v1/persistentvolumeclaims";
pub const VOLUMES: &str = "v1/persistentvolumes";

/// How the workers of a commit fare.
#[derive(Clone, Debug)]
pub enum Fate {
    /// They become ready.
    Ready,
    /// They start and never become ready.
    Loading,
    /// They end with this status and message.
    Ends(i32, String, i32),
    /// Their volume cannot be mounted, as this event says.
    MountFails(String),
    /// No node has room for them.
    NoRoom,
    /// The nodes have room for so many, old ones included. Those that find it become ready.
    RoomFor(usize),
    /// Their image cannot be pulled.
    NoImage,
    /// A quota forbids them.
    NoQuota,
    /// So many become ready, and the others never do.
    ReadyBut(usize),
}

/// Fates by what workers are made of: a commit, an image, or `len:` and the longest request. Who
/// has none becomes ready.
pub type Fates = Arc<Mutex<BTreeMap<String, Fate>>>;

/// Plays their part until the test ends.
pub async fn run(cluster: Cluster, fates: Fates, workers: Workers) {
    let mut count = 0;
    loop {
        bind(&cluster);
        let mut pods: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for pod in cluster.list(PODS) {
            let owner = text(&pod["metadata"]["ownerReferences"][0]["uid"]).to_owned();
            pods.entry(owner).or_default().push(pod);
        }
        for deployment in cluster.list(DEPLOYMENTS) {
            let own = pods
                .remove(text(&deployment["metadata"]["uid"]))
                .unwrap_or_default();
            roll(&cluster, &deployment, &own, &fates, &workers, &mut count);
        }
        orphans(&cluster);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

fn bind(cluster: &Cluster) {
    let mut claims = BTreeSet::new();
    for claim in cluster.list(CLAIMS) {
        let meta = &claim["metadata"];
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        // A claim that is being deleted stays for as long as a pod mounts it.
        if !meta["deletionTimestamp"].is_null()
            && !cluster
                .list(PODS)
                .iter()
                .any(|p| claims_of(p).any(|c| c == name))
        {
            cluster.delete(CLAIMS, namespace, name);
            continue;
        }
        claims.insert((namespace.to_owned(), name.to_owned()));
        if claim["status"]["phase"].is_null() {
            cluster.change(CLAIMS, namespace, name, |c| {
                c["status"]["phase"] = json!("Bound");
            });
        }
    }
    for volume in cluster.list(VOLUMES) {
        let claim = &volume["spec"]["claimRef"];
        let claim = (
            text(&claim["namespace"]).to_owned(),
            text(&claim["name"]).to_owned(),
        );
        let phase = match (claims.contains(&claim), volume["status"]["phase"].as_str()) {
            (true, None | Some("Available")) => "Bound",
            (false, Some("Bound")) => "Released",
            _ => continue,
        };
        let name = text(&volume["metadata"]["name"]).to_owned();
        cluster.change(VOLUMES, "", &name, |v| v["status"]["phase"] = json!(phase));
    }
}

/// A rolling update in coarse steps: all new workers beside the old, or with maxSurge 0 in their
/// place, as many at a time as may be missing.
fn roll(
    cluster: &Cluster,
    deployment: &Value,
    pods: &[Value],
    fates: &Fates,
    workers: &Workers,
    count: &mut usize,
) {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1) as usize;
    let template = &deployment["spec"]["template"];
    let revision = &template["metadata"]["labels"]["hyprstream.io/revision"];
    let (new, old): (Vec<&Value>, Vec<&Value>) = pods
        .iter()
        .partition(|p| p["metadata"]["labels"]["hyprstream.io/revision"] == *revision);
    let is_ready = |p: &&Value| p["status"]["conditions"][0]["status"] == "True";
    let ready = new.iter().copied().filter(is_ready).count();
    let remove = |pod: &Value| {
        let meta = &pod["metadata"];
        cluster.delete(PODS, text(&meta["namespace"]), text(&meta["name"]));
    };
    if new.len() > wanted {
        new[wanted..].iter().for_each(|p| remove(p));
    }
    let bounds = &deployment["spec"]["strategy"]["rollingUpdate"];
    let surges = bounds["maxSurge"] != 0;
    let missing = bounds["maxUnavailable"].as_u64().unwrap_or(0) as usize;
    // Old workers that never became ready go first, as the ReplicaSets have it.
    let (mut kept, idle): (Vec<&Value>, Vec<&Value>) = old.iter().copied().partition(is_ready);
    idle.into_iter().for_each(&remove);
    while !kept.is_empty() && ready + kept.len() > wanted - missing.min(wanted) {
        if surges && ready < wanted {
            break;
        }
        kept.pop().into_iter().for_each(&remove);
    }
    let is_placed = |p: &&Value| p["status"]["conditions"][1]["status"] == "True";
    let placed = kept.len() + new.iter().copied().filter(is_placed).count();
    let (mut room, mut is_refused) = (placed, false);
    for index in 0..wanted {
        let fate = match fate_of(cluster, deployment, fates, index) {
            Fate::RoomFor(most) if new.get(index).is_some_and(is_placed) || room < most => {
                room += usize::from(!new.get(index).is_some_and(is_placed));
                Fate::Ready
            }
            Fate::RoomFor(_) => Fate::NoRoom,
            fate => fate,
        };
        match new.get(index) {
            None if matches!(fate, Fate::NoQuota) => is_refused = true,
            None if !surges && kept.len() + index >= wanted => {}
            None => {
                *count += 1;
                create(cluster, deployment, *count, &fate, workers);
            }
            // The scheduler and the kubelet try again, and loading ends.
            Some(pod) if !is_ready(pod) && matches!(fate, Fate::Ready) => remove(pod),
            Some(_) => {}
        }
    }
    let told = deployment["status"]["conditions"][0]["status"] == "True";
    if is_refused != told {
        let meta = &deployment["metadata"];
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        cluster.change(DEPLOYMENTS, namespace, name, |d| {
            d["status"]["conditions"] = json!([{
                "type": "ReplicaFailure", "status": if is_refused { "True" } else { "False" },
                "message": "exceeded quota",
            }]);
        });
    }
}

fn fate_of(cluster: &Cluster, deployment: &Value, fates: &Fates, index: usize) -> Fate {
    let template = &deployment["spec"]["template"];
    let namespace = text(&deployment["metadata"]["namespace"]);
    let is_lost = |claim: &str| {
        let claim = cluster.get(CLAIMS, namespace, claim);
        claim.is_none_or(|c| !c["metadata"]["deletionTimestamp"].is_null())
    };
    if claims_of(template).any(is_lost) {
        return Fate::NoRoom;
    }
    let container = &template["spec"]["containers"][0];
    let length = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["name"] == "HYPRSTREAM_MAX_MODEL_LEN")
        .map(|e| format!("len:{}", text(&e["value"])));
    let keys = [
        Some(text(&container["image"]).to_owned()),
        length,
        Some(text(&template["metadata"]["labels"]["hyprstream.io/commit"]).to_owned()),
    ];
    let fates = fates.lock().unwrap();
    match keys.iter().flatten().find_map(|key| fates.get(key)) {
        None => Fate::Ready,
        Some(Fate::ReadyBut(ready)) if index < *ready => Fate::Ready,
        Some(Fate::ReadyBut(_)) => Fate::Loading,
        Some(fate) => fate.clone(),
    }
}

/// The claims that a pod, or a template of pods, mounts.
fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|v| v["persistentVolumeClaim"]["claimName"].as_str())
}

fn create(cluster: &Cluster, deployment: &Value, number: usize, fate: &Fate, workers: &Workers) {
    let meta = &deployment["metadata"];
    let template = &deployment["spec"]["template"];
    let name = format!("{}-{number}", text(&meta["name"]));
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let ready = if matches!(fate, Fate::Ready) {
        "True"
    } else {
        "False"
    };
    let (state, last, restarts) = match fate {
        Fate::Ready | Fate::Loading | Fate::ReadyBut(_) => {
            (json!({"running": {"startedAt": now}}), json!({}), 0)
        }
        Fate::Ends(code, message, restarts) => (
            json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            json!({"terminated": {"exitCode": code, "message": message}}),
            *restarts,
        ),
        Fate::MountFails(_) | Fate::NoRoom | Fate::RoomFor(_) => (
            json!({"waiting": {"reason": "ContainerCreating"}}),
            json!({}),
            0,
        ),
        Fate::NoImage | Fate::NoQuota => (
            json!({"waiting": {"reason": "ImagePullBackOff"}}),
            json!({}),
            0,
        ),
    };
    let (namespace, model) = (text(&meta["namespace"]), text(&meta["name"]));
    let shown = shown(cluster, template, namespace);
    let address = workers.start(&name, namespace, model, shown.as_ref());
    let is_scheduled = !matches!(fate, Fate::NoRoom);
    let pod = cluster.put(
        PODS,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": meta["namespace"],
                "labels": template["metadata"]["labels"],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "name": meta["name"], "uid": meta["uid"]}],
            },
            "spec": template["spec"],
            "status": {
                "phase": "Running", "podIP": address,
                "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": now},
                    {"type": "PodScheduled", "status": if is_scheduled { "True" } else { "False" },
                        "message": "0/1 nodes are available", "lastTransitionTime": now},
                ],
                "containerStatuses": [{
                    "name": "worker", "image": "w", "imageID": "", "ready": ready == "True",
                    "restartCount": restarts, "state": state, "lastState": last,
                }],
            },
        }),
    );
    if let Fate::MountFails(message) = fate {
        cluster.put(
            "v1/events",
            json!({
                "apiVersion": "v1", "kind": "Event", "type": "Warning",
                "metadata": {"name": format!("{name}.mount"), "namespace": meta["namespace"]},
                "involvedObject": {"uid": pod["metadata"]["uid"], "kind": "Pod"},
                "reason": "FailedMount", "message": message, "lastTimestamp": now,
            }),
        );
    }
}

/// What the worker of a template shows, if it speaks TLS: what the Secret that it mounts has.
fn shown(cluster: &Cluster, template: &Value, namespace: &str) -> Option<Issued> {
    let volumes = template["spec"]["volumes"].as_array()?;
    let tls = volumes.iter().find(|volume| volume["name"] == "tls")?;
    let secret = cluster.get("v1/secrets", namespace, text(&tls["secret"]["secretName"]))?;
    let field = |name: &str| {
        let bytes: ByteString = serde_json::from_value(secret["data"][name].clone()).ok()?;
        String::from_utf8(bytes.0).ok()
    };
    Some(Issued {
        certificate: field("tls.crt")?,
        key: field("tls.key")?,
    })
}

/// The ReplicaSet between is not played, so the pods of a gone Deployment go here.
fn orphans(cluster: &Cluster) {
    let live: BTreeSet<String> = cluster
        .list(DEPLOYMENTS)
        .iter()
        .chain(&cluster.list(JOBS))
        .map(|d| text(&d["metadata"]["uid"]).to_owned())
        .collect();
    for pod in cluster.list(PODS) {
        let meta = &pod["metadata"];
        if meta["deletionTimestamp"].is_null()
            && !live.contains(text(&meta["ownerReferences"][0]["uid"]))
        {
            cluster.delete(PODS, text(&meta["namespace"]), text(&meta["name"]));
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
