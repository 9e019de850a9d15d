use std::collections::BTreeMap;

use hyprstream_contract::{
    CommitId, VolumeAttributes,
    registry::Reference,
    volume::{InvalidAttributes, VolumeMode},
};
use serde::{Deserialize, Serialize};

use crate::source::{Mirrored, SourceKey};

/// A commit and the claim that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The commit.
    pub commit: CommitId,
    /// Name of the claim.
    pub claim: String,
}

/// What a volume shows. Its text form stands in annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ContentText", try_from = "ContentText")]
pub struct Content {
    /// What the node plugin is told.
    pub attributes: VolumeAttributes,
    /// Size, as far as known.
    pub size_bytes: u64,
    /// Name of the Secret with credentials for its source, so that the registry can be asked for it
    /// when its owner names another source by then.
    pub secret: Option<String>,
}

impl Content {
    /// A mirrored commit of a source, to be read.
    pub fn of(source: &SourceKey, mirrored: &Mirrored) -> Self {
        Self {
            attributes: VolumeAttributes {
                repository: mirrored.repository.clone(),
                commit: mirrored.commit.clone(),
                source: source.url.clone(),
                reference: match &source.reference {
                    Reference::Branch(name) | Reference::Tag(name) => Some(name.clone()),
                    Reference::Head | Reference::Commit(_) => None,
                },
                include: source.include.clone(),
                mode: VolumeMode::ReadOnly,
            },
            size_bytes: mirrored.size_bytes,
            secret: source.secret.clone(),
        }
    }

    /// The same to be written to by one pod at a time, which may write about `capacity_bytes` on the
    /// node where it runs; another node has none of it. The node plugin refuses less than
    /// [`MIN_CAPACITY_BYTES`](hyprstream_contract::volume::MIN_CAPACITY_BYTES), and whoever takes a
    /// capacity from a spec refuses it there.
    #[must_use = "the volume that is only read stays as it is"]
    pub fn written(mut self, capacity_bytes: u64) -> Self {
        self.attributes.mode = VolumeMode::ReadWrite { capacity_bytes };
        self
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContentText {
    attributes: BTreeMap<String, String>,
    size_bytes: u64,
    /// Of what an earlier release noted, nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl From<Content> for ContentText {
    fn from(content: Content) -> Self {
        Self {
            attributes: content.attributes.to_map(),
            size_bytes: content.size_bytes,
            secret: content.secret,
        }
    }
}

impl TryFrom<ContentText> for Content {
    type Error = InvalidAttributes;

    fn try_from(text: ContentText) -> Result<Self, Self::Error> {
        Ok(Self {
            attributes: VolumeAttributes::from_map(&text.attributes)?,
            size_bytes: text.size_bytes,
            secret: text.secret,
        })
    }
}
