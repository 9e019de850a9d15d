//! Namespaces of a test's own.

use anyhow::Result;

use crate::{Cluster, Model, Object};

/// A namespace of one test.
#[derive(Debug)]
pub struct Namespace {
    cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [
                &[
                    "get",
                    "models,adapters,trainingjobs,jobs,deployments,pods,pvc,events",
                    "-o",
                    "wide",
                ][..],
                &["get", "models,adapters,trainingjobs", "-o", "yaml"],
            ] {
                let all = [&["-n", self.name.as_str()], arguments].concat();
                if let Ok(output) = self.cluster.try_kubectl(&all) {
                    eprintln!("{}\n{}", output.stdout, output.stderr);
                }
            }
        }
        let _ = self
            .cluster
            .try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

impl Namespace {
    pub(crate) fn new(cluster: Cluster, name: String) -> Self {
        Self { cluster, name }
    }

    /// A Model of this namespace that is applied from `spec` (YAML, indented by two).
    pub fn apply_model(&self, name: &str, spec: &str) -> Result<Model> {
        self.cluster.apply(&self.manifest(name, spec))?;
        Ok(self.model(name))
    }

    /// The manifest of a Model of this namespace.
    pub fn manifest(&self, name: &str, spec: &str) -> String {
        self.manifest_of("Model", name, spec)
    }

    /// The manifest of an object of this namespace, of one of our kinds.
    pub fn manifest_of(&self, kind: &str, name: &str, spec: &str) -> String {
        format!(
            "apiVersion: hyprstream.io/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\n  \
             namespace: {}\nspec:\n{spec}",
            self.name
        )
    }

    /// The Model of that name, whether or not it exists.
    pub fn model(&self, name: &str) -> Model {
        Model(Object::new(&self.cluster, "model", &self.name, name))
    }

    /// An Adapter of this namespace that is applied from `spec` (YAML, indented by two).
    pub fn apply_adapter(&self, name: &str, spec: &str) -> Result<Object> {
        self.cluster
            .apply(&self.manifest_of("Adapter", name, spec))?;
        Ok(self.adapter(name))
    }

    /// The Adapter of that name, whether or not it exists.
    pub fn adapter(&self, name: &str) -> Object {
        Object::new(&self.cluster, "adapter", &self.name, name)
    }

    /// A TrainingJob of this namespace that is applied from `spec` (YAML, indented by two).
    pub fn apply_training_job(&self, name: &str, spec: &str) -> Result<Object> {
        self.apply_labelled_training_job(name, "{}", spec)
    }

    /// The same with labels (YAML in one line).
    pub fn apply_labelled_training_job(
        &self,
        name: &str,
        labels: &str,
        spec: &str,
    ) -> Result<Object> {
        let manifest = self.manifest_of("TrainingJob", name, spec);
        let labelled = format!("metadata:\n  labels: {labels}\n");
        self.cluster
            .apply(&manifest.replacen("metadata:\n", &labelled, 1))?;
        Ok(Object::new(&self.cluster, "trainingjob", &self.name, name))
    }
}
