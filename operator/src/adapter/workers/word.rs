use std::collections::BTreeMap;

use hyprstream_contract::worker_adapters::{LoadState, Origin, WorkerAdapters};

use super::WorkerPod;

/// Reasons of a worker or its node that say nothing of the adapter's files: they pass, and are tried
/// again by whoever gives them.
const HINDRANCES: [&str; 12] = [
    "RegistryUnreachable",
    "DiskFull",
    "Damaged",
    "Cancelled",
    "NodeFailed",
    "InternalError",
    "OutOfMemory",
    "Busy",
    // The worker ends, and another takes its place.
    "EngineDied",
    // A folder has one content for good. Where it is another, or none, the node's disk is to blame
    // and the node fetches it anew.
    "FilesChanged",
    "MissingFile",
    // The list changed while it was read.
    "Superseded",
];

/// What a worker says of an adapter that it was told of.
#[derive(Clone, Debug, PartialEq)]
pub struct Word {
    /// Which files `state` is of.
    pub folder: String,
    /// Scale where a request names none.
    pub scale: f32,
    /// How far it is.
    pub state: LoadState,
    /// What answers by the name now.
    pub serving: Option<Served>,
    /// What its user should know, though it is served.
    pub warning: Option<String>,
}

/// An adapter that requests are answered with, but for what changes from one request to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// SHA-256 of what it computes.
    pub digest: String,
    /// Its largest rank.
    pub rank: u32,
    /// SHA-256 of the file of its tensors.
    pub sha256: String,
    /// Bytes of that file.
    pub size: u64,
}

/// What a worker says, by served name.
pub type Words = BTreeMap<String, Word>;

/// A ready worker, and what it said last.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Which.
    pub pod: WorkerPod,
    /// What it says, or why nothing is known; `None` until one of the two can be said.
    pub words: Option<Result<Words, String>>,
    /// How often in a row it did not answer.
    pub silent: u32,
}

impl Word {
    /// Whether a failure is about the adapter itself, so that another try fails in the same way.
    pub fn is_refusal(reason: &str) -> bool {
        !HINDRANCES.contains(&reason)
    }
}

/// What a worker says of the adapters that it was told of.
pub fn words(answer: WorkerAdapters) -> Words {
    let followed = answer
        .data
        .into_iter()
        .filter(|adapter| adapter.origin == Origin::Followed);
    followed
        .map(|adapter| {
            let serving = adapter.serving.map(|serving| Served {
                digest: serving.digest,
                rank: serving.rank,
                sha256: serving.sha256,
                size: serving.size,
            });
            let word = Word {
                folder: adapter.folder.unwrap_or_default(),
                scale: adapter.scale,
                state: adapter.state,
                serving,
                warning: adapter.warning,
            };
            (adapter.name, word)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_workers_have_from_elsewhere_or_do_with_their_memory_is_no_news() {
        let answer = |resident: bool, bytes: u64| {
            let serving = json!({"digest": "d", "rank": 1, "sha256": "s", "size": 2,
                "bytes": bytes, "resident": resident});
            let one = |name: &str, origin: &str| {
                json!({"name": name, "origin": origin, "scale": 1.0, "source": "x",
                    "folder": "f", "state": "loaded", "serving": serving})
            };
            let data = [
                one("a", "followed"),
                one("b", "repository"),
                one("c", "request"),
            ];
            let answer = serde_json::from_value(json!({"object": "list", "data": data}));
            words(answer.unwrap())
        };
        let known = answer(true, 5);
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(answer(false, 0), known);
    }

    #[test]
    fn only_what_is_about_the_files_is_a_refusal() {
        for refusal in [
            "ShapeMismatch",
            "BaseCommitMismatch",
            "NotFound",
            "Refused",
            "DamagedFile",
            "TooLarge",
            "NameTaken",
            "Unsupported",
        ] {
            assert!(Word::is_refusal(refusal), "{refusal}");
        }
        for passing in [
            "RegistryUnreachable",
            "DiskFull",
            "Damaged",
            "Cancelled",
            "NodeFailed",
            "EngineDied",
            "FilesChanged",
            "MissingFile",
            "Superseded",
        ] {
            assert!(!Word::is_refusal(passing), "{passing}");
        }
    }
}
