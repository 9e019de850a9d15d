//! Years of rotation, and what is lost or broken on the way.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyprstream_tls::{Authority, Names, Trust};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::{
    decide::{Seen, Step, Trusted, decide},
    objects, *,
};

const OVERLAP: Duration = Duration::from_hours(1);
/// How old what a part has may be.
const LAG: Duration = Duration::from_mins(10);
const DAY: Duration = Duration::from_hours(24);

/// The three objects, a clock, and what parts may have.
struct World {
    now: SystemTime,
    names: Names,
    keys: Option<Secret>,
    bundle: Option<ConfigMap>,
    leaf: Option<Secret>,
    /// What was shown, and until when that was the newest.
    bundles: Vec<(Option<SystemTime>, Vec<Trusted>)>,
    leaves: Vec<(Option<SystemTime>, decide::Leaf)>,
    steps: BTreeMap<&'static str, u32>,
}

impl World {
    fn new() -> Self {
        Self {
            now: UNIX_EPOCH + Duration::from_hours(500_000),
            names: names(&[
                "registry".into(),
                "registry.ns.svc".into(),
                "127.0.0.1".into(),
            ]),
            keys: None,
            bundle: None,
            leaf: None,
            bundles: Vec::new(),
            leaves: Vec::new(),
            steps: BTreeMap::new(),
        }
    }

    fn seen(&self) -> Seen {
        objects::seen(self.keys.as_ref(), self.bundle.as_ref(), self.leaf.as_ref())
    }

    fn decide(&self) -> Step {
        decide(&self.seen(), &self.names, OVERLAP, self.now)
    }

    /// One step; `false` if there is none.
    fn step(&mut self) -> bool {
        let seen = self.seen();
        let new = || Authority::generate("a", self.now, AUTHORITY_LIFE).unwrap();
        let name = match self.decide() {
            Step::Rest { until } => {
                assert!(until > self.now, "it would look without end");
                return false;
            }
            Step::Begin { .. } => {
                self.keys = Some(objects::keys("ns", &new(), None));
                "begin"
            }
            Step::Prepare => {
                let current = seen.current.as_ref().unwrap();
                self.keys = Some(objects::keys("ns", current, Some(&new())));
                "prepare"
            }
            Step::Promote => {
                self.keys = Some(objects::keys("ns", seen.next.as_ref().unwrap(), None));
                "promote"
            }
            Step::Publish { bundle, .. } => {
                self.bundle = Some(objects::config_map("ns", &bundle));
                let found = self.seen();
                assert_eq!(found.bundle, bundle, "what is written is read");
                assert_eq!(found.bundle_wrong, None);
                self.end_of(|world| &mut world.bundles);
                self.bundles.push((None, bundle));
                "publish"
            }
            Step::Issue { .. } => {
                let by = seen.current.unwrap();
                let issued = by.issue(&self.names, self.now, LIFE).unwrap();
                self.leaf = Some(objects::leaf("ns", &issued, &by));
                let leaf = self.seen().leaf.expect("what is written is read");
                self.end_of(|world| &mut world.leaves);
                self.leaves.push((None, leaf));
                "issue"
            }
        };
        *self.steps.entry(name).or_default() += 1;
        self.check();
        true
    }

    fn end_of<T>(&mut self, of: impl Fn(&mut Self) -> &mut Vec<(Option<SystemTime>, T)>) {
        let now = self.now;
        if let Some((end, _)) = of(self).last_mut() {
            *end = Some(now);
        }
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.decide());
    }

    /// Whoever has what was the newest within the lag believes and is believed.
    fn check(&mut self) {
        let (now, oldest) = (self.now, self.now - LAG);
        let is_had = |end: &Option<SystemTime>| end.is_none_or(|end| end > oldest);
        self.bundles.retain(|(end, _)| is_had(end));
        self.leaves.retain(|(end, _)| is_had(end));
        for (_, bundle) in &self.bundles {
            for (_, leaf) in &self.leaves {
                let by = &leaf.authority;
                let trusted = bundle.iter().find(|t| t.digest == by.digest);
                let trusted = trusted.expect("a server's authority is in a client's bundle");
                assert!(trusted.ends > now, "the authority has ended");
                assert!(leaf.facts.not_before <= now && now < leaf.facts.not_after);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = objects::whole(self.now + time);
        self.check();
    }
}

#[test]
fn a_new_cluster_has_everything_at_once_and_then_rest() {
    let mut world = World::new();
    world.settle();
    assert_eq!(
        world.steps,
        BTreeMap::from([("begin", 1), ("publish", 1), ("issue", 1)])
    );
    let seen = world.seen();
    let leaf = seen.leaf.unwrap();
    assert_eq!(leaf.facts.hosts, world.names.hosts);
    let trust = Trust::fixed(objects::text(&seen.bundle).as_bytes(), "it").unwrap();
    assert_eq!(trust.certificates().len(), 1);
    assert_eq!(leaf.authority.digest, seen.bundle[0].digest);
}

#[test]
fn five_years_of_kills_and_losses_refuse_nobody() {
    let mut taken = std::collections::BTreeSet::new();
    for seed in [1, 7, 42] {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        world.settle();
        let end = world.now + 5 * 365 * DAY;
        while world.now < end {
            let is_away = random.u32(0..20) == 0;
            let hours = if is_away {
                random.u64(0..20 * 24)
            } else {
                random.u64(0..48)
            };
            world.pass(Duration::from_secs(hours * 3600 + random.u64(0..3600)));
            let is_whole = world.keys.is_some() && world.bundle.is_some() && world.leaf.is_some();
            let is_quiet = world.bundles.len() == 1 && world.leaves.len() == 1;
            if is_whole && is_quiet && random.u32(0..40) == 0 {
                match random.u32(0..20) {
                    0 => world.keys = None,
                    1..10 => world.bundle = None,
                    _ => world.leaf = None,
                }
            }
            // A kill leaves some steps undone, for a while.
            while random.u32(0..4) != 0 {
                if !world.step() {
                    break;
                }
                world.pass(Duration::from_secs(random.u64(0..30)));
            }
        }
        taken.extend(world.steps.into_keys());
    }
    let all = ["begin", "issue", "prepare", "promote", "publish"];
    assert!(taken.iter().eq(all.iter()), "{taken:?}");
}

#[test]
fn without_any_loss_certificates_are_made_anew_every_60_days_and_authorities_every_two_years() {
    let mut world = World::new();
    let end = world.now + 5 * 365 * DAY;
    while world.now < end {
        world.settle();
        world.pass(DAY);
    }
    // 1,825 days.
    let issued = world.steps["issue"];
    assert!((29..=34).contains(&issued), "{issued}");
    assert_eq!((world.steps["begin"], world.steps["promote"]), (1, 2));
    assert!(world.seen().bundle.len() <= 2);
}

#[test]
fn a_lost_authority_is_followed_by_a_new_one_after_the_overlap() {
    let mut world = World::new();
    world.settle();
    let before = world.seen().leaf.unwrap().authority.digest;
    world.keys = None;
    world.settle();
    let bundle = world.seen().bundle;
    assert_eq!(bundle.len(), 2, "the old one is still trusted");
    assert_eq!(world.seen().leaf.unwrap().authority.digest, before);
    // Nothing can be signed yet; the server goes on with what it has.
    world.leaf = None;
    world.settle();
    assert!(world.leaf.is_none());
    world.pass(OVERLAP);
    world.settle();
    assert_ne!(world.seen().leaf.unwrap().authority.digest, before);
    world.pass(60 * DAY);
    world.settle();
    assert_eq!(world.seen().bundle.len(), 2);
    world.pass(31 * DAY);
    world.settle();
    assert_eq!(world.seen().bundle.len(), 1, "nothing of the old one lives");
}

#[test]
fn the_loss_of_everything_is_a_new_beginning() {
    let mut world = World::new();
    world.settle();
    (world.keys, world.bundle, world.leaf) = (None, None, None);
    (world.bundles, world.leaves) = (Vec::new(), Vec::new());
    world.settle();
    assert_eq!(world.seen().bundle.len(), 1);
    assert!(world.seen().leaf.is_some());
}

fn break_field(secret: &mut Option<Secret>, name: &str) {
    let data = secret.as_mut().unwrap().data.as_mut().unwrap();
    data.get_mut(name).unwrap().0 = b"nonsense".to_vec();
}

#[test]
fn what_somebody_broke_is_made_anew_and_what_was_wrong_is_said() {
    let mut world = World::new();
    world.settle();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        break_field(&mut world.leaf, name);
        match world.decide() {
            Step::Issue {
                wrong: Some(wrong), ..
            } => assert!(wrong.contains("tls") || wrong.contains(name), "{wrong}"),
            other => panic!("{other:?}"),
        }
        world.settle();
    }
    break_field(&mut world.keys, "tls.key");
    match world.decide() {
        Step::Begin { wrong } => assert!(wrong.is_some()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bundle_that_somebody_edited_is_written_anew_without_strangers() {
    let mut world = World::new();
    world.settle();
    let good = world.bundle.clone();
    let stranger = Authority::generate("stranger", world.now, LIFE).unwrap();
    let edits: [fn(&mut String, &str); 3] = [
        String::push_str,
        |text, _| text.push_str("nonsense"),
        |text, _| text.clear(),
    ];
    for edit in edits {
        let data = world.bundle.as_mut().unwrap().data.as_mut().unwrap();
        edit(
            data.get_mut("ca.crt").unwrap(),
            &stranger.issued().certificate,
        );
        assert!(matches!(world.decide(), Step::Publish { .. }));
        world.settle();
        assert_eq!(
            world.bundle.as_ref().unwrap().data,
            good.as_ref().unwrap().data
        );
    }
    world.bundle.as_mut().unwrap().metadata.annotations = None;
    assert!(matches!(
        world.decide(),
        Step::Publish { wrong: Some(_), .. }
    ));
    world.settle();
    assert_eq!(world.bundle.as_ref().unwrap().data, good.unwrap().data);
}

#[test]
fn other_names_are_another_certificate() {
    let mut world = World::new();
    world.settle();
    world.names = names(&["registry".into(), "elsewhere".into(), "::1".into()]);
    world.settle();
    let facts = world.seen().leaf.unwrap().facts;
    assert_eq!(facts.hosts, world.names.hosts);
    assert_eq!(facts.addresses, world.names.addresses);
}

#[test]
fn addresses_are_told_from_names() {
    let names = names(&[
        "A.b".into(),
        " 127.0.0.1 ".into(),
        "::1".into(),
        String::new(),
    ]);
    assert_eq!(listed(&names.hosts), "a.b");
    assert_eq!(names.addresses.len(), 2);
}
