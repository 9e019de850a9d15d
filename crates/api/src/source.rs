use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.secretRef) && self.url.startsWith('hyprstream://'))").message("secretRef must not be set with hyprstream://: the registry of this cluster needs no credentials"),
)]
pub struct Source {
    /// A git repository: https://, http://, ssh://, USER@HOST:PATH, or hyprstream://NAMESPACE/NAME
    /// for what was pushed to the registry of this cluster.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^(https?|ssh)://[^\\s/]+/\\S+$') || self.matches('^hyprstream://[a-z0-9]([-a-z0-9]*[a-z0-9])?/[A-Za-z0-9_][A-Za-z0-9._-]*$') || self.matches('^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\\s]+$')").message("url must be https://HOST/PATH, http://HOST/PATH, ssh://HOST/PATH, USER@HOST:PATH or hyprstream://NAMESPACE/NAME"),
        validation = Rule::new(r"!self.matches('^https?://[^/]*@')").message("url must not carry credentials: put them into a Secret and name it in secretRef"),
    )]
    pub url: String,

    /// What to serve of it. Without it, the head of the default branch.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<SourceRef>,

    /// How often a moving ref is looked up again, as 30s, 10m or 1h30m; at least 5s.
    #[serde(default = "default_interval")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]+(s|m|h))+$')").message("interval must be a duration such as 30s, 10m or 1h30m"),
        validation = Rule::new("!self.matches('^([0-9]+(s|m|h))+$') || duration(self) >= duration('5s')").message("interval must be at least 5s"),
    )]
    pub interval: String,

    /// A Secret of the Model's namespace with the credentials, of type
    /// hyprstream.io/git-credentials, kubernetes.io/basic-auth or kubernetes.io/ssh-auth, or with
    /// the label hyprstream.io/git-credentials: "true". Keys: token, or username and password, or
    /// ssh-privatekey and known_hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalSecretRef>,

    /// Globs of the files to serve, as "*.safetensors" or "tokenizer/**". Without any, all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(
        validation = Rule::new("self.all(g, !g.startsWith('/') && !g.contains('..'))").message("include holds globs relative to the repository, without '..'"),
    )]
    pub include: Vec<String>,
}

/// A branch, a tag or a commit; nothing for the head of the default branch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.branch) ? 1 : 0) + (has(self.tag) ? 1 : 0) + (has(self.commit) ? 1 : 0) <= 1").message("at most one of branch, tag and commit may be set"),
)]
pub struct SourceRef {
    /// Follows a branch, named without refs/heads/.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^-/\\s~^:?*\\[\\\\][^\\s~^:?*\\[\\\\]*$') && !self.contains('..') && !self.startsWith('refs/')").message("branch must be the name of a branch, without refs/heads/"))]
    pub branch: Option<String>,
    /// Follows a tag, named without refs/tags/.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^-/\\s~^:?*\\[\\\\][^\\s~^:?*\\[\\\\]*$') && !self.contains('..') && !self.startsWith('refs/')").message("tag must be the name of a tag, without refs/tags/"))]
    pub tag: Option<String>,
    /// Stays on a commit, named by all 40 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-fA-F]{40}$')").message("commit must be the full name of a commit: 40 hexadecimal digits"))]
    pub commit: Option<String>,
}

/// A Secret in the namespace of the object that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn default_interval() -> String {
    "10m".to_owned()
}
