//! What all requests share out among themselves: places and bytes.
//!
//! A budget always keeps something back for whoever has nothing yet. A Model may have twice, and
//! all Models of a namespace together three times what is still free: alone, a Model gets up to
//! two thirds and a namespace up to three quarters of the budget, and the more of them ask, the
//! less each gets. Nobody has to say who will ask.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;

use crate::table::ModelKey;

/// How many times of what is free a Model may have.
const MODEL_FACTOR: u64 = 2;
/// How many times of what is free a namespace may have.
const NAMESPACE_FACTOR: u64 = 3;

/// A number of places or bytes.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// Invariant: at most the total, and at least the sum over the Models, which is that over the
    /// namespaces.
    sum: u64,
    namespaces: HashMap<Arc<str>, u64>,
    models: HashMap<ModelKey, u64>,
}

/// Why nothing is left for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// Everything is taken.
    Whole,
    /// The Model or its namespace has as much as it may while others could ask.
    Share,
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    amount: u64,
    owner: Option<ModelKey>,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        Self(Arc::new(Inner {
            total: total as u64,
            used: Mutex::default(),
        }))
    }

    /// A part for a request of which the Model is not known yet.
    pub(crate) fn take(&self, amount: usize) -> Result<Share, Exhausted> {
        self.share(None, amount)
    }

    /// A part for a request to that Model.
    pub(crate) fn take_for(&self, owner: &ModelKey, amount: usize) -> Result<Share, Exhausted> {
        self.share(Some(owner.clone()), amount)
    }

    fn share(&self, owner: Option<ModelKey>, amount: usize) -> Result<Share, Exhausted> {
        let mut share = Share {
            budget: self.clone(),
            amount: 0,
            owner,
        };
        share.grow(amount)?;
        Ok(share)
    }
}

impl Share {
    /// Takes more for the same request. On failure it stays what it was.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let more = more as u64;
        let Inner { total, used } = &*self.budget.0;
        let mut used = used.lock();
        let free = total - used.sum;
        if more > free {
            return Err(Exhausted::Whole);
        }
        if let Some(owner) = &self.owner {
            used.check(owner, more, free)?;
            used.add(owner, more);
        }
        used.sum += more;
        self.amount += more;
        Ok(())
    }

    /// Makes it that Model's. On failure it stays nobody's.
    pub(crate) fn assign(&mut self, owner: &ModelKey) -> Result<(), Exhausted> {
        if self.owner.is_some() {
            return Ok(());
        }
        let Inner { total, used } = &*self.budget.0;
        let mut used = used.lock();
        let free = total - used.sum + self.amount;
        used.check(owner, self.amount, free)?;
        used.add(owner, self.amount);
        self.owner = Some(owner.clone());
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.0.used.lock();
        used.sum -= self.amount;
        if let Some(owner) = &self.owner {
            subtract(&mut used.namespaces, &owner.namespace, self.amount);
            subtract(&mut used.models, owner, self.amount);
        }
    }
}

impl Used {
    fn check(&self, owner: &ModelKey, more: u64, free: u64) -> Result<(), Exhausted> {
        let of_model = self.models.get(owner).copied().unwrap_or(0);
        let of_namespace = self.namespaces.get(&owner.namespace).copied().unwrap_or(0);
        if of_model + more > free.saturating_mul(MODEL_FACTOR)
            || of_namespace + more > free.saturating_mul(NAMESPACE_FACTOR)
        {
            return Err(Exhausted::Share);
        }
        Ok(())
    }

    fn add(&mut self, owner: &ModelKey, more: u64) {
        if more > 0 {
            *self
                .namespaces
                .entry(Arc::clone(&owner.namespace))
                .or_default() += more;
            *self.models.entry(owner.clone()).or_default() += more;
        }
    }
}

/// Entries of nothing are removed, so that Models that are gone leave none.
fn subtract<K: Eq + Hash>(amounts: &mut HashMap<K, u64>, key: &K, amount: u64) {
    if let Some(of_key) = amounts.get_mut(key) {
        *of_key -= amount;
        if *of_key == 0 {
            amounts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(budget: &Budget, owner: &ModelKey) -> Vec<Share> {
        std::iter::from_fn(|| budget.take_for(owner, 1).ok()).collect()
    }

    #[test]
    fn a_model_alone_gets_two_thirds_and_its_namespace_three_quarters() {
        let budget = Budget::new(1200);
        let (a, b) = (ModelKey::new("n", "a"), ModelKey::new("n", "b"));
        let first = fill(&budget, &a);
        assert_eq!(first.len(), 800);
        assert_eq!(
            budget.take_for(&a, 1).unwrap_err(),
            Exhausted::Share,
            "there is room, but not for this one"
        );
        let second = fill(&budget, &b);
        assert_eq!(first.len() + second.len(), 900);
        let other = fill(&budget, &ModelKey::new("other", "a"));
        assert!(other.len() > 190, "{}", other.len());
        drop((first, second, other));
        let used = budget.0.used.lock();
        assert_eq!(
            (used.sum, used.models.len(), used.namespaces.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_part_becomes_a_models_once_the_model_is_known() {
        let budget = Budget::new(9);
        let key = ModelKey::new("n", "a");
        let mut parts: Vec<_> = (0..9).map(|_| budget.take(1).unwrap()).collect();
        assert_eq!(budget.take(1).unwrap_err(), Exhausted::Whole);
        assert!(parts[0].assign(&key).is_ok());
        assert!(parts[1].assign(&key).is_ok());
        assert_eq!(
            parts[2].assign(&key),
            Err(Exhausted::Share),
            "everything else is taken, by whomever"
        );
        parts.truncate(3);
        assert!(parts[2].assign(&key).is_ok());
    }

    proptest! {
        #[test]
        fn whoever_has_nothing_gets_something_however_many_namespaces_grab(
            names in proptest::collection::vec(("[a-d]", "[a-d]"), 0..400),
        ) {
            let budget = Budget::new(100);
            let taken: Vec<_> = names
                .iter()
                .filter_map(|(ns, n)| budget.take_for(&ModelKey::new(ns, n), 1).ok())
                .collect();
            prop_assert!(budget.take_for(&ModelKey::new("new", "new"), 1).is_ok());
            drop(taken);
            prop_assert_eq!(budget.0.used.lock().sum, 0);
        }
    }
}
