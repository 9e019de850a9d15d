//! The cluster that things are installed on: our own, or one that the user has.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    cluster::Cluster,
    components,
    paths::{Cache, Checkout},
    proc,
    versions::KUBERNETES,
};

/// A cluster by its kubeconfig, and if need be the context in it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    kubectl: PathBuf,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    dir: PathBuf,
}

impl Target {
    /// One of our own clusters.
    pub(crate) fn local(cache: &Cache, cluster: &Cluster) -> Self {
        Self {
            kubectl: components::program(cache, &KUBERNETES, "kubectl"),
            kubeconfig: Some(cluster.kubeconfig()),
            context: None,
            dir: cluster.dir().to_owned(),
        }
    }

    /// The user's, by the name of a context in their kubeconfig.
    pub(crate) fn context(checkout: &Checkout, cache: &Cache, context: &str) -> Result<Self> {
        let name: String = context
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let dir = checkout.join(".local").join(format!("context-{name}"));
        std::fs::create_dir_all(&dir)?;
        let kubectl = if proc::on_path("kubectl") {
            PathBuf::from("kubectl")
        } else {
            components::program(cache, &KUBERNETES, "kubectl")
        };
        Ok(Self {
            kubectl,
            kubeconfig: None,
            context: Some(context.to_owned()),
            dir,
        })
    }

    /// `kubectl` on it.
    pub(crate) fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        self.name_to(&mut command, "--context");
        command
    }

    /// Lets a program that reads kubeconfigs know which one is meant; `flag` names the context.
    pub(crate) fn name_to(&self, command: &mut Command, flag: &str) {
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        if let Some(context) = &self.context {
            command.arg(flag).arg(context);
        }
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        let mut kubectl = self.kubectl();
        kubectl.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        proc::feed(&mut kubectl, manifests).map(drop)
    }

    /// Folder for what is remembered of it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}
