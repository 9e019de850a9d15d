//! Which workers there should be, of everything that a reconciliation has found before it acts:
//! pure, but for whose turn it is.

pub mod decide;

use std::time::{Duration, Instant};

use hyprstream_api::{FailedCommit, Model, ModelStatus, NoRoom};
use k8s_openapi::{apimachinery::pkg::util::intstr::IntOrString, jiff::Timestamp};

use self::decide::{Candidate, Choice, Decision, Situation, decide};
use crate::{
    model::{
        build::{self, Notes, Revision, Workers},
        fetch::{
            Existing,
            pods::{Census, census},
        },
        turns::{Turns, Who},
        validate::{Invalid, Plan},
    },
    source::Findings,
};

/// What there is.
pub(in crate::model) struct Scene<'a> {
    pub(in crate::model) model: &'a Model,
    pub(in crate::model) before: &'a ModelStatus,
    pub(in crate::model) plan: Result<&'a Plan, &'a Invalid>,
    pub(in crate::model) findings: &'a Findings,
    pub(in crate::model) existing: &'a Existing,
    /// The user asks for another try of what failed.
    pub(in crate::model) retry: bool,
    pub(in crate::model) now: Timestamp,
}

/// What to do.
#[derive(Default)]
pub(in crate::model) struct Course {
    /// The workers to run.
    pub(in crate::model) target: Option<Workers>,
    /// What the Deployment is to note.
    pub(in crate::model) notes: Notes,
    /// What is given up.
    pub(in crate::model) failed: Option<FailedCommit>,
    /// The target runs in place of what failed.
    pub(in crate::model) is_rolled_back: bool,
    /// The Model waits for its turn, and asks again after that time.
    pub(in crate::model) waits: Option<Duration>,
}

/// What the spec makes, of the latest commit or of the one that runs.
struct Wish {
    workers: Workers,
    attempt: String,
    is_latest: bool,
}

impl Scene<'_> {
    /// The plan, if it is to be acted on.
    pub(in crate::model) fn active(&self) -> Option<&Plan> {
        self.plan.ok().filter(|_| !self.model.spec.suspend)
    }

    /// What to do. `turns` says whether a release's change of the workers may begin.
    pub(in crate::model) fn course(&self, who: &Who, turns: &Turns) -> Course {
        let current = self.existing.current();
        let Some(plan) = self.active() else {
            turns.leave(who);
            let noted = self.existing.noted_good();
            let failed = self.before.failed.clone();
            return Course {
                is_rolled_back: failed.is_some()
                    && noted.is_some_and(|n| Some(n.digest()) == self.existing.current_revision()),
                failed,
                target: current,
                ..Course::default()
            };
        };
        let wish = self.wish(plan, current.as_ref());
        let good = self.good(plan, current.as_ref());
        let Decision { mut choice, failed } =
            self.decide(plan, wish.as_ref(), current.as_ref(), good.as_ref());
        let mut is_upgrade =
            choice == Choice::Candidate && self.is_upgrade(plan, wish.as_ref(), current.as_ref());
        let mut waits = None;
        if is_upgrade && let Some(wish) = &wish {
            waits = turns
                .ask(who, wish.workers.digest(), self.now, Instant::now())
                .err();
            if waits.is_some() {
                choice = Choice::Current;
                is_upgrade = false;
            }
        } else {
            turns.leave(who);
        }
        let digest = wish.as_ref().map(|w| w.workers.digest().to_owned());
        let asked = match &wish {
            Some(wish) if choice != Choice::Current => {
                Some(build::asked(plan, wish.workers.revision.commit.as_str()))
            }
            _ => self.existing.asked().map(str::to_owned),
        };
        let target = match choice {
            Choice::Nothing => None,
            Choice::Candidate => wish.map(|w| w.workers),
            Choice::Good => good.clone(),
            Choice::Current => current.map(|c| self.mountable(plan, c)),
        };
        let made = target.as_ref().map(Workers::digest);
        // Once all are ready the change is done: what befalls them later holds nobody up.
        let is_proven = made.is_some() && made == good.as_ref().map(Workers::digest);
        let is_noted = made.is_some() && made == self.existing.upgrade();
        let is_replacing = made.is_some_and(|made| !is_proven && self.is_replacing(plan, made));
        Course {
            is_rolled_back: failed.is_some() && made != digest.as_deref(),
            notes: Notes {
                is_upgrade: is_upgrade || is_noted && !is_proven,
                is_replacing,
                good,
                asked,
            },
            failed,
            target,
            waits,
        }
    }

    /// The workers of that digest find no room beside others, some of which go to make it: so it
    /// stays to the end of the rollout, or the next of them would wait for room again.
    fn is_replacing(&self, plan: &Plan, digest: &str) -> bool {
        if !keeps_all(plan) {
            return false;
        }
        let census = self.count(digest);
        let may = census.ready == 0
            || match plan.spec.rollout.no_room {
                NoRoom::Wait => false,
                // Kubernetes lets no more than one be missing.
                NoRoom::KeepServing => plan.spec.replicas > 1,
                NoRoom::Replace => true,
            };
        let has_begun = self.existing.replacing() == Some(digest);
        may && (has_begun || census.lacks_room && census.replicas > census.updated)
    }

    fn wish(&self, plan: &Plan, current: Option<&Workers>) -> Option<Wish> {
        let (revision, content) = if let Some(mirrored) = &self.findings.mirrored {
            let content = build::content(plan, mirrored);
            let name = build::claim_name(plan, &content);
            let claim = self.existing.claim_for(&plan.namespace, &name);
            let new = build::new_volume(plan, &content, &claim);
            (new.revision, Some(content))
        } else {
            let current = self.mountable(plan, current?.clone());
            (current.revision, current.content)
        };
        // Whatever number its claim has got: the same content on another claim fails as it did, and
        // the claim of what failed may be on its way out right now.
        let tried = Revision {
            commit: revision.commit.clone(),
            claim: content.as_ref().map_or_else(
                || revision.claim.clone(),
                |content| build::claim_name(plan, content),
            ),
        };
        Some(Wish {
            attempt: build::attempt(plan, &tried),
            workers: build::workers(plan, revision, content),
            is_latest: self.findings.mirrored.is_some(),
        })
    }

    /// The last workers that were all ready, in a volume that can be mounted.
    fn good(&self, plan: &Plan, current: Option<&Workers>) -> Option<Workers> {
        let noted = self.existing.noted_good();
        let good = self.before.last_known_good.as_deref();
        // An earlier release left no note.
        let is_good = |w: &&Workers| {
            self.is_complete(w)
                || noted.is_none()
                    && good == Some(w.revision.commit.as_str())
                    && self.before.failed.is_none()
        };
        let by_claim = || {
            let revisions = self.existing.revisions();
            let found = revisions
                .into_iter()
                .find(|r| Some(r.commit.as_str()) == good);
            found.map(|revision| build::workers(plan, revision, None))
        };
        current
            .filter(is_good)
            .cloned()
            .or_else(|| noted.clone())
            .or_else(by_claim)
            .map(|good| self.mountable(plan, good))
    }

    /// As many as the Deployment makes are ready, and that is not none.
    fn is_complete(&self, current: &Workers) -> bool {
        let census = self.count(current.digest());
        self.existing.current_replicas().is_some_and(|wanted| {
            wanted > 0 && census.updated == wanted && census.updated_ready == wanted
        })
    }

    /// The same workers, on other claims if theirs cannot be used any more.
    fn mountable(&self, plan: &Plan, workers: Workers) -> Workers {
        let is_lost = |claim: &str| claim != plan.adapters_claim && !self.existing.is_usable(claim);
        let workers = if workers.adapters_claim().is_some_and(is_lost) {
            workers.on_adapters_claim(&plan.adapters_claim)
        } else {
            workers
        };
        let Some(content) = &workers.content else {
            return workers;
        };
        if self.existing.is_usable(&workers.revision.claim) {
            return workers;
        }
        let name = build::claim_name(plan, content);
        let claim = self.existing.claim_for(&plan.namespace, &name);
        if claim == workers.revision.claim {
            workers
        } else {
            workers.on_claim(claim)
        }
    }

    fn decide(
        &self,
        plan: &Plan,
        wish: Option<&Wish>,
        current: Option<&Workers>,
        good: Option<&Workers>,
    ) -> Decision {
        let failed = self.before.failed.as_ref();
        // Pods count against what was asked for only once the Deployment makes it.
        let problem = wish
            .map(|w| w.workers.digest())
            .filter(|digest| self.existing.current_revision() == Some(*digest))
            .and_then(|digest| self.count(digest).problem);
        let latest = self.findings.latest.as_ref().map(ToString::to_string);
        decide(&Situation {
            candidate: wish.map(|w| Candidate {
                commit: w.workers.revision.commit.as_str(),
                digest: w.workers.digest(),
                attempt: &w.attempt,
            }),
            is_latest: wish.is_some_and(|w| w.is_latest),
            current: current.map(Workers::digest),
            good: good.map(Workers::digest),
            failed,
            is_asked_anew: self.existing.asked().and_then(|a| a.split('/').next())
                != Some(build::asked_spec(plan).as_str()),
            latest: latest.as_deref(),
            problem: problem.as_ref(),
            retry: self.retry,
        })
    }

    /// Other workers are wanted, and neither the Model nor its source is the cause, but another
    /// release of the operator.
    fn is_upgrade(&self, plan: &Plan, wish: Option<&Wish>, current: Option<&Workers>) -> bool {
        let (Some(wish), Some(current)) = (wish, current) else {
            return false;
        };
        let revision = &wish.workers.revision;
        let is_asked_already = match self.existing.asked() {
            Some(asked) => asked == build::asked(plan, revision.commit.as_str()),
            None => *revision == current.revision,
        };
        wish.workers.digest() != current.digest()
            && is_asked_already
            && !self.retry
            // Neither takes room from others, or must wait for them.
            && plan.spec.replicas > 0
            && self.existing.is_usable(&current.revision.claim)
            && current
                .adapters_claim()
                .is_none_or(|claim| self.existing.is_usable(claim))
    }

    /// The workers, those of `target` more closely.
    pub(in crate::model) fn census(&self, target: Option<&Workers>) -> Census {
        let revision = match target.filter(|_| self.active().is_some()) {
            Some(target) => target.digest(),
            // A spec that is not acted on leaves the Deployment as it is.
            None => self.existing.current_revision().unwrap_or_default(),
        };
        self.count(revision)
    }

    fn count(&self, revision: &str) -> Census {
        let seconds = self.model.spec.rollout.progress_deadline_seconds;
        let deadline = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        census(&self.existing.pods, revision, deadline, self.now)
    }
}

/// Whether no worker may be missing during a rollout, so that new ones need room beside the old.
fn keeps_all(plan: &Plan) -> bool {
    let rollout = &plan.spec.rollout;
    let hundredths = |bound: &IntOrString| match bound {
        IntOrString::Int(workers) => i64::from(*workers) * 100,
        IntOrString::String(text) => {
            let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0);
            percent * i64::from(plan.spec.replicas)
        }
    };
    // Kubernetes rounds the first up and the second down.
    hundredths(&rollout.max_surge) > 0 && hundredths(&rollout.max_unavailable) < 100
}
