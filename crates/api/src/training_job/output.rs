use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is committed while it learns, to the branch train/NAME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingCheckpoint {
    /// Steps between two checkpoints.
    #[serde(default = "every")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub every_steps: i64,
    /// Checkpoints whose large files the registry keeps; the history of older ones stays.
    #[serde(default = "keep")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep: i32,
    /// Whether each of those that are kept gets a tag NAME/step-N.
    #[serde(default = "yes")]
    pub tag: bool,
}

impl Default for TrainingCheckpoint {
    fn default() -> Self {
        Self {
            every_steps: every(),
            keep: keep(),
            tag: yes(),
        }
    }
}

/// What becomes of the adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.into) == (self.onSuccess == 'Merge')").message("into and onSuccess Merge need each other"),
)]
pub struct TrainingOutput {
    /// Name of the adapter: its files are adapters/NN_NAME.safetensors and .config.json. Without it,
    /// that of the TrainingJob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("name must be a DNS label: small letters, digits and '-'"))]
    pub name: Option<String>,
    /// Repository of the namespace on this cluster's registry whose branch train/NAME gets the
    /// commits. Without it, the Model's own where that lies on the registry in this namespace, else
    /// one with the Model's name. One that does not exist is made, and shares its weights with the
    /// Model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')").message("repository must be the name of a repository: letters, digits, '-', '_' and '.'"))]
    pub repository: Option<String>,
    /// What happens when the gates are passed: nothing more than the branch (PushBranch), a merge
    /// into a branch of the repository (Merge), or an Adapter of the Model (CreateAdapter).
    #[serde(default)]
    pub on_success: OnSuccess,
    /// The branch that takes it up, with onSuccess Merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^-/\\s~^:?*\\[\\\\][^\\s~^:?*\\[\\\\]*$') && !self.contains('..') && !self.startsWith('refs/')").message("into must be the name of a branch, without refs/heads/"))]
    pub into: Option<String>,
}

/// What happens when the gates are passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnSuccess {
    /// The branch has it.
    PushBranch,
    /// A branch takes it up.
    Merge,
    /// The Model serves it.
    #[default]
    CreateAdapter,
}

fn yes() -> bool {
    true
}

fn every() -> i64 {
    100
}

fn keep() -> i32 {
    3
}
