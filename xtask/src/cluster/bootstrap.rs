//! What a fresh cluster holds before anything is installed.

use std::fs;

use anyhow::{Context, Result, bail};

use super::{CONTROL_PLANE_IP, Cluster, DNS_SERVICE_IP};
use crate::{components, proc, versions::CONTOUR};

/// Manifests of DNS, storage, ingress and the rights of the programs outside of pods.
const MANIFESTS: &str = include_str!("../../../deploy/local/bootstrap.yaml");

/// Applies them; safe to repeat.
pub(crate) fn apply(cluster: &Cluster) -> Result<()> {
    let crds = components::program(&cluster.cache, &CONTOUR, "crds.yaml");
    let crds =
        fs::read_to_string(&crds).with_context(|| format!("cannot read {}", crds.display()))?;
    let own = MANIFESTS
        .replace("${DNS_SERVICE_IP}", &DNS_SERVICE_IP.to_string())
        .replace("${CONTROL_PLANE_IP}", &CONTROL_PLANE_IP.to_string());
    cluster.apply(&format!("{own}\n---\n{crds}"))
}

/// Waits until the API server serves what the CRDs define.
pub(crate) fn establish(cluster: &Cluster) -> Result<()> {
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=8s",
    ];
    for attempt in 0..5 {
        if proc::succeeds(cluster.kubectl().args(wait)) {
            return Ok(());
        }
        // An API server that was killed right after a CRD was made does not look at it again
        // until it changes.
        let touch = format!("hyprstream.io/touched=attempt-{attempt}");
        proc::output(
            cluster
                .kubectl()
                .args(["annotate", "crd", "--all", "--overwrite", &touch]),
        )?;
    }
    bail!("the API server does not serve the custom resources; see its log")
}
