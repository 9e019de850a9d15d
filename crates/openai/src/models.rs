//! The list of models.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer of `/v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models.
    pub data: Vec<Model>,
}

impl ModelList {
    /// The list of `data`.
    pub fn new(data: Vec<Model>) -> Self {
        Self {
            object: "list".to_owned(),
            data,
        }
    }
}

/// One entry of the list: what a request may name as its `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The name to put into a request.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// When it was made or loaded, in seconds since 1970.
    pub created: u64,
    /// Who it belongs to.
    pub owned_by: String,
    /// What it is at its root: for an adapter where it lies, for a model its repository.
    pub root: Option<String>,
    /// For an adapter the model that it adapts.
    pub parent: Option<String>,
    /// Longest prompt plus answer in tokens, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u64>,
    /// Where its weights come from; `null` when that is not known.
    #[serde(default)]
    pub hyprstream: Option<Provenance>,
}

/// Where weights come from, and what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// The repository, without credentials; empty and left out where it is not told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// The branch or tag that led to the commit.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The full commit; empty and left out for an adapter that comes from none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// For an adapter the SHA-256 of what it computes, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// For an adapter its largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
}
