//! What all requests share out among themselves: places and bytes.
//!
//! A budget always keeps something back for whoever has nothing yet. A Model may have twice, and
//! all Models of a namespace together three times what is still free: alone, a Model gets up to
//! two thirds and a namespace up to three quarters of the budget, and the more of them ask, the
//! less each gets. Nobody has to say who will ask.
//!
//! A request whose body is still coming names no Model yet. What it has counts against nobody, and
//! makes way for whoever needs it: first that of the request which has sent nothing for longest, so
//! that clients which begin bodies and do not end them keep no others out.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

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
    /// What Models have: the sum over the Models, which is that over the namespaces.
    ///
    /// Invariant: together with what nobody's parts have at most the total.
    owned: u64,
    /// The sum of `unread`.
    unowned: u64,
    /// The parts of requests of which the Model is not known, that which grew last at the end.
    unread: BTreeMap<u64, Unread>,
    /// Greater than all keys of `unread` so far.
    clock: u64,
    namespaces: HashMap<Arc<str>, u64>,
    models: HashMap<ModelKey, u64>,
}

/// A part that is nobody's yet.
#[derive(Debug)]
struct Unread {
    amount: u64,
    /// Cancelled when it has to make way.
    gives_way: CancellationToken,
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
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    /// Its key in [`Used::unread`], where it is missing once it made way.
    Nobody(u64),
    Model(ModelKey),
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        Self(Arc::new(Inner {
            total: total as u64,
            used: Mutex::default(),
        }))
    }

    /// A part for a request of which the Model is not known yet. Once `gives_way` is cancelled
    /// others have it, and the request is to end.
    pub(crate) fn take(
        &self,
        amount: usize,
        gives_way: &CancellationToken,
    ) -> Result<Share, Exhausted> {
        let unread = Unread {
            amount: 0,
            gives_way: gives_way.clone(),
        };
        let key = self.0.used.lock().begin(unread);
        self.share(Owner::Nobody(key), amount)
    }

    /// A part for a request to that Model.
    pub(crate) fn take_for(&self, owner: &ModelKey, amount: usize) -> Result<Share, Exhausted> {
        self.share(Owner::Model(owner.clone()), amount)
    }

    fn share(&self, owner: Owner, amount: usize) -> Result<Share, Exhausted> {
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
    /// Takes more for the same request, which makes others give way that have sent nothing for
    /// longer. On failure it stays what it was, unless it had to make way itself.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let more = more as u64;
        let Inner { total, used } = &*self.budget.0;
        let mut used = used.lock();
        match &mut self.owner {
            Owner::Nobody(key) => {
                let Some(unread) = used.end(*key) else {
                    return Err(Exhausted::Whole);
                };
                // The others alone may make way for it, and from now on it grew last.
                let made = used.make_room(total.saturating_sub(unread.amount), more);
                let grown = if made.is_ok() { more } else { 0 };
                *key = used.begin(Unread {
                    amount: unread.amount + grown,
                    ..unread
                });
                made?;
            }
            Owner::Model(owner) => {
                used.fits(*total, more)?;
                used.check(owner, more, total - used.owned)?;
                used.make_room(*total, more)?;
                used.add(owner, more);
            }
        }
        self.amount += more;
        Ok(())
    }

    /// Makes it that Model's. On failure it stays nobody's.
    pub(crate) fn assign(&mut self, owner: &ModelKey) -> Result<(), Exhausted> {
        let Owner::Nobody(key) = self.owner else {
            return Ok(());
        };
        let Inner { total, used } = &*self.budget.0;
        let mut used = used.lock();
        if !used.unread.contains_key(&key) {
            return Err(Exhausted::Whole);
        }
        used.check(owner, self.amount, total - used.owned)?;
        used.end(key);
        used.add(owner, self.amount);
        self.owner = Owner::Model(owner.clone());
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.0.used.lock();
        match &self.owner {
            Owner::Nobody(key) => {
                used.end(*key);
            }
            Owner::Model(owner) => {
                used.owned -= self.amount;
                subtract(&mut used.namespaces, &owner.namespace, self.amount);
                subtract(&mut used.models, owner, self.amount);
            }
        }
    }
}

impl Used {
    /// Counts a part that is nobody's, as that which grew last. Returns its key.
    fn begin(&mut self, unread: Unread) -> u64 {
        self.clock += 1;
        self.unowned += unread.amount;
        self.unread.insert(self.clock, unread);
        self.clock
    }

    /// Counts it no longer. `None` if it made way.
    fn end(&mut self, key: u64) -> Option<Unread> {
        let unread = self.unread.remove(&key)?;
        self.unowned -= unread.amount;
        Some(unread)
    }

    /// Whether those who could make way have so much.
    fn fits(&self, total: u64, more: u64) -> Result<(), Exhausted> {
        if self.owned.saturating_add(more) > total {
            return Err(Exhausted::Whole);
        }
        Ok(())
    }

    /// Sees to it that `more` of `total` is free.
    fn make_room(&mut self, total: u64, more: u64) -> Result<(), Exhausted> {
        self.fits(total, more)?;
        while self.owned + self.unowned + more > total {
            let (_, idlest) = self.unread.pop_first().ok_or(Exhausted::Whole)?;
            self.unowned -= idlest.amount;
            idlest.gives_way.cancel();
        }
        Ok(())
    }

    /// Whether a Model may have `more`, where `free` is what no Model has.
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
        self.owned += more;
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
            (used.owned, used.models.len(), used.namespaces.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_part_becomes_a_models_once_the_model_is_known() {
        let budget = Budget::new(9);
        let (key, kept) = (ModelKey::new("n", "a"), CancellationToken::new());
        let mut parts: Vec<_> = (0..9).map(|_| budget.take(1, &kept).unwrap()).collect();
        let (mine, others) = parts.split_at_mut(6);
        for part in mine {
            assert!(part.assign(&key).is_ok(), "what is nobody's counts as free");
        }
        assert_eq!(
            others[0].assign(&key),
            Err(Exhausted::Share),
            "it has two thirds"
        );
        assert!(others[0].assign(&ModelKey::new("other", "a")).is_ok());
        assert!(!kept.is_cancelled());
        drop(parts);
        let used = budget.0.used.lock();
        assert_eq!((used.owned, used.unowned, used.unread.len()), (0, 0, 0));
    }

    #[test]
    fn who_has_sent_nothing_for_longest_makes_way() {
        let budget = Budget::new(10);
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        let mut parts: Vec<_> = tokens
            .iter()
            .map(|token| budget.take(3, token).unwrap())
            .collect();
        let gone = || tokens.iter().map(CancellationToken::is_cancelled);
        parts[0].grow(1).unwrap();
        assert!(gone().eq([false; 3]), "there was room");
        let model = ModelKey::new("n", "a");
        let answer = budget.take_for(&model, 2).unwrap();
        assert!(gone().eq([false, true, false]));
        assert_eq!(parts[1].grow(0), Err(Exhausted::Whole));
        assert_eq!(parts[1].assign(&model), Err(Exhausted::Whole));
        let more = budget.take(2, &tokens[1]).unwrap();
        assert!(gone().eq([false, true, true]));
        assert_eq!(
            parts[0].grow(5),
            Err(Exhausted::Whole),
            "it does not make way for itself, and no other would do"
        );
        assert!(parts[0].grow(0).is_ok() && parts[0].assign(&model).is_ok());
        drop((parts, answer, more));
        let used = budget.0.used.lock();
        assert_eq!((used.owned, used.unowned, used.unread.len()), (0, 0, 0));
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
            prop_assert_eq!(budget.0.used.lock().owned, 0);
        }

        #[test]
        fn clients_that_do_not_end_their_bodies_keep_nobody_out(
            sizes in proptest::collection::vec(1usize..=16, 0..400),
        ) {
            let budget = Budget::new(100);
            let stalled = CancellationToken::new();
            let parts: Vec<_> = sizes.iter().map(|size| budget.take(*size, &stalled)).collect();
            let token = CancellationToken::new();
            let mut part = budget.take(1, &token).unwrap();
            prop_assert!(part.grow(9).is_ok() && part.assign(&ModelKey::new("n", "a")).is_ok());
            prop_assert!(budget.take_for(&ModelKey::new("n", "b"), 10).is_ok());
            prop_assert!(!token.is_cancelled());
            drop((parts, part));
            let used = budget.0.used.lock();
            prop_assert_eq!((used.owned, used.unowned, used.unread.len()), (0, 0, 0));
        }
    }
}
