//! The adapters that a backend has.

use std::collections::{BTreeMap, BTreeSet};

use hyprstream_engine::{AdapterId, BackendError, SequenceStep, StepBatch};
use tch::{Device, TchError, Tensor};

use super::{changes::Changes, pack::Packed, terms::Terms};
use crate::error::step_error;

/// The adapters that a backend has.
#[derive(Debug)]
pub(crate) struct Attached {
    device: Device,
    all: BTreeMap<AdapterId, Packed>,
    /// Those of an earlier step beside each other, as long as all of them are attached.
    joined: Option<Joined>,
}

#[derive(Debug)]
struct Joined {
    /// Ascending.
    ids: Vec<AdapterId>,
    terms: Terms,
}

impl Attached {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            all: BTreeMap::new(),
            joined: None,
        }
    }

    pub(crate) fn insert(&mut self, id: AdapterId, adapter: Packed) {
        self.all.insert(id, adapter);
    }

    pub(crate) fn remove(&mut self, id: AdapterId) {
        self.all.remove(&id);
        // A copy must not outlive what its memory is counted with.
        if self.joined.as_ref().is_some_and(|joined| joined.has(id)) {
            self.joined = None;
        }
    }

    /// What changes in a step; `None` when no sequence has an adapter.
    ///
    /// # Errors
    /// [`BackendError::Step`]: one is not attached, or there is no memory to put them beside each
    /// other.
    pub(crate) fn changes(
        &mut self,
        batch: &StepBatch,
    ) -> Result<Option<Changes<'_>>, BackendError> {
        let stacks = batch.sequences.iter().flat_map(stack);
        let ids: BTreeSet<AdapterId> = stacks.map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Ok(None);
        }
        if ids.iter().any(|id| !self.all.contains_key(id)) {
            return Err(BackendError::Step("an adapter is not attached".into()));
        }
        let device = self.device;
        let changes = self.terms(ids).and_then(|(ids, terms)| {
            let scales = scales(batch, &ids, device)?;
            Changes::new(terms, &scales)
        });
        changes.map(Some).map_err(|error| step_error(&error))
    }

    /// The factors of at least these adapters, with the names of those that they are of.
    fn terms(&mut self, wanted: BTreeSet<AdapterId>) -> Result<(Vec<AdapterId>, &Terms), TchError> {
        let ids: Vec<_> = wanted.into_iter().collect();
        if let [only] = ids[..] {
            let packed = &self.all[&only];
            return Ok((ids, &packed.terms));
        }
        let joined = match self.joined.take() {
            Some(joined) if joined.serves(&ids) => joined,
            other => {
                drop(other);
                let all: Vec<_> = ids.iter().map(|id| &self.all[id].terms).collect();
                let terms = Terms::join(&all, self.device)?;
                Joined { ids, terms }
            }
        };
        let joined = self.joined.insert(joined);
        Ok((joined.ids.clone(), &joined.terms))
    }
}

impl Joined {
    fn has(&self, id: AdapterId) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// Whether a step with these adapters is to be computed with it. To leave out what is not
    /// needed any more takes a copy of the rest, to multiply by it for nothing takes time in each
    /// step.
    fn serves(&self, ids: &[AdapterId]) -> bool {
        self.ids.len() <= 2 * ids.len() && ids.iter().all(|id| self.has(*id))
    }
}

/// The adapters of a sequence that do something.
fn stack(sequence: &SequenceStep) -> impl Iterator<Item = (AdapterId, f32)> {
    let all = sequence.adapters.iter().copied();
    all.filter(|(_, scale)| *scale != 0.0)
}

/// The scale of each of the adapters `ids` for each token, `[tokens, adapters]`.
fn scales(batch: &StepBatch, ids: &[AdapterId], device: Device) -> Result<Tensor, TchError> {
    let mut scales = Vec::with_capacity(batch.num_tokens() * ids.len());
    for sequence in &batch.sequences {
        let mut row = vec![0.0_f32; ids.len()];
        for (id, scale) in stack(sequence) {
            // An adapter that is in a stack twice counts twice.
            row[ids.partition_point(|other| *other < id)] += scale;
        }
        for _ in &sequence.tokens {
            scales.extend_from_slice(&row);
        }
    }
    Tensor::f_from_slice(&scales)?
        .f_view([-1, ids.len() as i64])?
        .f_to_device(device)
}
