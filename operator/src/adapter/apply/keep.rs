//! Writes a Model's list.

use std::time::Duration;

use hyprstream_api::condition;
use hyprstream_contract::adapters::ModelName;
use tokio::time::Instant;

use super::{
    super::build::{Candidate, Listed, listed},
    Shared, Trouble,
    desk::Desk,
};
use crate::{chain, registry::RegistryError};

/// After how long a list is written again though it did not change: what keeps it may have lost it.
const AGAIN: Duration = Duration::from_mins(5);

/// The registry does not have a Model's list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// What is there, of which something has to stay, cannot be had.
    #[error("get the list of adapters of {0}")]
    Get(ModelName, #[source] RegistryError),
    /// It was not taken.
    #[error("put the list of adapters of {0}")]
    Put(ModelName, #[source] RegistryError),
    /// It is still there.
    #[error("delete the list of adapters of {0}")]
    Delete(ModelName, #[source] RegistryError),
}

impl ListError {
    /// What users are told.
    pub(super) fn trouble(&self) -> Trouble {
        let (Self::Get(_, error) | Self::Put(_, error) | Self::Delete(_, error)) = self;
        match error {
            RegistryError::Refused(error) => Trouble {
                reason: error.reason.clone(),
                message: format!("the registry does not take the list of adapters: {error}"),
            },
            _ => Trouble {
                reason: condition::reason::REGISTRY_UNREACHABLE.to_owned(),
                message: "the registry of this cluster cannot be told of the adapter; it is tried \
                          again until it can. Is the hyprstream-registry pod running?"
                    .to_owned(),
            },
        }
    }
}

/// What only the one who writes looks at.
#[derive(Default)]
pub(super) struct Writing {
    /// Nobody writes here any more: the Model has another desk.
    pub(super) is_closed: bool,
    /// What the registry has, once that is known.
    there: Option<Listed>,
    /// When it was written.
    at: Option<Instant>,
}

impl Writing {
    /// The list is written the next time, though it be the one of before.
    pub(super) fn doubt(&mut self) {
        self.at = None;
    }
}

/// What became of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The desk is closed.
    Closed,
    /// It is as it was.
    Same,
    /// It was written.
    Written,
    /// There are no Adapters, and no list.
    Bare,
}

impl Shared {
    /// Has the registry hold the list that follows from what there is now.
    pub(super) async fn keep(&self, model: &ModelName, desk: &Desk) -> Result<Kept, ListError> {
        let mut writing = desk.writing.lock().await;
        if writing.is_closed {
            return Ok(Kept::Closed);
        }
        // Invariant: looked at only once nobody else writes, so that no older list follows.
        let candidates = self.view.candidates(model);
        let kept = self.write(model, &mut writing, &candidates).await;
        let there = writing.there.clone().unwrap_or_default();
        desk.note(model, &self.view, candidates, there, kept.as_ref().err());
        kept
    }

    async fn write(
        &self,
        model: &ModelName,
        writing: &mut Writing,
        candidates: &[Candidate],
    ) -> Result<Kept, ListError> {
        if writing.there.is_none() && candidates.iter().any(|c| c.claim.needs_list()) {
            writing.there = Some(self.read(model).await?);
        }
        let before = writing.there.clone().unwrap_or_default();
        let wanted = listed(candidates, &before);
        let is_due = |at: Instant| at.elapsed() >= AGAIN && !wanted.0.is_empty();
        if writing.at.is_some_and(|at| !is_due(at)) && wanted.list() == before.list() {
            writing.there = Some(wanted);
            return Ok(kept(candidates, Kept::Same));
        }
        let list = wanted.list();
        // Never closed.
        let _call = self.calls.acquire().await.ok();
        // Should it fail, nobody knows what is there.
        writing.at = None;
        if list.adapters.is_empty() {
            let deleted = self.registry.delete_adapters(model).await;
            deleted.map_err(|error| ListError::Delete(model.clone(), error))?;
        } else {
            let put = self.registry.put_adapters(model, &list).await;
            put.map_err(|error| ListError::Put(model.clone(), error))?;
        }
        let is_same = list == before.list();
        tracing::debug!(adapters = list.adapters.len(), "list of adapters written");
        writing.there = Some(wanted);
        writing.at = Some(Instant::now());
        Ok(kept(
            candidates,
            if is_same { Kept::Same } else { Kept::Written },
        ))
    }

    /// The list that the registry has. One that it cannot read is as good as none.
    async fn read(&self, model: &ModelName) -> Result<Listed, ListError> {
        match self.registry.adapters(model).await {
            Ok(list) => Ok(Listed::found(list)),
            Err(error @ RegistryError::Refused(_)) => {
                tracing::warn!(error = chain(&error), "a list of adapters cannot be read");
                Ok(Listed::default())
            }
            Err(error) => Err(ListError::Get(model.clone(), error)),
        }
    }
}

fn kept(candidates: &[Candidate], kept: Kept) -> Kept {
    if candidates.is_empty() {
        Kept::Bare
    } else {
        kept
    }
}
