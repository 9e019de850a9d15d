//! Asking the registry which adapters Models have.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use hyprstream_contract::adapters::{AdapterList, CHANGES_PATH, ChangesRequest, ModelName};
use hyprstream_tls::Trust;
use serde::Deserialize;
use tonic::async_trait;

use crate::registry_api::RegistryApi;

/// Longest that a call may take; the registry waits up to 30 s for a change.
const TIMEOUT: Duration = Duration::from_secs(45);

/// The lists that differ from what was known, by Model; of one that cannot be used, why.
pub type Said = BTreeMap<ModelName, Result<AdapterList, Unsaid>>;

/// Why a list cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsaid {
    /// It is not what a list is, for people.
    #[error("{0}")]
    Wrong(String),
    /// It is not for who asked.
    #[error(
        "the registry does not let this volume read it: its word is not known there, or is another \
         Model's; while its PersistentVolume is there, the operator puts that right within a minute"
    )]
    Refused,
}

/// Where lists come from. [`RegistryLists`] is the real one.
#[async_trait]
pub trait Lists: Send + Sync + 'static {
    /// What differs from what is known; waits a while for it. Nothing if nothing changed.
    ///
    /// # Errors
    /// Why nobody said anything, for people.
    async fn changes(&self, request: ChangesRequest) -> Result<Said, String>;
}

/// The registry of the cluster.
pub struct RegistryLists(RegistryApi);

/// As `hyprstream_contract::adapters::Changes`, so that one list or name that cannot be read hides no
/// other.
#[derive(Deserialize)]
struct Answer {
    lists: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    refused: Vec<String>,
}

impl RegistryLists {
    /// The registry at `url`, which is one without a path. The token is read from its file for
    /// every call.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(
        url: &str,
        token_file: Option<PathBuf>,
        trust: &Trust,
    ) -> Result<Self, reqwest::Error> {
        RegistryApi::new(url, token_file, trust, TIMEOUT).map(Self)
    }
}

#[async_trait]
impl Lists for RegistryLists {
    async fn changes(&self, request: ChangesRequest) -> Result<Said, String> {
        said(&self.0.post(CHANGES_PATH, &request).await?)
    }
}

fn said(body: &[u8]) -> Result<Said, String> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|e| format!("its answer cannot be read: {e}"))?;
    let mut said = Said::new();
    for (model, list) in answer.lists {
        match model.parse() {
            Ok(model) => {
                said.insert(model, read(list));
            }
            // Nobody asked for it.
            Err(error) => {
                tracing::warn!(model, %error, "the registry speaks of a Model that cannot be one");
            }
        }
    }
    for model in answer.refused.iter().filter_map(|model| model.parse().ok()) {
        said.insert(model, Err(Unsaid::Refused));
    }
    Ok(said)
}

fn read(list: serde_json::Value) -> Result<AdapterList, Unsaid> {
    let wrong = |why| Err(Unsaid::Wrong(why));
    let list: AdapterList = match serde_json::from_value(list) {
        Ok(list) => list,
        Err(error) => return wrong(format!("the registry's list cannot be read: {error}")),
    };
    match list.check() {
        Ok(()) => Ok(list),
        Err(error) => wrong(format!("the registry's list cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_that_cannot_be_read_hides_no_other() {
        let entry = json!({
            "name": "sql", "scale": 1.0, "repository": "git/a/m",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "weights": "w", "config": "c", "source": "s",
        });
        let (mut newer, mut escaping) = (entry.clone(), entry.clone());
        newer["rank"] = json!(8);
        escaping["weights"] = json!("../w");
        let body = json!({"lists": {
            "a/good": {"adapters": [entry]},
            "a/newer": {"adapters": [newer]},
            "a/escaping": {"adapters": [escaping]},
            "A/none": {"adapters": []},
        }, "refused": ["a/closed"]});
        let said = super::said(body.to_string().as_bytes()).unwrap();
        assert_eq!(said.len(), 4);
        let said = |model: &str| &said[&model.parse::<ModelName>().unwrap()];
        assert_eq!(said("a/good").as_ref().unwrap().adapters.len(), 1);
        let why = |model: &str| said(model).as_ref().unwrap_err().to_string();
        assert!(why("a/newer").contains("rank"));
        assert!(why("a/escaping").contains("../w"));
        assert_eq!(*said("a/closed"), Err(Unsaid::Refused));
        assert!(super::said(b"<html>").is_err());
    }
}
