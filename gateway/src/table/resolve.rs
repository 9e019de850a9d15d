//! From a reference to the Model it names.

use std::sync::Arc;

use hyprstream_contract::ModelRef;

use super::{ModelEntry, ModelKey, Reference, Table};

/// A reference that leads to no Model. Its message names no Model that was not asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such Model.
    #[error("the model {asked:?} does not exist")]
    Unknown {
        /// What was asked for.
        asked: String,
    },
    /// Several namespaces have it.
    #[error("several namespaces have a model {asked:?}: name it as NAMESPACE/{asked}")]
    Ambiguous {
        /// What was asked for.
        asked: String,
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
            return self.models.get(&key).ok_or_else(|| ResolveError::Unknown {
                asked: key.to_string(),
            });
        }
        match self.by_name.get(reference.name.as_str()).map(Vec::as_slice) {
            Some([entry]) => Ok(entry),
            None | Some([]) => Err(ResolveError::Unknown {
                asked: reference.name.clone(),
            }),
            Some(_several) => Err(ResolveError::Ambiguous {
                asked: reference.name.clone(),
            }),
        }
    }
}
