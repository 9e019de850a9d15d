//! Which workers to run: pure.
//!
//! # Guarantees
//! - A commit runs only once the registry has all of it.
//! - While the latest commit is not at hand, what runs goes on running as it is, unless the spec
//!   asks for something else than it did.
//! - What failed is not tried again while the attempt would be the same, and the last good workers
//!   run instead, if there are any: their commit, and all else that they were made of.

use hyprstream_api::FailedCommit;

use crate::model::fetch::pods::WorkerProblem;

/// Workers that may be tried.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Their commit.
    pub commit: &'a str,
    /// Digest of their pods.
    pub digest: &'a str,
    /// Digest of trying them.
    pub attempt: &'a str,
}

/// What the decision follows from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// What the spec makes of the latest commit, or of the one that runs as long as the latest is
    /// not at hand. `None` if there is neither.
    pub candidate: Option<Candidate<'a>>,
    /// The candidate is of the latest commit.
    pub is_latest: bool,
    /// Digest of the pods that the Deployment makes.
    pub current: Option<&'a str>,
    /// Digest of the last pods that were all ready.
    pub good: Option<&'a str>,
    /// What was given up earlier.
    pub failed: Option<&'a FailedCommit>,
    /// The spec asks for something else than the Deployment notes that it was asked for.
    pub is_asked_anew: bool,
    /// Latest commit of the source, as far as known.
    pub latest: Option<&'a str>,
    /// What befell the workers of the candidate.
    pub problem: Option<&'a WorkerProblem>,
    /// The user asks for another try.
    pub retry: bool,
}

/// What the Deployment shall make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// There is nothing to run.
    Nothing,
    /// The candidate.
    Candidate,
    /// The last workers that were all ready.
    Good,
    /// What it makes already.
    Current,
}

/// What to run, and what is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to run.
    pub choice: Choice,
    /// What is given up.
    pub failed: Option<FailedCommit>,
}

/// Decides.
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { good, retry, .. } = *situation;
    // Dropped once the reference moves away from what failed, though the new commit is not here.
    let in_force = situation
        .failed
        .filter(|f| !retry && situation.latest.is_none_or(|l| l == f.commit));
    let Some(candidate) = situation.candidate else {
        let choice = good.map_or(Choice::Nothing, |_| Choice::Good);
        return Decision {
            choice,
            failed: in_force.cloned(),
        };
    };
    let is_held = !situation.is_latest && !situation.is_asked_anew;
    if is_held && situation.current.is_some_and(|c| c != candidate.digest) {
        // It runs in place of what failed, or a release waits for it: the commit at hand was never
        // asked for with what the spec says now.
        return Decision {
            choice: Choice::Current,
            failed: in_force.cloned(),
        };
    }
    let known = in_force.filter(|f| f.commit == candidate.commit && f.attempt == candidate.attempt);
    // What was good does not turn bad by what befalls a worker later.
    let fresh = situation
        .problem
        .filter(|p| p.is_final && !retry && good != Some(candidate.digest))
        .map(|problem| FailedCommit {
            commit: candidate.commit.to_owned(),
            attempt: candidate.attempt.to_owned(),
            reason: problem.reason.clone(),
            message: problem.message.clone(),
        });
    let own = known.cloned().or(fresh);
    let goes_back = own.is_some() && good.is_some_and(|g| g != candidate.digest);
    let failed = own.or_else(|| in_force.filter(|_| is_held).cloned());
    Decision {
        choice: if goes_back {
            Choice::Good
        } else {
            Choice::Candidate
        },
        failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";

    fn of(commit: &str) -> Candidate<'_> {
        Candidate {
            commit,
            digest: if commit == OLD { "old" } else { "new" },
            attempt: "a",
        }
    }

    fn situation() -> Situation<'static> {
        Situation {
            candidate: None,
            is_latest: true,
            current: None,
            good: None,
            failed: None,
            is_asked_anew: false,
            latest: None,
            problem: None,
            retry: false,
        }
    }

    fn problem(is_final: bool) -> WorkerProblem {
        WorkerProblem {
            reason: "InvalidWeights".into(),
            message: "m".into(),
            is_final,
        }
    }

    fn failed(commit: &str) -> FailedCommit {
        FailedCommit {
            commit: commit.into(),
            attempt: "a".into(),
            reason: "InvalidWeights".into(),
            message: "m".into(),
        }
    }

    #[track_caller]
    fn check(situation: &Situation<'_>, choice: Choice, given_up: Option<&str>) {
        let decision = decide(situation);
        assert_eq!(decision.choice, choice);
        assert_eq!(
            decision.failed.as_ref().map(|f| f.commit.as_str()),
            given_up
        );
    }

    #[test]
    fn nothing_runs_while_there_is_nothing() {
        check(&situation(), Choice::Nothing, None);
        let deleted = Situation {
            good: Some("old"),
            ..situation()
        };
        check(&deleted, Choice::Good, None);
    }

    #[test]
    fn what_runs_goes_on_while_nothing_is_known() {
        let gone = failed(NEW);
        let base = Situation {
            candidate: Some(of(OLD)),
            is_latest: false,
            current: Some("before"),
            good: Some("before"),
            failed: Some(&gone),
            ..situation()
        };
        check(&base, Choice::Current, Some(NEW));
        let at_new = Situation {
            latest: Some(NEW),
            ..base.clone()
        };
        check(&at_new, Choice::Current, Some(NEW));
        let same = Situation {
            current: Some("old"),
            ..base.clone()
        };
        check(&same, Choice::Candidate, Some(NEW));
        // The next commit is being fetched, and what is known to fail is not tried meanwhile.
        let moved = Situation {
            latest: Some(OLD),
            ..base.clone()
        };
        check(&moved, Choice::Current, None);
        let edited = Situation {
            is_asked_anew: true,
            ..base
        };
        check(&edited, Choice::Candidate, None);
    }

    #[test]
    fn a_failed_commit_yields_to_the_last_good_one_until_another_try() {
        let (gone, bad) = (failed(NEW), problem(true));
        let base = Situation {
            candidate: Some(of(NEW)),
            current: Some("new"),
            good: Some("old"),
            latest: Some(NEW),
            ..situation()
        };
        check(&base, Choice::Candidate, None);
        let fails = Situation {
            problem: Some(&bad),
            ..base.clone()
        };
        check(&fails, Choice::Good, Some(NEW));
        let after = Situation {
            failed: Some(&gone),
            current: Some("old"),
            ..base
        };
        check(&after, Choice::Good, Some(NEW));
        let retry = Situation {
            retry: true,
            ..after.clone()
        };
        check(&retry, Choice::Candidate, None);
        let other = Situation {
            candidate: Some(Candidate {
                attempt: "b",
                ..of(NEW)
            }),
            ..after
        };
        check(&other, Choice::Candidate, None);
    }

    #[test]
    fn a_spec_that_fails_yields_to_what_the_same_commit_was_served_with() {
        let (gone, bad) = (failed(OLD), problem(true));
        let base = Situation {
            candidate: Some(of(OLD)),
            current: Some("old"),
            good: Some("before"),
            latest: Some(OLD),
            problem: Some(&bad),
            ..situation()
        };
        check(&base, Choice::Good, Some(OLD));
        let restarted = Situation {
            is_latest: false,
            current: Some("before"),
            failed: Some(&gone),
            latest: None,
            problem: None,
            ..base
        };
        check(&restarted, Choice::Current, Some(OLD));
        let known = Situation {
            is_latest: true,
            ..restarted.clone()
        };
        check(&known, Choice::Good, Some(OLD));
        let edited_back = Situation {
            candidate: Some(Candidate {
                commit: OLD,
                digest: "before",
                attempt: "b",
            }),
            is_latest: true,
            ..restarted
        };
        check(&edited_back, Choice::Candidate, None);
    }

    #[test]
    fn trouble_that_may_pass_gives_nothing_up() {
        let passing = problem(false);
        let base = Situation {
            candidate: Some(of(NEW)),
            good: Some("old"),
            problem: Some(&passing),
            ..situation()
        };
        check(&base, Choice::Candidate, None);
    }

    #[test]
    fn the_first_commit_stays_even_if_it_fails() {
        let bad = problem(true);
        let base = Situation {
            candidate: Some(of(NEW)),
            problem: Some(&bad),
            ..situation()
        };
        check(&base, Choice::Candidate, Some(NEW));
    }

    #[test]
    fn a_good_commit_is_not_given_up_when_a_worker_ends() {
        let bad = problem(true);
        let base = Situation {
            candidate: Some(of(NEW)),
            good: Some("new"),
            problem: Some(&bad),
            ..situation()
        };
        check(&base, Choice::Candidate, None);
    }
}
