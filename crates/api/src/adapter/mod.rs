//! `adapters.hyprstream.io`.

mod source;
mod status;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use source::AdapterSource;
pub use status::{AdapterReplicas, AdapterStatus};

/// Which adapter, and of which Model.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hyprstream.io",
    version = "v1alpha1",
    kind = "Adapter",
    plural = "adapters",
    shortname = "adp",
    category = "hyprstream",
    namespaced,
    status = "AdapterStatus",
    derive = "PartialEq",
    doc = "A LoRA adapter: a file in a commit of a git repository that every worker of a Model serves, without a restart.",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.modelRef.name"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.commit",
        description = "The commit that it is taken from"),
    printcolumn(name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Loaded", type_ = "integer", json_path = ".status.replicas.loaded",
        description = "Workers that answer with it"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.replicas.desired",
        description = "Ready workers of the Model"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.source.path", priority = 1),
    printcolumn(name = "Rank", type_ = "integer", json_path = ".status.rank", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("has(self.spec.servedName) || size(self.metadata.name) <= 63").message("the name of an Adapter may have at most 63 characters, or servedName must be set"),
)]
pub struct AdapterSpec {
    /// The Model that it adapts, in the same namespace. Another Model is another Adapter.
    pub model_ref: LocalModelRef,
    /// Where its files lie.
    pub source: AdapterSource,
    /// Name by which clients call it, as model NAME or MODEL+NAME. Without it, that of the Adapter.
    /// Of two Adapters of one Model with the same name, the older one has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("servedName is letters, digits, '-', '_' and '.'"),
    )]
    pub served_name: Option<String>,
    /// Scale where a request names none, a decimal number from -10 to 10.
    #[serde(default = "one")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^-?[0-9]{1,2}(\\.[0-9]{1,9})?$')").message("scale must be a decimal number such as \"0.8\""),
        validation = Rule::new(r"!self.matches('^-?[0-9]{1,2}(\\.[0-9]{1,9})?$') || (double(self) >= -10.0 && double(self) <= 10.0)").message("scale must be from -10 to 10"),
    )]
    pub scale: String,
    /// What happens when the adapter's configuration says that it was made for another commit of
    /// the model than the one that serves (revision in adapter_config.json, where that is a
    /// commit): Require refuses it, Warn serves it and says so, Ignore does not look. Shapes are
    /// always checked.
    #[serde(default)]
    pub base_commit_policy: BaseCommitPolicy,
}

/// A Model of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalModelRef {
    /// Name of the Model.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// What becomes of an adapter that was made for another commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BaseCommitPolicy {
    /// It is refused.
    Require,
    /// It is served, and its status says so.
    #[default]
    Warn,
    /// It is served.
    Ignore,
}

fn one() -> String {
    "1".to_owned()
}

impl Adapter {
    /// Name by which clients call it.
    pub fn served_name(&self) -> &str {
        let own = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.served_name.as_deref().unwrap_or(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_of_a_model_and_a_path_gets_every_default() {
        let adapter: Adapter = serde_json::from_value(serde_json::json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
            "metadata": {"name": "sql"},
            "spec": {"modelRef": {"name": "m"}, "source": {"path": "adapters/01_sql.safetensors"}},
        }))
        .unwrap();
        assert_eq!(adapter.served_name(), "sql");
        assert_eq!(adapter.spec.scale, "1");
        assert_eq!(adapter.spec.base_commit_policy, BaseCommitPolicy::Warn);
        assert_eq!(adapter.spec.source.url, None);
    }
}
