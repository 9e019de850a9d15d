//! One worker: its load, its fitness and the connections to it.

mod connect;
mod lacking;
mod pool;
mod tls;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyprstream_contract::CommitId;
use hyprstream_tls::Trust;
use parking_lot::Mutex;

pub use connect::{Connection, SendError};

use self::{lacking::Lacking, tls::Proof};
use crate::table::AdapterFacts;

/// A worker that drains is gone from the endpoints soon; until then it is asked this seldom.
const DRAINING_PAUSE: Duration = Duration::from_secs(5);
/// Pause after the first failed connect; doubled by each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after a failed connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a worker is avoided after its first bad answer; doubled by each that follows.
const FIRST_AVOIDANCE: Duration = Duration::from_millis(100);
/// Longest time that a worker is avoided.
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(30);
/// How long one that turned a request down is avoided, since it has no room.
const BUSY_AVOIDANCE: Duration = Duration::from_secs(1);

/// A worker's address and what the gateway learned of it. Lives as long as the table names it or
/// a request is on it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    /// What it must show before it is told anything, where it speaks TLS.
    proof: Option<Proof>,
    in_flight: AtomicUsize,
    fitness: Mutex<Fitness>,
    commit: Mutex<Option<CommitId>>,
    lacking: Lacking,
    idle: pool::Pool,
}

/// How fit a worker is for a request. The better is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing speaks against it.
    Fit,
    /// It can be reached, but answered badly or has no room: it is asked only if no other is fit,
    /// however little it has to do. One that fails fast has the least to do of all.
    Avoided,
    /// It cannot be reached or drains.
    Unfit,
}

#[derive(Debug, Default)]
struct Fitness {
    failures: u32,
    drains: bool,
    failed_at: Option<Instant>,
    unfit_until: Option<Instant>,
    answers: Answers,
}

/// What a worker's answers say of it.
#[derive(Debug, Default)]
struct Answers {
    /// Bad ones since the last good one.
    bad: u32,
    bad_at: Option<Instant>,
    avoided_until: Option<Instant>,
}

impl Answers {
    fn avoid(&mut self, until: Instant) {
        self.avoided_until = self.avoided_until.max(Some(until));
    }
}

/// How long a worker is avoided after so many bad answers in a row.
fn avoidance(bad: u32) -> Duration {
    let doublings = bad.saturating_sub(1).min(16);
    (FIRST_AVOIDANCE * 2_u32.pow(doublings)).min(LONGEST_AVOIDANCE)
}

impl Endpoint {
    /// A worker of which nothing is known but its address.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            proof: None,
            in_flight: AtomicUsize::new(0),
            fitness: Mutex::default(),
            commit: Mutex::default(),
            lacking: Lacking::default(),
            idle: pool::Pool::default(),
        }
    }

    /// A worker that speaks TLS, of which nothing is known but its address and that it must show a
    /// certificate for `name` of somebody who is believed. Before it has, it is sent nothing.
    pub fn secured(address: SocketAddr, name: &str, trust: &Trust) -> Self {
        Self {
            proof: Some(Proof::new(name, trust)),
            ..Self::new(address)
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests of this gateway that are on it.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The commit that it named in its last answer.
    pub fn commit(&self) -> Option<CommitId> {
        self.commit.lock().clone()
    }

    /// Remembers the commit that an answer named.
    pub fn learn_commit(&self, commit: &CommitId) {
        let mut known = self.commit.lock();
        if known.as_ref() != Some(commit) {
            *known = Some(commit.clone());
        }
    }

    /// Whether a request may be sent to it, and whether it should.
    pub fn standing(&self, now: Instant) -> Standing {
        let fitness = self.fitness.lock();
        if fitness.unfit_until.is_some_and(|until| until > now) {
            Standing::Unfit
        } else if fitness
            .answers
            .avoided_until
            .is_some_and(|until| until > now)
        {
            Standing::Avoided
        } else {
            Standing::Fit
        }
    }

    /// Whether a request may be sent to it.
    pub fn is_fit(&self, now: Instant) -> bool {
        self.standing(now) != Standing::Unfit
    }

    /// Until when it should be left alone, if at all.
    pub fn unfit_until(&self) -> Option<Instant> {
        self.fitness.lock().unfit_until
    }

    /// A request with these adapters is about to be sent to it. One that failed before is tried with a single request,
    /// since it may take long to fail, and with no load it would draw all requests meanwhile.
    pub fn tried(&self, adapters: &[&Arc<AdapterFacts>], now: Instant) {
        if !adapters.is_empty() {
            self.lacking.tried(adapters, now);
        }
        let mut fitness = self.fitness.lock();
        if fitness.failures > 0 {
            fitness.unfit_until = Some(now + LONGEST_PAUSE);
        }
        let bad = fitness.answers.bad;
        if bad > 0 {
            fitness
                .answers
                .avoid(now + avoidance(bad.saturating_add(1)));
        }
    }

    /// It answered well: earlier failures count no more.
    pub fn succeeded(&self) {
        let mut fitness = self.fitness.lock();
        if fitness.failures > 0 || fitness.answers.avoided_until.is_some() {
            *fitness = Fitness::default();
        }
    }

    /// It failed on a request that was sent then: with a status of 500 or above, by breaking off
    /// or by silence. It is avoided for a time that doubles with each failure in a row, and then
    /// tried with a single request. Requests that were sent before the last failure tell nothing
    /// new.
    pub fn answered_badly(&self, sent: Instant, now: Instant) {
        let answers = &mut self.fitness.lock().answers;
        if answers.bad_at.is_some_and(|last| sent < last) {
            return;
        }
        answers.bad = answers.bad.saturating_add(1);
        answers.bad_at = Some(now);
        answers.avoided_until = Some(now + avoidance(answers.bad));
    }

    /// It turned a request down, since it has no room for more.
    pub fn is_busy(&self, now: Instant) {
        self.fitness.lock().answers.avoid(now + BUSY_AVOIDANCE);
    }

    /// A connection to it was made: that it could not be reached before counts no more.
    fn connected(&self) {
        let mut fitness = self.fitness.lock();
        if fitness.failures > 0 && !fitness.drains {
            let answers = std::mem::take(&mut fitness.answers);
            *fitness = Fitness {
                answers,
                ..Fitness::default()
            };
        }
    }

    /// It could not be reached by an attempt that began then: it is left alone for a while that
    /// doubles each time. Attempts that began before the last failure tell nothing new.
    pub fn failed(&self, began: Instant, now: Instant) {
        let mut fitness = self.fitness.lock();
        if fitness.failed_at.is_some_and(|last| began < last) {
            return;
        }
        let doublings = fitness.failures.min(8);
        fitness.failures = fitness.failures.saturating_add(1);
        fitness.failed_at = Some(now);
        fitness.unfit_until = Some(now + (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE));
    }

    /// It shuts down.
    pub fn drains(&self, now: Instant) {
        let mut fitness = self.fitness.lock();
        fitness.failures = fitness.failures.saturating_add(1);
        fitness.drains = true;
        fitness.unfit_until = Some(now + DRAINING_PAUSE);
    }

    /// It said that it lacks an adapter, in answer to a request that was sent then. That is no
    /// failure: it may have it any moment.
    pub fn lacks(&self, facts: &Arc<AdapterFacts>, sent: Instant, now: Instant) {
        self.lacking.add(facts, sent, now);
    }

    /// It answered a request with these adapters.
    pub fn has(&self, adapters: &[&Arc<AdapterFacts>]) {
        if !adapters.is_empty() {
            self.lacking.remove(adapters);
        }
    }

    /// The first of these adapters that it said it lacks.
    pub fn lacking<'a>(&self, adapters: &[&'a Arc<AdapterFacts>]) -> Option<&'a Arc<AdapterFacts>> {
        self.lacking.first(adapters)
    }

    /// Until when it should not be asked for these adapters, if it said that it lacks one.
    pub fn lacking_until(&self, adapters: &[&Arc<AdapterFacts>]) -> Option<Instant> {
        if adapters.is_empty() {
            return None;
        }
        self.lacking.until(adapters)
    }

    /// Closes the connections that have been idle too long.
    pub fn prune(&self, now: Instant) {
        self.idle.prune(now);
    }
}

/// Counts one request on an endpoint until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    /// Adds one to the endpoint's load.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_while_it_lives() {
        let endpoint = Arc::new(Endpoint::new(([127, 0, 0, 1], 1).into()));
        let lease = Lease::new(Arc::clone(&endpoint));
        assert_eq!(endpoint.in_flight(), 1);
        drop(lease);
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn failures_keep_an_endpoint_away_longer_and_longer_until_it_answers() {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        let now = Instant::now();
        assert!(endpoint.is_fit(now));
        endpoint.failed(now, now);
        assert!(!endpoint.is_fit(now));
        assert!(endpoint.is_fit(now + FIRST_PAUSE));
        let later = now + Duration::from_millis(1);
        endpoint.failed(later, later);
        endpoint.failed(now, later);
        assert!(
            endpoint.is_fit(later + 2 * FIRST_PAUSE),
            "what began earlier is no news"
        );
        for _ in 0..50 {
            endpoint.failed(later, later);
        }
        assert!(!endpoint.is_fit(later + LONGEST_PAUSE / 2));
        assert!(endpoint.is_fit(later + LONGEST_PAUSE));
        endpoint.succeeded();
        assert!(endpoint.is_fit(now));
    }

    #[test]
    fn bad_answers_make_a_worker_the_last_choice_until_a_good_one() {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        let mut now = Instant::now();
        for bad in 1..=20 {
            endpoint.answered_badly(now, now);
            assert_eq!(endpoint.standing(now), Standing::Avoided);
            now += avoidance(bad);
            assert_eq!(endpoint.standing(now), Standing::Fit, "one may try");
            endpoint.tried(&[], now);
            assert_eq!(endpoint.standing(now), Standing::Avoided, "and only one");
        }
        assert_eq!(avoidance(20), LONGEST_AVOIDANCE);
        endpoint.succeeded();
        assert_eq!(endpoint.standing(now), Standing::Fit);
        endpoint.tried(&[], now);
        assert_eq!(endpoint.standing(now), Standing::Fit);
    }

    #[test]
    fn failures_of_requests_sent_together_count_once() {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        let sent = Instant::now();
        let now = sent + Duration::from_secs(1);
        for _ in 0..100 {
            endpoint.answered_badly(sent, now);
        }
        assert_eq!(endpoint.standing(now + FIRST_AVOIDANCE), Standing::Fit);
        endpoint.is_busy(now);
        assert_eq!(endpoint.standing(now + FIRST_AVOIDANCE), Standing::Avoided);
        assert_eq!(endpoint.standing(now + BUSY_AVOIDANCE), Standing::Fit);
    }

    #[test]
    fn one_that_failed_is_tried_with_one_request_and_one_that_did_not_with_any() {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into());
        let now = Instant::now();
        endpoint.tried(&[], now);
        assert!(endpoint.is_fit(now));
        endpoint.failed(now, now);
        let later = now + FIRST_PAUSE;
        assert!(endpoint.is_fit(later));
        endpoint.tried(&[], later);
        assert!(!endpoint.is_fit(later));
    }
}
