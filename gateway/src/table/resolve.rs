//! From a reference to the Model it names.

use std::sync::Arc;

use hyprstream_contract::ModelRef;

use super::{ModelEntry, ModelKey, Reference, Table};

/// Most names that an error lists.
const MAX_LISTED: usize = 20;

/// A reference that leads to no Model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such Model.
    #[error("the model {asked:?} does not exist; {known}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// A sentence with the names there are.
        known: String,
    },
    /// Several namespaces have it.
    #[error("the model {asked:?} is ambiguous; name one of {candidates}")]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// `NAMESPACE/NAME` of each.
        candidates: String,
    },
    /// The Model follows something else.
    #[error("the model {model:?} does not serve branch {asked:?}: it serves {served}")]
    OtherBranch {
        /// The Model.
        model: String,
        /// The branch asked for.
        asked: String,
        /// What it follows.
        served: String,
    },
    /// The Model serves another commit.
    #[error("the model {model:?} does not serve commit {asked}: it serves {served}")]
    OtherCommit {
        /// The Model.
        model: String,
        /// The commit asked for.
        asked: String,
        /// The commit it serves.
        served: String,
    },
}

impl Table {
    /// The Model that a reference names. Branch and commit must be those that it serves; a commit
    /// is let through while the Model has none yet, since it may be the one to come. Adapters are
    /// the worker's matter.
    pub fn resolve(&self, reference: &ModelRef) -> Result<&Arc<ModelEntry>, ResolveError> {
        let entry = self.find(reference)?;
        let facts = &entry.facts;
        if let Some(asked) = &reference.branch {
            let served = match &facts.reference {
                Reference::Branch(name) | Reference::Tag(name) => name == asked,
                Reference::Head | Reference::Commit(_) => false,
            };
            if !served {
                return Err(ResolveError::OtherBranch {
                    model: self.id(&facts.key),
                    asked: asked.clone(),
                    served: facts.reference.to_string(),
                });
            }
        }
        if let (Some(asked), Some(served)) = (&reference.commit, &facts.commit)
            && !served.as_str().starts_with(asked.as_str())
            && !entry.serves(asked)
        {
            return Err(ResolveError::OtherCommit {
                model: self.id(&facts.key),
                asked: asked.clone(),
                served: served.to_string(),
            });
        }
        Ok(entry)
    }

    fn find(&self, reference: &ModelRef) -> Result<&Arc<ModelEntry>, ResolveError> {
        if let Some(namespace) = &reference.namespace {
            let key = ModelKey::new(namespace, &reference.name);
            return self
                .models
                .get(&key)
                .ok_or_else(|| self.unknown(key.to_string()));
        }
        match self.by_name.get(reference.name.as_str()).map(Vec::as_slice) {
            Some([entry]) => Ok(entry),
            None | Some([]) => Err(self.unknown(reference.name.clone())),
            Some(several) => Err(ResolveError::Ambiguous {
                asked: reference.name.clone(),
                candidates: listed(several.iter().map(|e| e.facts.key.to_string())),
            }),
        }
    }

    fn unknown(&self, asked: String) -> ResolveError {
        let known = if self.models.is_empty() {
            "there are no models".to_owned()
        } else {
            format!(
                "there are {}",
                listed(self.models.keys().map(|key| self.id(key)))
            )
        };
        ResolveError::Unknown { asked, known }
    }
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(MAX_LISTED);
    let names: Vec<_> = names.take(MAX_LISTED).collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
