//! Which adapters the workers of a Model have, as the operator tells the registry and the registry
//! tells the nodes (`docs/adr/0002-how-adapters-reach-pods.md`).
//!
//! | Call | Token | Body | Answer |
//! |---|---|---|---|
//! | `PUT /api/v1/adapters/NAMESPACE/MODEL` | admin | [`AdapterList`] | 200 [`Stored`], idempotent |
//! | `DELETE /api/v1/adapters/NAMESPACE/MODEL` | admin | | 204, also if there was none |
//! | `GET /api/v1/adapters/NAMESPACE/MODEL` | admin, node | | 200 [`AdapterList`]; an empty one if there is none |
//! | `POST /api/v1/adapters/changes` | admin, node | [`ChangesRequest`] | 200 [`Changes`], waits up to 30 s for one |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::CommitId;

/// Path of the lists; `/NAMESPACE/MODEL` follows.
pub const ADAPTERS_PATH: &str = "/api/v1/adapters";
/// Path of [`ChangesRequest`].
pub const CHANGES_PATH: &str = "/api/v1/adapters/changes";
/// Most entries of one list.
pub const MAX_ADAPTERS: usize = 2048;
/// Longest path of a file in its repository, in bytes.
const MAX_PATH_BYTES: usize = 1024;

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
}

/// Answer to a list that was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// [`AdapterList::revision`] of what is there now.
    pub revision: String,
}

/// Asks for the lists that differ from those that the asker has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangesRequest {
    /// `NAMESPACE/MODEL` with the revision that the asker has; empty for none.
    pub known: BTreeMap<String, String>,
}

/// The lists that differ; none if nothing changed while the call waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// By `NAMESPACE/MODEL`.
    pub lists: BTreeMap<String, AdapterList>,
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
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
        if !(-10.0..=10.0).contains(&self.scale) {
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

/// Whether it leads to something below the root, whatever opens it.
fn is_plain(path: &str) -> bool {
    path.len() <= MAX_PATH_BYTES
        && !path.contains(['\\', '\0', '\n'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_repository(text: &str) -> bool {
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
