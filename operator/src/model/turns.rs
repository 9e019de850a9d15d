//! How many Models change their workers at a time because of another release of the operator.
//!
//! Such a change is the same for every Model and would start twice as many workers as there are,
//! on GPUs that are not there. What a Model or its source asks for waits for nobody.
//!
//! # Guarantees
//! - Who has begun stands on the Deployments, so that a restart begins no more than before.
//! - The first by namespace and name of those that wait goes first.
//! - A rollout that Kubernetes finds to make no progress holds nobody up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyprstream_contract::label;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{
    build::{REVISION, UPGRADE},
    fetch::pods::census,
};
use crate::cache::Caches;

/// How long after the start the first may begin, so that most of those that wait are known.
const GATHER: Duration = Duration::from_secs(2);
/// How long it may take until a Deployment shows what was begun.
const LAG: Duration = Duration::from_secs(30);
/// Longest pause before a Model asks again.
const LONGEST: Duration = Duration::from_secs(30);
/// Who has not asked for so long does not wait any more.
const GONE: Duration = Duration::from_mins(2);

/// Namespace and name of a Model.
pub(super) type Who = (String, String);

/// Whose turn it is.
pub struct Turns {
    at_once: usize,
    begun: Instant,
    scopes: Mutex<Vec<Caches>>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Who, Instant>,
    /// The revisions that may be rolled out, until Deployments show them.
    granted: HashMap<Who, (String, Instant)>,
}

/// A revision that a release is the cause of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Upgrade {
    digest: String,
    is_under_way: bool,
}

impl Turns {
    /// `at_once` Models at a time, at least one.
    pub fn new(at_once: usize) -> Self {
        Self {
            at_once: at_once.max(1),
            begun: Instant::now(),
            scopes: Mutex::default(),
            queue: Mutex::default(),
        }
    }

    /// Looks at the Deployments of a scope too.
    pub fn watch(&self, caches: Caches) {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.push(caches);
    }

    /// Whether the Model may roll out a revision that its release is the cause of.
    ///
    /// # Errors
    /// After what time to ask again.
    pub(super) fn ask(
        &self,
        who: &Who,
        digest: &str,
        now: Timestamp,
        instant: Instant,
    ) -> Result<(), Duration> {
        let upgrades = self.upgrades(now);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let at_once = if instant.duration_since(self.begun) < GATHER {
            0
        } else {
            self.at_once
        };
        queue.ask(who, digest, &upgrades, at_once, instant)
    }

    /// The Model asks for no turn: it has none to wait for, or its Deployment shows what it began.
    pub(super) fn leave(&self, who: &Who) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.remove(who);
        queue.granted.remove(who);
    }

    fn upgrades(&self, now: Timestamp) -> BTreeMap<Who, Upgrade> {
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes
            .iter()
            .flat_map(|caches| upgrades(&caches.deployments.all(), &caches.pods.all(), now))
            .collect()
    }
}

impl Queue {
    fn ask(
        &mut self,
        who: &Who,
        digest: &str,
        upgrades: &BTreeMap<Who, Upgrade>,
        at_once: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        self.waiting
            .retain(|_, asked| now.duration_since(*asked) < GONE);
        self.granted.retain(|who, (digest, at)| {
            now.duration_since(*at) < LAG && upgrades.get(who).is_none_or(|u| u.digest != *digest)
        });
        if self.granted.get(who).is_some_and(|(d, _)| d == digest) {
            return Ok(());
        }
        self.waiting.insert(who.clone(), now);
        let under_way = upgrades.iter().filter(|(_, u)| u.is_under_way);
        let busy = under_way
            .map(|(w, _)| w)
            .chain(self.granted.keys().filter(|w| !is_under_way(upgrades, w)))
            .filter(|w| *w != who)
            .count();
        let before = self.waiting.range(..who.clone()).count();
        if busy + before < at_once {
            self.waiting.remove(who);
            self.granted.insert(who.clone(), (digest.to_owned(), now));
            return Ok(());
        }
        let rounds = u32::try_from(before / at_once.max(1)).unwrap_or(u32::MAX);
        let pause = Duration::from_secs(1).saturating_mul(rounds.saturating_add(1));
        Err(pause.min(LONGEST))
    }
}

fn is_under_way(upgrades: &BTreeMap<Who, Upgrade>, who: &Who) -> bool {
    upgrades.get(who).is_some_and(|u| u.is_under_way)
}

/// The Deployments whose revision a release is the cause of.
fn upgrades(
    deployments: &[Arc<Deployment>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> BTreeMap<Who, Upgrade> {
    let mut own: HashMap<Who, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods {
        if let Some(model) = pod.labels().get(label::MODEL) {
            let who = (pod.namespace().unwrap_or_default(), model.clone());
            own.entry(who).or_default().push(pod.clone());
        }
    }
    let mut found = BTreeMap::new();
    for deployment in deployments {
        let digest = deployment.labels().get(REVISION);
        let Some(digest) = digest.filter(|d| deployment.annotations().get(UPGRADE) == Some(d))
        else {
            continue;
        };
        let who = (
            deployment.namespace().unwrap_or_default(),
            deployment.name_any(),
        );
        let pods = own.get(&who).map_or(&[][..], Vec::as_slice);
        let census = census(pods, digest, Duration::MAX, now);
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let is_done = census.updated_ready >= wanted && census.replicas == census.updated;
        let upgrade = Upgrade {
            digest: digest.clone(),
            is_under_way: !is_done && !is_stuck(deployment),
        };
        found.insert(who, upgrade);
    }
    found
}

fn is_stuck(deployment: &Deployment) -> bool {
    let conditions = deployment
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .flatten();
    conditions
        .filter(|c| c.type_.as_deref() == Some("Progressing"))
        .any(|c| c.status.as_deref() == Some("False"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn who(name: &str) -> Who {
        ("ns".to_owned(), name.to_owned())
    }

    fn under_way(names: &[&str]) -> BTreeMap<Who, Upgrade> {
        let upgrade = Upgrade {
            digest: "r".into(),
            is_under_way: true,
        };
        names.iter().map(|n| (who(n), upgrade.clone())).collect()
    }

    #[test]
    fn the_first_that_wait_go_first_and_no_more_than_may() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut ask = |name: &str, running: &[&str], at_once: usize, after: u64| {
            let now = now + Duration::from_secs(after);
            queue
                .ask(&who(name), "r", &under_way(running), at_once, now)
                .is_ok()
        };
        // Nobody may, so that all are known.
        assert!(!ask("c", &[], 0, 0) && !ask("a", &[], 0, 0) && !ask("b", &[], 0, 0));
        assert!(!ask("c", &[], 2, 1));
        assert!(ask("a", &[], 2, 1));
        assert!(ask("a", &[], 2, 1), "it is granted until it shows");
        assert!(ask("b", &["a"], 2, 1));
        assert!(!ask("c", &["a", "b"], 2, 2));
        assert!(ask("c", &["b"], 2, 3));
        // What was granted and never came counts no longer than it may lag.
        assert!(!ask("d", &[], 1, 4));
        assert!(ask("d", &[], 1, 40));
    }

    #[test]
    fn who_waits_far_behind_asks_less_often() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let running = under_way(&["x"]);
        let pauses: Vec<u64> = (0..100)
            .map(|i| {
                let asked = queue.ask(&who(&format!("m{i:02}")), "r", &running, 1, now);
                asked.unwrap_err().as_secs()
            })
            .collect();
        assert_eq!((pauses[0], pauses[9], pauses[99]), (1, 10, 30));
    }

    #[test]
    fn a_rollout_counts_until_it_is_done_or_stuck() {
        let deployment = |status: serde_json::Value| -> Arc<Deployment> {
            let value = json!({
                "metadata": {"name": "m", "namespace": "ns",
                    "labels": {"hyprstream.io/revision": "r"},
                    "annotations": {"hyprstream.io/upgrade": "r"}},
                "spec": {"replicas": 1, "selector": {}, "template": {}},
                "status": status,
            });
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let pod = |revision: &str, ready: &str| -> Arc<Pod> {
            let value = json!({
                "metadata": {"name": "p", "namespace": "ns",
                    "labels": {"hyprstream.io/revision": revision, "hyprstream.io/model": "m"}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let is_under_way = |status, pods: &[Arc<Pod>]| {
            upgrades(&[deployment(status)], pods, Timestamp::UNIX_EPOCH)[&who("m")].is_under_way
        };
        assert!(is_under_way(json!({}), &[]));
        assert!(is_under_way(
            json!({}),
            &[pod("r", "False"), pod("q", "True")]
        ));
        assert!(is_under_way(
            json!({}),
            &[pod("r", "True"), pod("q", "True")]
        ));
        assert!(!is_under_way(json!({}), &[pod("r", "True")]));
        let stuck = json!({"conditions": [{"type": "Progressing", "status": "False"}]});
        assert!(!is_under_way(stuck, &[pod("r", "False")]));
    }
}
