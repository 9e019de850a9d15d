//! Which adapters a worker has: what it answers to `GET /v1/lora_adapters`.
//!
//! The operator counts by it, and asks with the key of the Model's workers
//! ([`crate::worker_key`]).

use serde::{Deserialize, Serialize};

use crate::CommitId;

/// Path of the worker's list.
pub const WORKER_ADAPTERS_PATH: &str = "/v1/lora_adapters";

/// All adapters of a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerAdapters {
    /// Always `list`.
    pub object: String,
    /// [`crate::adapters::AdapterFolder::revision`] of the list that was read last; absent before
    /// the first, and for a worker that follows no folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// By name.
    pub data: Vec<WorkerAdapter>,
}

/// One adapter of a worker, by its served name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerAdapter {
    /// The served name.
    pub name: String,
    /// Who asked for it.
    pub origin: Origin,
    /// Scale where a request names none.
    pub scale: f32,
    /// The upstream without credentials and the path in it, or the folder that it was loaded from.
    pub source: String,
    /// The commit, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitId>,
    /// For [`Origin::Followed`], the [`crate::adapters::FolderEntry::folder`] that `state` is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// How far what was asked for last is.
    #[serde(flatten)]
    pub state: LoadState,
    /// What answers by this name now: absent if nothing does. While `state` is not
    /// [`LoadState::Loaded`] it is what was loaded before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// What its user should know, though it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Where a worker has an adapter from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// The folder that it follows: a resource of kind Adapter.
    Followed,
    /// The folder `adapters` of the commit that it serves.
    Repository,
    /// `POST /v1/load_lora_adapter`.
    Request,
}

/// How far an adapter is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum LoadState {
    /// Its files are not there yet, or it is being read.
    Loading,
    /// Requests are answered with it.
    Loaded,
    /// It cannot be had or is refused.
    Failed {
        /// CamelCase, for a condition.
        reason: String,
        /// For people: what is wrong and what to do.
        message: String,
    },
}

/// An adapter that requests are answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// SHA-256 of what it computes, 64 hexadecimal digits.
    pub digest: String,
    /// Its largest rank.
    pub rank: u32,
    /// SHA-256 of the file of its tensors, 64 hexadecimal digits.
    pub sha256: String,
    /// Bytes of that file.
    pub size: u64,
    /// When it was loaded, in seconds since 1970. It stays when the adapter makes way in memory and
    /// comes back. 0 from a worker that does not tell.
    #[serde(default)]
    pub loaded_at: u64,
    /// Bytes that it takes in memory when it is ready to compute with.
    pub bytes: u64,
    /// Whether it is; if not, its next request brings it back from its files.
    pub resident: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(state: LoadState, serving: Option<Serving>) -> WorkerAdapter {
        WorkerAdapter {
            name: "sql".into(),
            origin: Origin::Followed,
            scale: 0.5,
            source: "hyprstream://default/m adapters/01_sql.safetensors".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().ok(),
            folder: Some("f".into()),
            state,
            serving,
            warning: None,
        }
    }

    #[test]
    fn a_list_reads_as_documented_and_survives_the_round_trip() {
        let serving = Serving {
            digest: "d".into(),
            rank: 16,
            sha256: "s".into(),
            size: 3,
            loaded_at: 5,
            bytes: 4,
            resident: true,
        };
        let failed = LoadState::Failed {
            reason: "ShapeMismatch".into(),
            message: "m".into(),
        };
        let list = WorkerAdapters {
            object: "list".into(),
            revision: Some("r".into()),
            data: vec![
                adapter(LoadState::Loaded, Some(serving)),
                adapter(LoadState::Loading, None),
                adapter(failed, None),
            ],
        };
        let value = serde_json::to_value(&list).unwrap();
        assert_eq!(
            value["data"][0],
            serde_json::json!({
                "name": "sql", "origin": "followed", "scale": 0.5, "folder": "f",
                "source": "hyprstream://default/m adapters/01_sql.safetensors",
                "commit": "0123456789abcdef0123456789abcdef01234567", "state": "loaded",
                "serving": {"digest": "d", "rank": 16, "sha256": "s", "size": 3, "loadedAt": 5,
                    "bytes": 4, "resident": true},
            })
        );
        assert_eq!(value["data"][2]["reason"], "ShapeMismatch");
        assert_eq!(
            serde_json::from_value::<WorkerAdapters>(value).unwrap(),
            list
        );
    }
}
