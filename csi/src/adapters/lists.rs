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
pub type Said = BTreeMap<ModelName, Result<AdapterList, String>>;

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
    Ok(said)
}

fn read(list: serde_json::Value) -> Result<AdapterList, String> {
    let list: AdapterList = serde_json::from_value(list)
        .map_err(|e| format!("the registry's list cannot be read: {e}"))?;
    list.check()
        .map_err(|e| format!("the registry's list cannot be used: {e}"))?;
    Ok(list)
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
        }});
        let said = super::said(body.to_string().as_bytes()).unwrap();
        assert_eq!(said.len(), 3);
        let said = |model: &str| &said[&model.parse::<ModelName>().unwrap()];
        assert_eq!(said("a/good").as_ref().unwrap().adapters.len(), 1);
        assert!(said("a/newer").as_ref().unwrap_err().contains("rank"));
        assert!(said("a/escaping").as_ref().unwrap_err().contains("../w"));
        assert!(super::said(b"<html>").is_err());
    }
}
