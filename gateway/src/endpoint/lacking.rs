//! Which adapters a worker said that it lacks.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::table::AdapterFacts;

/// How long a worker is not asked for an adapter that it said it lacks; doubled each time that it
/// says so again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest such time.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// How long others wait for what the request finds that tries it when a pause is over. A worker says
/// what it lacks before it begins anything, so that one that does not say so in this time has it.
const TRIAL: Duration = Duration::from_millis(200);
/// How many adapters are remembered before those that are long past are forgotten.
const MANY: usize = 128;
/// When one is.
const LONG_PAST: Duration = Duration::from_mins(1);

/// What a worker said that it lacks. It counts until a pause is over or the adapter's resource
/// says something else, since then the worker may have it.
#[derive(Debug, Default)]
pub(super) struct Lacking(Mutex<HashMap<Arc<str>, Lack>>);

#[derive(Debug)]
struct Lack {
    facts: Arc<AdapterFacts>,
    pause: Duration,
    tried: bool,
    said: Instant,
    until: Instant,
}

impl Lack {
    fn is_of(&self, facts: &Arc<AdapterFacts>) -> bool {
        Arc::ptr_eq(&self.facts, facts) || self.facts == *facts
    }
}

impl Lacking {
    /// It said so of this adapter, in answer to a request that was sent then. Requests that were
    /// sent before it last said so tell nothing new.
    pub(super) fn add(&self, facts: &Arc<AdapterFacts>, sent: Instant, now: Instant) {
        let mut lacks = self.0.lock();
        let pause = match lacks.get(&facts.served) {
            Some(lack) if lack.is_of(facts) && sent < lack.said => return,
            Some(lack) if lack.is_of(facts) => (lack.pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        if lacks.len() >= MANY {
            lacks.retain(|_, lack| lack.until + LONG_PAST > now);
        }
        let lack = Lack {
            facts: Arc::clone(facts),
            pause,
            tried: false,
            said: now,
            until: now + pause,
        };
        lacks.insert(Arc::clone(&facts.served), lack);
    }

    /// It answered a request with these.
    pub(super) fn remove(&self, adapters: &[&Arc<AdapterFacts>]) {
        let mut lacks = self.0.lock();
        if !lacks.is_empty() {
            for facts in adapters {
                lacks.remove(&facts.served);
            }
        }
    }

    /// Until when it is not worth being asked for all of these, if it said that it lacks one.
    pub(super) fn until(&self, adapters: &[&Arc<AdapterFacts>]) -> Option<Instant> {
        let lacks = self.0.lock();
        if lacks.is_empty() {
            return None;
        }
        let of = |facts: &&Arc<AdapterFacts>| {
            let lack = lacks.get(&facts.served)?;
            lack.is_of(facts).then_some(lack.until)
        };
        adapters.iter().filter_map(of).max()
    }

    /// The first of these that it said it lacks, also if the pause is over.
    pub(super) fn first<'a>(
        &self,
        adapters: &[&'a Arc<AdapterFacts>],
    ) -> Option<&'a Arc<AdapterFacts>> {
        let lacks = self.0.lock();
        let is_lacking = |facts: &Arc<AdapterFacts>| {
            let lack = lacks.get(&facts.served);
            lack.is_some_and(|lack| lack.is_of(facts))
        };
        adapters
            .iter()
            .copied()
            .find(|facts| !lacks.is_empty() && is_lacking(facts))
    }

    /// It is about to be asked for these. When a pause is over one request tries, and others go on
    /// waiting for what it finds.
    pub(super) fn tried(&self, adapters: &[&Arc<AdapterFacts>], now: Instant) {
        let mut lacks = self.0.lock();
        if lacks.is_empty() {
            return;
        }
        for facts in adapters {
            match lacks.get_mut(&facts.served) {
                Some(lack) if !lack.is_of(facts) => {}
                Some(lack) if !lack.tried => {
                    lack.tried = true;
                    lack.until = now + TRIAL;
                }
                Some(_has_it) => {
                    lacks.remove(&facts.served);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(served: &str, loaded: u32) -> Arc<AdapterFacts> {
        Arc::new(AdapterFacts {
            loaded,
            ..AdapterFacts::example(served)
        })
    }

    #[test]
    fn what_is_lacking_is_asked_for_by_one_after_a_pause_that_grows() {
        let lacking = Lacking::default();
        let (sql, tone) = (adapter("sql", 0), adapter("tone", 0));
        let mut now = Instant::now();
        assert_eq!(lacking.until(&[&sql]), None);
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            lacking.add(&sql, now, now);
            lacking.add(&sql, now.checked_sub(FIRST_PAUSE).unwrap(), now);
            assert_eq!(lacking.until(&[&tone, &sql]), Some(now + pause));
            assert_eq!(lacking.until(&[&tone]), None, "of others nothing is said");
            now += pause;
            lacking.tried(&[&sql], now);
            assert_eq!(lacking.until(&[&sql]), Some(now + TRIAL), "one tries");
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        lacking.remove(&[&sql]);
        assert_eq!(lacking.until(&[&sql]), None);
    }

    #[test]
    fn one_that_does_not_say_again_that_it_lacks_it_has_it() {
        let lacking = Lacking::default();
        let sql = adapter("sql", 0);
        let now = Instant::now();
        lacking.add(&sql, now, now);
        lacking.tried(&[&sql], now + FIRST_PAUSE);
        let until = lacking.until(&[&sql]).unwrap();
        lacking.tried(&[&sql], until);
        assert_eq!(lacking.until(&[&sql]), None);
    }

    #[test]
    fn it_is_forgotten_when_the_adapter_says_something_else() {
        let lacking = Lacking::default();
        let now = Instant::now();
        lacking.add(&adapter("sql", 0), now, now);
        let same = adapter("sql", 0);
        assert_eq!(lacking.first(&[&same]), Some(&same));
        let loaded = adapter("sql", 1);
        assert_eq!(lacking.first(&[&loaded]), None);
        assert_eq!(lacking.until(&[&loaded]), None);
        lacking.add(&loaded, now, now);
        assert_eq!(lacking.until(&[&loaded]), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn what_is_long_past_is_not_kept() {
        let lacking = Lacking::default();
        let now = Instant::now();
        for index in 0..1000 {
            let at = now + LONG_PAST * index;
            lacking.add(&adapter(&format!("a{index}"), 0), at, at);
        }
        assert!(lacking.0.lock().len() <= MANY);
    }
}
