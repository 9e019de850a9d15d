//! From what a request names as its model to the Model whose workers answer it.

use std::{str::FromStr, sync::Arc};

use hyprstream_contract::{ModelRef, model_ref::InvalidModelRef};

use super::{AdapterFacts, ModelEntry, ModelKey, Named, Reference, Table};

/// Most names that a message lists.
const MAX_NAMES: usize = 8;

/// What a request may name as its model.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// A reference. One that is only a name may be that of an adapter too.
    Reference(ModelRef),
    /// The served name of an adapter, maybe in a namespace, that could be no Model's.
    Served {
        /// The namespace, if one is named.
        namespace: Option<String>,
        /// The served name.
        name: String,
    },
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Route<'t> {
    /// The Model.
    pub entry: &'t Arc<ModelEntry>,
    /// The adapter by whose served name alone the Model was found.
    pub adapter: Option<&'t Arc<AdapterFacts>>,
}

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
    /// Several Models have an adapter of that name.
    #[error("{}", ambiguous_adapter(name, models))]
    AmbiguousAdapter {
        /// Its served name.
        name: String,
        /// The Models as clients name them, if the client named their namespace.
        models: Vec<String>,
    },
    /// It is no entry of the list of models, though requests may name it.
    #[error(
        "{asked:?} is not in the list of models: adapters that were refused or lie in a \
                  model's own repository, scales and several adapters at once are not listed"
    )]
    Unlisted {
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

fn ambiguous_adapter(name: &str, models: &[String]) -> String {
    let mut ways: Vec<String> = models
        .iter()
        .take(MAX_NAMES)
        .map(|model| format!("{model}+{name}"))
        .collect();
    if ways.is_empty() {
        ways = vec![format!("MODEL+{name}"), format!("NAMESPACE/MODEL+{name}")];
    }
    let others = if models.len() > MAX_NAMES {
        ", and others"
    } else {
        ""
    };
    let ways = ways.join(" or ");
    format!("several models have an adapter {name:?}: name it as {ways}{others}")
}

impl FromStr for Asked {
    type Err = InvalidModelRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let why = match text.parse() {
            Ok(reference) => return Ok(Self::Reference(reference)),
            Err(why) => why,
        };
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        // What may follow a Model's name may be a served name, and what may stand before one a
        // namespace.
        let path = namespace.map_or("m".to_owned(), |namespace| format!("{namespace}/m"));
        match format!("{path}+{name}").parse::<ModelRef>() {
            Ok(as_adapter)
                if as_adapter.adapters.len() == 1 && as_adapter.adapters[0].name == name =>
            {
                Ok(Self::Served {
                    namespace: namespace.map(str::to_owned),
                    name: name.to_owned(),
                })
            }
            _ => Err(why),
        }
    }
}

impl Asked {
    /// The adapters that it names with certainty: those that follow the Model's name.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        let adapters = match self {
            Self::Reference(reference) => &reference.adapters[..],
            Self::Served { .. } => &[],
        };
        adapters.iter().map(|adapter| adapter.name.as_str())
    }

    /// The commit that it pins.
    pub fn commit(&self) -> Option<&str> {
        match self {
            Self::Reference(reference) => reference.commit.as_deref(),
            Self::Served { .. } => None,
        }
    }

    /// The namespace that it names.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Reference(ModelRef { namespace, .. }) | Self::Served { namespace, .. } => {
                namespace.as_deref()
            }
        }
    }
}

impl Table {
    /// Where a request goes that names this: to the Model of that name or, if there is none, to
    /// that of the adapter.
    ///
    /// # Errors
    /// It leads nowhere, or to several Models.
    pub fn route(&self, asked: &Asked) -> Result<Route<'_>, ResolveError> {
        let (namespace, name, unknown) = match asked {
            Asked::Reference(reference) => match self.resolve(reference) {
                Ok(entry) => {
                    return Ok(Route {
                        entry,
                        adapter: None,
                    });
                }
                Err(error @ ResolveError::Unknown { .. }) if is_only_a_name(reference) => {
                    (reference.namespace.as_deref(), &reference.name, Some(error))
                }
                Err(error) => return Err(error),
            },
            Asked::Served { namespace, name } => (namespace.as_deref(), name, None),
        };
        let unknown = || {
            unknown.unwrap_or_else(|| ResolveError::Unknown {
                asked: namespace.map_or(name.clone(), |namespace| format!("{namespace}/{name}")),
            })
        };
        match self.adapters.named(namespace, name) {
            Named::None => Err(unknown()),
            Named::One(adapter) => Ok(Route {
                entry: self.models.get(&adapter.model).ok_or_else(unknown)?,
                adapter: Some(adapter),
            }),
            Named::Several(adapters) => Err(ResolveError::AmbiguousAdapter {
                name: name.clone(),
                models: if namespace.is_some() {
                    let models = adapters.iter().map(|adapter| adapter.model.to_string());
                    models.take(MAX_NAMES + 1).collect()
                } else {
                    Vec::new()
                },
            }),
        }
    }

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

/// Whether a reference says nothing but a name and maybe a namespace.
fn is_only_a_name(reference: &ModelRef) -> bool {
    reference.branch.is_none() && reference.commit.is_none() && reference.adapters.is_empty()
}
