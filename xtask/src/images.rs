//! Container images: built with buildah out of Debian packages, put on the nodes without a
//! registry.

use std::path::Path;

use anyhow::Result;

use crate::{cluster::Cluster, proc};

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "docker.io/hyprstream/pause:1";

/// Puts an image archive (docker or OCI) on every node of a running cluster.
pub(crate) fn load(cluster: &Cluster, archive: &Path, nodes: u8) -> Result<()> {
    for node in 1..=nodes {
        proc::output(
            cluster
                .enter(node)?
                .args(["ctr", "-n", "k8s.io", "images", "import", "--local"])
                .arg(archive),
        )?;
    }
    Ok(())
}
