//! Installs the chart.

use std::{fs::File, io::Read, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    components,
    images::ProjectImages,
    paths::{Cache, Checkout, write_atomically},
    proc,
    target::Target,
    versions::HELM,
};

/// Name of the release.
pub(crate) const RELEASE: &str = "hyprstream";
/// Namespace of the release.
pub(crate) const NAMESPACE: &str = "hyprstream-system";
/// Secret with the registry's tokens, and the key of the one that may push anywhere.
pub(crate) const KEYS: (&str, &str) = ("hyprstream-registry-keys", "admin-token");

/// Whether the release's parts speak TLS, as the chart has it: unless `HYPRSTREAM_LOCAL_TLS` is
/// `false`. All commands of one cluster must have it alike.
pub(crate) fn tls() -> bool {
    std::env::var("HYPRSTREAM_LOCAL_TLS").map_or(true, |value| value != "false")
}

/// How the registry is called, and at which port of its Service.
pub(crate) fn registry() -> (&'static str, u16) {
    if tls() { ("https", 443) } else { ("http", 80) }
}

/// ConfigMap with the authorities by which the registry is trusted.
pub(crate) const TRUST: &str = "hyprstream-trust";

/// Secret with the key by which clients fine-tune in the namespace `default`, of the local cluster.
pub(crate) const FINE_TUNING_KEYS: &str = "hyprstream-fine-tuning-keys";

/// Values that fit the local cluster and the images just built.
pub(crate) fn values(images: &ProjectImages, local: bool) -> Value {
    let mut values = json!({
        "images": {
            "pullPolicy": "IfNotPresent",
            "references": {
                "controlPlane": images.control_plane.reference,
                "registry": images.registry.reference,
                "worker": images.worker.reference,
            },
        },
    });
    // The tests' private upstream is the registry itself, by its name in the cluster.
    values["operator"]["allowInsecureCredentials"] =
        json!([format!("hyprstream-registry.{NAMESPACE}.svc")]);
    // So that a test sees a rotation; and nobody of before is left here.
    let workers = if tls() { "strict" } else { "disabled" };
    values["tls"] =
        json!({"enabled": tls(), "overlap": "2m", "acceptPlain": "false", "workers": workers});
    if local {
        values["gateway"]["fineTuning"] =
            json!({"enabled": true, "existingSecret": FINE_TUNING_KEYS});
        values["ingress"] = json!({"enabled": true, "className": "contour"});
        // Its volume is a folder that every node sees. Unlike a disk, a folder is not taken away
        // from a node that is cut off: the registry there would hold it for ever.
        values["registry"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-1"});
        // Upstreams for tests are Services and pods of this cluster, without TLS.
        values["registry"]["allowUpstreams"] =
            json!(["10.89.0.0/16", "10.96.0.0/16", "10.244.0.0/16"]);
    }
    if let Some(proxy) = host_proxy() {
        values["registry"]["httpsProxy"] = json!(proxy);
    }
    values
}

/// The proxy that this machine needs for the world, which the registry then needs too.
fn host_proxy() -> Option<String> {
    ["HTTPS_PROXY", "https_proxy"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty())
}

/// Installs the release with its CRDs, or upgrades it, and waits until its programs are ready.
/// `extra` are further arguments for Helm.
pub(crate) fn install(
    checkout: &Checkout,
    cache: &Cache,
    target: &Target,
    values: Option<&Value>,
    extra: &[String],
) -> Result<()> {
    let file = values_file(target);
    if let Some(values) = values {
        write_atomically(&file, serde_yaml::to_string(values)?)?;
    }
    namespace(target)?;
    let asks_for_keys = values.is_some_and(|values| values["gateway"].is_object());
    if asks_for_keys {
        fine_tuning_key(target)?;
    }
    let mut helm = helm(cache, target);
    helm.args(["upgrade", "--install", RELEASE])
        .arg(checkout.join("charts/hyprstream"))
        .args(["--namespace", NAMESPACE, "--wait", "--timeout=180s"])
        .arg("--values")
        .arg(&file)
        .args(extra);
    proc::output(&mut helm).map(drop).with_context(|| {
        format!(
            "cannot install the chart{}",
            unready(target).unwrap_or_default()
        )
    })
}

/// Removes the release; the CRDs and the Models stay.
pub(crate) fn uninstall(cache: &Cache, target: &Target) -> Result<()> {
    let mut helm = helm(cache, target);
    helm.args([
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout=180s",
    ]);
    proc::output(&mut helm).map(drop)
}

/// Runs the chart's tests.
pub(crate) fn test(cache: &Cache, target: &Target) -> Result<String> {
    proc::output(helm(cache, target).args(["test", RELEASE, "--namespace", NAMESPACE]))
}

/// The node plugin mounts, which only a privileged namespace lets a pod do.
fn namespace(target: &Target) -> Result<()> {
    target.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: privileged\n"
    ))
}

/// Makes the key by which clients fine-tune, once.
fn fine_tuning_key(target: &Target) -> Result<()> {
    let mut get = target.kubectl();
    get.args(["-n", NAMESPACE, "get", "secret", FINE_TUNING_KEYS])
        .args(["--ignore-not-found", "-o", "name"]);
    if !proc::output(&mut get)?.trim().is_empty() {
        return Ok(());
    }
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    let key = format!("{:032x}", u128::from_ne_bytes(bytes));
    target.apply(
        &json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": FINE_TUNING_KEYS, "namespace": NAMESPACE},
            "stringData": {"default": key},
        })
        .to_string(),
    )
}

/// The registry's password for pushes.
pub(crate) fn registry_token(target: &Target) -> Result<String> {
    let template = format!(
        "go-template={{{{index .data {:?} | base64decode}}}}",
        KEYS.1
    );
    proc::output(
        target
            .kubectl()
            .args(["-n", NAMESPACE, "get", "secret", KEYS.0, "-o", &template]),
    )
}

/// Writes the authorities by which the registry is trusted into a file, and returns its path: for
/// git and git-lfs in `GIT_SSL_CAINFO`.
pub(crate) fn registry_ca(target: &Target) -> Result<Option<PathBuf>> {
    if !tls() {
        return Ok(None);
    }
    let bundle = proc::output(target.kubectl().args([
        "-n",
        NAMESPACE,
        "get",
        "configmap",
        TRUST,
        "-o",
        "jsonpath={.data.ca\\.crt}",
    ]))?;
    let path = target.dir().join("registry-ca.crt");
    write_atomically(&path, bundle)?;
    Ok(Some(path))
}

/// Where the values of the last installation are kept.
pub(crate) fn values_file(target: &Target) -> PathBuf {
    target.dir().join("values.yaml")
}

fn helm(cache: &Cache, target: &Target) -> Command {
    let mut command = Command::new(components::program(cache, &HELM, "helm"));
    target.name_to(&mut command, "--kube-context");
    let home = cache.join("helm");
    command
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_DATA_HOME", home.join("data"));
    command
}

/// The pods of the release that are not ready, in words.
fn unready(target: &Target) -> Result<String> {
    let pods = proc::output(target.kubectl().args(["-n", NAMESPACE, "get", "pods"]))?;
    let events = proc::output(target.kubectl().args([
        "-n",
        NAMESPACE,
        "get",
        "events",
        "--field-selector=type=Warning",
        "--sort-by=.lastTimestamp",
    ]))?;
    let tail: Vec<&str> = events.lines().rev().take(5).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Ok(format!("\n{pods}{}\n", tail.join("\n")))
}
