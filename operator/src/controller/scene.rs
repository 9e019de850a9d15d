//! Everything that a reconciliation has found before it acts: pure from here to `apply`.

use std::time::Duration;

use hyprstream_api::{Model, ModelStatus};
use k8s_openapi::jiff::Timestamp;

use super::{
    build::{self, NewVolume, Revision},
    census::{Census, census},
    decide::{Decision, Situation, decide},
    fetch::Existing,
    validate::{Invalid, Plan},
};
use crate::source::Findings;

/// What there is.
pub(super) struct Scene<'a> {
    pub(super) model: &'a Model,
    pub(super) before: &'a ModelStatus,
    pub(super) plan: Result<&'a Plan, &'a Invalid>,
    pub(super) findings: &'a Findings,
    pub(super) existing: &'a Existing,
    /// The user asks for another try of what failed.
    pub(super) retry: bool,
    pub(super) now: Timestamp,
}

impl Scene<'_> {
    /// The plan, if it is to be acted on.
    pub(super) fn active(&self) -> Option<&Plan> {
        self.plan.ok().filter(|_| !self.model.spec.suspend)
    }

    /// The volume of the latest commit, once the registry has it.
    pub(super) fn latest_volume(&self) -> Option<NewVolume> {
        let plan = self.active()?;
        self.findings
            .mirrored
            .as_ref()
            .map(|m| build::new_volume(plan, m))
    }

    /// What to run.
    pub(super) fn decide(&self, latest: Option<&NewVolume>) -> Decision {
        let current = self.existing.current();
        let Some(plan) = self.active() else {
            return Decision {
                target: current,
                failed: self.before.failed.clone(),
            };
        };
        let candidate = latest.map(|n| &n.revision);
        let attempt = candidate
            .map(|c| build::attempt(plan, c))
            .unwrap_or_default();
        // Pods count against the commit only once the Deployment names it.
        let problem = candidate
            .map(|c| build::revision_of(plan, c))
            .filter(|revision| self.existing.current_revision() == Some(revision))
            .and_then(|revision| self.count(&revision).problem);
        let commit = self.findings.latest.as_ref().map(ToString::to_string);
        decide(&Situation {
            candidate,
            attempt: &attempt,
            current: current.as_ref(),
            claims: &self.existing.revisions(),
            last_known_good: self.before.last_known_good.as_deref(),
            failed: self.before.failed.as_ref(),
            latest: commit.as_deref(),
            problem: problem.as_ref(),
            retry: self.retry,
        })
    }

    /// The workers, those of `target` more closely.
    pub(super) fn census(&self, target: Option<&Revision>) -> Census {
        let revision = match (self.active(), target) {
            (Some(plan), Some(target)) => build::revision_of(plan, target),
            // A spec that is not acted on leaves the Deployment as it is.
            _ => self
                .existing
                .current_revision()
                .unwrap_or_default()
                .to_owned(),
        };
        self.count(&revision)
    }

    fn count(&self, revision: &str) -> Census {
        let seconds = self.model.spec.rollout.progress_deadline_seconds;
        let deadline = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        census(&self.existing.pods, revision, deadline, self.now)
    }
}
