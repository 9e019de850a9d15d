use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{LocalSecretRef, SourceRef};

/// Where the files of an adapter lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.url) || (!has(self.interval) && !has(self.secretRef))").message("interval and secretRef need url: without it, the Model's repository is read as the Model says"),
    validation = Rule::new("!(has(self.secretRef) && has(self.url) && self.url.startsWith('hyprstream://'))").message("secretRef must not be set with hyprstream://: the registry of this cluster needs no credentials"),
)]
pub struct AdapterSource {
    /// A git repository, as in a Model. Without it, the Model's own, with the Model's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^(https?|ssh)://[^\\s/]+/\\S+$') || self.matches('^hyprstream://[a-z0-9]([-a-z0-9]*[a-z0-9])?/[A-Za-z0-9_][A-Za-z0-9._-]*$') || self.matches('^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\\s]+$')").message("url must be https://HOST/PATH, http://HOST/PATH, ssh://HOST/PATH, USER@HOST:PATH or hyprstream://NAMESPACE/NAME"),
        validation = Rule::new(r"!self.matches('^https?://[^/]*@')").message("url must not carry credentials: put them into a Secret and name it in secretRef"),
    )]
    pub url: Option<String>,

    /// Which commit. Without it, the head of the default branch, or without url what the Model's
    /// own ref names.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<SourceRef>,

    /// How often a moving ref is looked up again, as 30s, 10m or 1h30m; at least 5s, and 10m
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]+(s|m|h))+$')").message("interval must be a duration such as 30s, 10m or 1h30m"),
        validation = Rule::new("!self.matches('^([0-9]+(s|m|h))+$') || duration(self) >= duration('5s')").message("interval must be at least 5s"),
    )]
    pub interval: Option<String>,

    /// A Secret with credentials for url, as in a Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalSecretRef>,

    /// The file of tensors, as adapters/01_sql.safetensors with adapters/01_sql.config.json beside
    /// it, or the folder of adapter_model.safetensors and adapter_config.json; "." is the root.
    #[schemars(length(min = 1, max = 900))]
    #[x_kube(
        validation = Rule::new(r"self == '.' || self.split('/').all(p, p != '' && p != '.' && p != '..')").message("path must be a path below the root of the repository, without '.' and '..'"),
        validation = Rule::new(r"!self.contains('\\\\') && !self.contains('\n')").message("path must not hold a backslash or a line break"),
    )]
    pub path: String,
}
