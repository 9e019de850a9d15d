//! Which adapters the workers of a Model have, as the operator tells the registry and the registry
//! tells the nodes (`docs/adr/0002-how-adapters-reach-pods.md`).
//!
//! | Call | Token | Body | Answer |
//! |---|---|---|---|
//! | `PUT /api/v1/adapters/NAMESPACE/MODEL` | admin | [`AdapterList`] | 200 [`Stored`], idempotent |
//! | `DELETE /api/v1/adapters/NAMESPACE/MODEL` | admin | | 204, also if there was none |
//! | `GET /api/v1/adapters/NAMESPACE/MODEL` | admin, the Model's word | | 200 [`AdapterList`]; an empty one if there is none |
//! | `GET /api/v1/adapters` | admin | | 200 [`ListedModels`] |
//! | `POST /api/v1/adapters/changes` | admin, node with words | [`ChangesRequest`] | 200 [`Changes`], waits up to 30 s for one |
//!
//! The word of a Model is that of a volume of its adapters ([`crate::grants`]).
//!
//! A node shows a list to the workers of its Model as a folder:
//!
//! ```text
//! adapters.json                    an AdapterFolder, replaced whole
//! <folder>/adapter_model.safetensors
//! <folder>/adapter_config.json
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use crate::model_name::{InvalidModelName, ModelName};
use crate::{CommitId, model_ref::MAX_SCALE};

/// Path of [`ListedModels`], and of the lists: `/NAMESPACE/MODEL` follows.
pub const ADAPTERS_PATH: &str = "/api/v1/adapters";
/// Path of [`ChangesRequest`].
pub const CHANGES_PATH: &str = "/api/v1/adapters/changes";
/// Most entries of one list.
pub const MAX_ADAPTERS: usize = 2048;
/// Longest path of a file in its repository, in bytes.
const MAX_PATH_BYTES: usize = 1024;

/// Name of the file that says what is in a folder of adapters.
pub const FOLDER_FILE: &str = "adapters.json";
/// Name of the weights of an adapter in its own folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Name of the configuration of an adapter in its own folder.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// All adapters of one Model that were accepted, in no particular order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterList {
    /// Each with a name of its own.
    pub adapters: Vec<AdapterEntry>,
}

/// One adapter: two files of a commit under a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterEntry {
    /// The served name.
    pub name: String,
    /// Scale where a request names none, from -10 to 10.
    pub scale: f32,
    /// Where it lies on the registry, as in [`crate::registry::MirrorStatus::repository`].
    pub repository: String,
    /// The commit.
    pub commit: CommitId,
    /// Path of the safetensors file in the repository.
    pub weights: String,
    /// Path of its configuration.
    pub config: String,
    /// The upstream without credentials and the path in it, for people.
    pub source: String,
    /// What becomes of it where it says that it was made for another commit of the model.
    #[serde(default)]
    pub base_commit: BaseCommitPolicy,
}

/// What a worker does with an adapter whose configuration names another commit of the model
/// (PEFT's `revision`, when that is a commit) than the one that the worker serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BaseCommitPolicy {
    /// Refuses it.
    Require,
    /// Serves it, and says so in [`crate::worker_adapters::WorkerAdapter::warning`].
    #[default]
    Warn,
    /// Does not look.
    Ignore,
}

/// Answer to a list that was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// [`AdapterList::revision`] of what is there now.
    pub revision: String,
}

/// All Models of which a list is kept, also one that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedModels {
    /// In order.
    pub models: BTreeSet<ModelName>,
}

/// Asks for the lists that differ from those that the asker has.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangesRequest {
    /// The Models, with the revision that the asker has; empty for none.
    pub known: BTreeMap<ModelName, String>,
    /// What opens their lists, by Model: a [`crate::grants::Word`] of a volume of the Model's
    /// adapters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub words: BTreeMap<ModelName, String>,
}

impl std::fmt::Debug for ChangesRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangesRequest")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// The lists that differ; none if nothing changed while the call waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// By Model.
    pub lists: BTreeMap<ModelName, AdapterList>,
    /// Models whose lists the asker may not read. While there are any, the answer does not wait.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<ModelName>,
}

/// `adapters.json`: what a node shows to the workers of a Model. The node plugin writes it, workers
/// read it.
///
/// What is [`AdapterState::Ready`] in it is there and verified; its files stay for at least ten
/// minutes after no version of this file names them any more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterFolder {
    /// [`AdapterList::revision`] of the list that is shown.
    pub revision: String,
    /// All entries of the list, ordered by name.
    pub adapters: Vec<FolderEntry>,
}

/// One adapter of an [`AdapterFolder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FolderEntry {
    /// The served name.
    pub name: String,
    /// Scale where a request names none.
    pub scale: f32,
    /// Name of the folder of its two files, beside `adapters.json`: [`AdapterEntry::folder`]. The
    /// same name is the same content.
    pub folder: String,
    /// The upstream without credentials and the path in it, for people.
    pub source: String,
    /// The commit.
    pub commit: CommitId,
    /// What becomes of it where it was made for another commit of the model.
    #[serde(default)]
    pub base_commit: BaseCommitPolicy,
    /// Whether its files are there.
    #[serde(flatten)]
    pub state: AdapterState,
}

/// Whether the files of an adapter are on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum AdapterState {
    /// They are, and were verified.
    Ready,
    /// They are being fetched for the first time.
    Pending,
    /// They could not be had. It is tried again.
    Failed {
        /// CamelCase, for machines.
        reason: String,
        /// For people: what is wrong and what to do.
        message: String,
        /// Whether it may pass without anybody changing the adapter: the registry, the network or
        /// the node's disk is to blame. `false` from a node that does not tell.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        transient: bool,
    },
}

/// A list that is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidList {
    /// Too long.
    #[error("it has {0} adapters, and at most {MAX_ADAPTERS} are kept for one Model")]
    TooMany(usize),
    /// Two of one name.
    #[error("two adapters have the name {0:?}")]
    Twice(String),
    /// A field that cannot be.
    #[error("adapter {name:?}: {field} is {value:?}: {why}")]
    Field {
        /// Which adapter.
        name: String,
        /// Its field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl AdapterList {
    /// SHA-256, in hexadecimal, of what the list says: the same for the same adapters in any order.
    pub fn revision(&self) -> String {
        let mut sorted = self.clone();
        sorted.adapters.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes = serde_json::to_vec(&sorted).expect("a list is JSON");
        hexadecimal(&Sha256::digest(bytes))
    }

    /// Whether every entry can be looked for and served.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), InvalidList> {
        if self.adapters.len() > MAX_ADAPTERS {
            return Err(InvalidList::TooMany(self.adapters.len()));
        }
        let mut names = BTreeSet::new();
        for adapter in &self.adapters {
            adapter.check()?;
            if !names.insert(&adapter.name) {
                return Err(InvalidList::Twice(adapter.name.clone()));
            }
        }
        Ok(())
    }
}

impl AdapterEntry {
    /// Name of the folder of the adapter's files: a digest of repository, commit and paths.
    pub fn folder(&self) -> String {
        let mut hasher = Sha256::new();
        let parts = [
            self.repository.as_str(),
            self.commit.as_str(),
            &self.weights,
            &self.config,
        ];
        for part in parts {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hexadecimal(&hasher.finalize()[..16])
    }

    fn check(&self) -> Result<(), InvalidList> {
        let wrong = |field, value: &str, why| {
            Err(InvalidList::Field {
                name: self.name.chars().take(80).collect(),
                field,
                value: value.chars().take(80).collect(),
                why,
            })
        };
        if let Err(why) = crate::model_ref::check_adapter_name(&self.name) {
            return wrong("name", &self.name, why);
        }
        if !(-MAX_SCALE..=MAX_SCALE).contains(&self.scale) {
            let value = self.scale.to_string();
            return wrong("scale", &value, "it is a number from -10 to 10");
        }
        if !is_repository(&self.repository) {
            let why = "it is mirror/ID or git/NAMESPACE/NAME";
            return wrong("repository", &self.repository, why);
        }
        for (field, path) in [("weights", &self.weights), ("config", &self.config)] {
            if !is_plain(path) {
                let why = "it is a path below the root of the repository, without \".\" and \"..\"";
                return wrong(field, path, why);
            }
        }
        Ok(())
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether it leads to something below the root, whatever opens it.
fn is_plain(path: &str) -> bool {
    path.len() <= MAX_PATH_BYTES
        && !path.contains(['\\', '\0', '\n'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

pub(crate) fn is_repository(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let plain = parts.iter().all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    });
    plain && matches!(parts[..], ["mirror", _] | ["git", _, _])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str) -> AdapterEntry {
        AdapterEntry {
            name: name.to_owned(),
            scale: 1.0,
            repository: "git/default/m".to_owned(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            weights: "adapters/01_sql.safetensors".to_owned(),
            config: "adapters/01_sql.config.json".to_owned(),
            source: "hyprstream://default/m".to_owned(),
            base_commit: BaseCommitPolicy::Warn,
        }
    }

    fn list(names: &[&str]) -> AdapterList {
        AdapterList {
            adapters: names.iter().copied().map(entry).collect(),
        }
    }

    proptest! {
        #[test]
        fn lists_survive_the_round_trip_with_their_revision(
            names in proptest::collection::btree_set("[a-z0-9._-]{1,20}", 0..6),
            scale in -10.0f32..=10.0,
        ) {
            let mut list = list(&names.iter().map(String::as_str).collect::<Vec<_>>());
            list.adapters.iter_mut().for_each(|adapter| adapter.scale = scale);
            prop_assert_eq!(list.check(), Ok(()));
            let text = serde_json::to_string(&list).unwrap();
            let again: AdapterList = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&again, &list);
            list.adapters.reverse();
            prop_assert_eq!(again.revision(), list.revision());
        }
    }

    #[test]
    fn another_scale_or_commit_is_another_revision() {
        let old = list(&["a", "b"]);
        let mut scaled = old.clone();
        scaled.adapters[1].scale = 0.5;
        let mut moved = old.clone();
        moved.adapters[0].commit = "1123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let revisions = [old, scaled, moved, AdapterList::default()].map(|list| list.revision());
        for (index, revision) in revisions.iter().enumerate() {
            assert!(!revisions[index + 1..].contains(revision));
        }
    }

    #[test]
    fn what_is_asked_and_answered_reads_as_documented() {
        let model = || "a/m.v2".parse().unwrap();
        let request = ChangesRequest {
            known: BTreeMap::from([(model(), "r".to_owned())]),
            words: BTreeMap::new(),
        };
        let shown = ChangesRequest {
            words: BTreeMap::from([(model(), "hsv_x".to_owned())]),
            ..request.clone()
        };
        assert!(!format!("{shown:?}").contains("hsv_x"));
        let changes = Changes {
            lists: BTreeMap::from([(model(), AdapterList::default())]),
            refused: BTreeSet::new(),
        };
        let refusal = Changes {
            lists: BTreeMap::new(),
            refused: BTreeSet::from([model()]),
        };
        let listed = ListedModels {
            models: BTreeSet::from([model()]),
        };
        for (value, expected) in [
            (
                serde_json::to_value(&request),
                serde_json::json!({"known": {"a/m.v2": "r"}}),
            ),
            (
                serde_json::to_value(&shown),
                serde_json::json!({"known": {"a/m.v2": "r"}, "words": {"a/m.v2": "hsv_x"}}),
            ),
            (
                serde_json::to_value(&changes),
                serde_json::json!({"lists": {"a/m.v2": {"adapters": []}}}),
            ),
            (
                serde_json::to_value(&refusal),
                serde_json::json!({"lists": {}, "refused": ["a/m.v2"]}),
            ),
            (
                serde_json::to_value(&listed),
                serde_json::json!({"models": ["a/m.v2"]}),
            ),
        ] {
            assert_eq!(value.unwrap(), expected);
        }
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<ChangesRequest>(&text).unwrap(),
            request
        );
        let text = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<Changes>(&text).unwrap(), changes);
        let text = serde_json::to_string(&listed).unwrap();
        assert_eq!(serde_json::from_str::<ListedModels>(&text).unwrap(), listed);
    }

    proptest! {
        #[test]
        fn what_a_node_shows_survives_the_round_trip(
            reason in "[A-Z][a-z]{1,20}", message in ".{0,60}", scale in -10.0f32..=10.0,
            transient: bool,
        ) {
            let state = |state| FolderEntry {
                name: "sql".into(),
                scale,
                folder: entry("sql").folder(),
                source: "hyprstream://default/m".into(),
                commit: entry("sql").commit,
                base_commit: BaseCommitPolicy::Require,
                state,
            };
            let folder = AdapterFolder {
                revision: list(&["sql"]).revision(),
                adapters: vec![
                    state(AdapterState::Ready),
                    state(AdapterState::Pending),
                    state(AdapterState::Failed { reason, message, transient }),
                ],
            };
            let text = serde_json::to_string(&folder).unwrap();
            prop_assert_eq!(serde_json::from_str::<AdapterFolder>(&text).unwrap(), folder);
        }
    }

    #[test]
    fn what_a_node_shows_reads_as_documented() {
        let folder = AdapterFolder {
            revision: "r".into(),
            adapters: vec![FolderEntry {
                name: "sql".into(),
                scale: 0.5,
                folder: "f".into(),
                source: "s".into(),
                commit: entry("sql").commit,
                base_commit: BaseCommitPolicy::Ignore,
                state: AdapterState::Failed {
                    reason: "NotFound".into(),
                    message: "m".into(),
                    transient: false,
                },
            }],
        };
        let expected = serde_json::json!({"revision": "r", "adapters": [{
            "name": "sql", "scale": 0.5, "folder": "f", "source": "s",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "baseCommit": "ignore",
            "state": "failed", "reason": "NotFound", "message": "m",
        }]});
        assert_eq!(serde_json::to_value(&folder).unwrap(), expected);
        let ready = serde_json::to_value(AdapterState::Ready).unwrap();
        assert_eq!(ready, serde_json::json!({"state": "ready"}));
        let passing = serde_json::json!({
            "state": "failed", "reason": "DiskFull", "message": "m", "transient": true,
        });
        let read: AdapterState = serde_json::from_value(passing.clone()).unwrap();
        assert!(matches!(
            &read,
            AdapterState::Failed {
                transient: true,
                ..
            }
        ));
        assert_eq!(serde_json::to_value(read).unwrap(), passing);
    }

    #[test]
    fn a_folder_is_named_by_what_is_in_it() {
        let plain = entry("sql");
        let mut renamed = entry("other");
        (renamed.scale, renamed.source) = (2.0, "x".into());
        assert_eq!(plain.folder(), renamed.folder());
        assert!(
            plain.folder().len() == 32 && plain.folder().bytes().all(|b| b.is_ascii_hexdigit())
        );
        for change in [
            |a: &mut AdapterEntry| a.repository = "git/default/n".into(),
            |a: &mut AdapterEntry| {
                a.commit = "1123456789abcdef0123456789abcdef01234567".parse().unwrap();
            },
            |a: &mut AdapterEntry| a.weights.push('x'),
            |a: &mut AdapterEntry| a.config.push('x'),
        ] {
            let mut other = entry("sql");
            change(&mut other);
            assert_ne!(plain.folder(), other.folder());
        }
    }

    #[test]
    fn what_is_wrong_with_a_list_is_named() {
        let with = |change: fn(&mut AdapterEntry)| {
            let mut list = list(&["sql"]);
            change(&mut list.adapters[0]);
            list.check().unwrap_err().to_string()
        };
        for (error, parts) in [
            (with(|a| a.name = "a+b".into()), ["name", "a+b"]),
            (with(|a| a.scale = f32::NAN), ["scale", "NaN"]),
            (with(|a| a.scale = 10.5), ["scale", "10.5"]),
            (
                with(|a| a.repository = "git/../x".into()),
                ["repository", "git/../x"],
            ),
            (
                with(|a| a.repository = "git/a".into()),
                ["repository", "git/NAMESPACE/NAME"],
            ),
            (with(|a| a.weights = "../w".into()), ["weights", "../w"]),
            (
                with(|a| a.config = "/etc/passwd".into()),
                ["config", "/etc/passwd"],
            ),
            (with(|a| a.config = "a//b".into()), ["config", "a//b"]),
        ] {
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
        let twice = list(&["a", "a"]).check().unwrap_err();
        assert_eq!(twice, InvalidList::Twice("a".into()));
        let names: Vec<String> = (0..=MAX_ADAPTERS).map(|n| format!("a{n}")).collect();
        let many = list(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(many.check(), Err(InvalidList::TooMany(MAX_ADAPTERS + 1)));
    }
}
