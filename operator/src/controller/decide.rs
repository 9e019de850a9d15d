//! Which commit to run: pure.
//!
//! # Guarantees
//! - A commit runs only once the registry has all of it.
//! - While nothing is known of the source, what runs goes on running.
//! - A commit that failed is not tried again while the attempt would be the same, and the last
//!   good one runs instead, if there is one and its claim is still there.

use hyprstream_api::FailedCommit;

use super::{build::Revision, census::WorkerProblem};

/// What the decision follows from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The latest commit, if it can be run.
    pub candidate: Option<&'a Revision>,
    /// Digest of trying it.
    pub attempt: &'a str,
    /// What the Deployment names.
    pub current: Option<&'a Revision>,
    /// Claims there are, newest first.
    pub claims: &'a [Revision],
    /// Last commit whose workers all became ready.
    pub last_known_good: Option<&'a str>,
    /// What was given up earlier.
    pub failed: Option<&'a FailedCommit>,
    /// Latest commit of the source, as far as known.
    pub latest: Option<&'a str>,
    /// What befell the workers of the candidate.
    pub problem: Option<&'a WorkerProblem>,
    /// The user asks for another try.
    pub retry: bool,
}

/// What to run, and what is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the Deployment shall name; `None` while there is nothing to run.
    pub target: Option<Revision>,
    /// The commit that is given up.
    pub failed: Option<FailedCommit>,
}

/// Decides.
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation {
        candidate,
        attempt,
        current,
        claims,
        last_known_good,
        ..
    } = *situation;
    let Some(candidate) = candidate else {
        // The reference moved away from what failed, though the new commit is not here yet.
        let moved = |f: &&FailedCommit| situation.latest.is_none_or(|l| l == f.commit);
        return Decision {
            target: current.cloned(),
            failed: situation
                .failed
                .filter(moved)
                .filter(|_| !situation.retry)
                .cloned(),
        };
    };
    let commit = candidate.commit.as_str();
    let known = situation
        .failed
        .filter(|f| f.commit == commit && f.attempt == attempt && !situation.retry)
        .cloned();
    // A commit that was good does not turn bad by what befalls a worker later.
    let fresh = situation
        .problem
        .filter(|p| p.is_final && last_known_good != Some(commit))
        .map(|problem| FailedCommit {
            commit: commit.to_owned(),
            attempt: attempt.to_owned(),
            reason: problem.reason.clone(),
            message: problem.message.clone(),
        });
    let failed = known.or(if situation.retry { None } else { fresh });
    let refuge = last_known_good
        .filter(|good| *good != commit)
        .and_then(|good| {
            let current = current.filter(|c| c.commit.as_str() == good);
            current.or_else(|| claims.iter().find(|c| c.commit.as_str() == good))
        })
        .filter(|_| failed.is_some());
    Decision {
        target: Some(refuge.unwrap_or(candidate).clone()),
        failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";

    fn revision(commit: &str) -> Revision {
        Revision {
            commit: commit.parse().unwrap(),
            claim: format!("m-{}", &commit[..4]),
        }
    }

    fn situation() -> Situation<'static> {
        Situation {
            candidate: None,
            attempt: "a",
            current: None,
            claims: &[],
            last_known_good: None,
            failed: None,
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
    fn check(situation: &Situation<'_>, target: Option<&str>, given_up: Option<&str>) {
        let decision = decide(situation);
        assert_eq!(decision.target.as_ref().map(|t| t.commit.as_str()), target);
        assert_eq!(
            decision.failed.as_ref().map(|f| f.commit.as_str()),
            given_up
        );
    }

    #[test]
    fn what_runs_goes_on_while_nothing_is_known() {
        let (old, gone) = (revision(OLD), failed(NEW));
        let base = Situation {
            current: Some(&old),
            failed: Some(&gone),
            ..situation()
        };
        check(&base, Some(OLD), Some(NEW));
        check(
            &Situation {
                latest: Some(NEW),
                ..base.clone()
            },
            Some(OLD),
            Some(NEW),
        );
        check(
            &Situation {
                latest: Some(OLD),
                ..base
            },
            Some(OLD),
            None,
        );
    }

    #[test]
    fn a_failed_commit_yields_to_the_last_good_one_until_another_try() {
        let (old, new, gone) = (revision(OLD), revision(NEW), failed(NEW));
        let claims = [new.clone(), old.clone()];
        let bad = problem(true);
        let base = Situation {
            candidate: Some(&new),
            current: Some(&new),
            claims: &claims,
            last_known_good: Some(OLD),
            latest: Some(NEW),
            ..situation()
        };
        check(&base, Some(NEW), None);
        check(
            &Situation {
                problem: Some(&bad),
                ..base.clone()
            },
            Some(OLD),
            Some(NEW),
        );
        let after = Situation {
            failed: Some(&gone),
            current: Some(&old),
            ..base
        };
        check(&after, Some(OLD), Some(NEW));
        check(
            &Situation {
                retry: true,
                ..after.clone()
            },
            Some(NEW),
            None,
        );
        check(
            &Situation {
                attempt: "b",
                ..after
            },
            Some(NEW),
            None,
        );
    }

    #[test]
    fn trouble_that_may_pass_gives_nothing_up() {
        let new = revision(NEW);
        let passing = problem(false);
        let base = Situation {
            candidate: Some(&new),
            problem: Some(&passing),
            ..situation()
        };
        check(&base, Some(NEW), None);
    }

    #[test]
    fn the_first_commit_stays_even_if_it_fails() {
        let new = revision(NEW);
        let bad = problem(true);
        let base = Situation {
            candidate: Some(&new),
            problem: Some(&bad),
            ..situation()
        };
        check(&base, Some(NEW), Some(NEW));
    }

    #[test]
    fn a_good_commit_is_not_given_up_when_a_worker_ends() {
        let new = revision(NEW);
        let bad = problem(true);
        let base = Situation {
            candidate: Some(&new),
            last_known_good: Some(NEW),
            problem: Some(&bad),
            ..situation()
        };
        check(&base, Some(NEW), None);
    }
}
