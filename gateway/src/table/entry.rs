//! One Model of the table.

use std::{fmt, sync::Arc, time::Instant};

use hyprstream_contract::CommitId;

use super::{AdapterFacts, ModelKey};
use crate::endpoint::{Endpoint, Lease, Standing};

/// What a Model's source follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The upstream's default branch.
    Head,
    /// A branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A commit.
    Commit(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("the default branch"),
            Self::Branch(name) => write!(f, "branch {name}"),
            Self::Tag(name) => write!(f, "tag {name}"),
            Self::Commit(name) => write!(f, "commit {name}"),
        }
    }
}

/// What a Model's status says of workers to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hope {
    /// They start, or nothing speaks against it.
    Good,
    /// They fail to start, and are tried again.
    Faint,
    /// Nothing more is tried until somebody changes something.
    None,
}

/// What the gateway needs to know of a Model beside its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Which Model.
    pub key: ModelKey,
    /// What its source follows.
    pub reference: Reference,
    /// The commit that its status names.
    pub commit: Option<CommitId>,
    /// Wanted workers.
    pub replicas: u32,
    /// Nothing is done for it at present.
    pub suspended: bool,
    /// Whether workers can be expected while there are none.
    pub hope: Hope,
    /// CamelCase reason for not being ready.
    pub reason: String,
    /// A sentence on that reason.
    pub message: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// A Model and its ready workers.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// What its object says.
    pub facts: ModelFacts,
    /// Its ready workers.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Whether waiting for a worker makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// One is expected: waiting helps.
    Expected,
    /// One that is just being restarted may come, but most likely none does.
    Doubtful(Refusal),
    /// None will come by itself.
    Refused(Refusal),
}

/// Why no worker is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase reason.
    pub reason: String,
    /// A sentence for the client.
    pub message: String,
}

impl ModelEntry {
    /// A lease on the least loaded worker that is fit, not in `excluded`, and did not just say that
    /// it lacks one of `adapters`; on one that is to be avoided only if there is no other. Among equal ones each is as likely, because several
    /// gateways must not all choose the same.
    pub fn pick(
        &self,
        excluded: &[Arc<Endpoint>],
        adapters: &[&Arc<AdapterFacts>],
        now: Instant,
    ) -> Option<Lease> {
        let mut best: Option<(&Arc<Endpoint>, (Standing, usize))> = None;
        let mut ties = 0_usize;
        for endpoint in &self.endpoints {
            let standing = endpoint.standing(now);
            if standing == Standing::Unfit
                || is_in(excluded, endpoint)
                || endpoint
                    .lacking_until(adapters)
                    .is_some_and(|until| until > now)
            {
                continue;
            }
            let rank = (standing, endpoint.in_flight());
            match best {
                Some((_, least)) if rank > least => {}
                Some((_, least)) if rank == least => {
                    ties += 1;
                    // Reservoir sampling: the k-th tie replaces with probability 1/k.
                    if fastrand::usize(..ties) == 0 {
                        best = Some((endpoint, rank));
                    }
                }
                _ => {
                    ties = 1;
                    best = Some((endpoint, rank));
                }
            }
        }
        let (endpoint, _) = best?;
        endpoint.tried(adapters, now);
        Some(Lease::new(Arc::clone(endpoint)))
    }

    /// The first moment at which an endpoint that is unfit now, or lacks one of `adapters`, is
    /// worth another try.
    pub fn next_fit(
        &self,
        excluded: &[Arc<Endpoint>],
        adapters: &[&Arc<AdapterFacts>],
    ) -> Option<Instant> {
        self.endpoints
            .iter()
            .filter(|endpoint| !is_in(excluded, endpoint))
            .filter_map(|endpoint| endpoint.unfit_until().max(endpoint.lacking_until(adapters)))
            .min()
    }

    /// The adapter for which a request has to wait, because a worker that could have taken it
    /// otherwise said that it lacks it. Only asked while there is no worker to be picked.
    pub fn lacking<'a>(
        &self,
        excluded: &[Arc<Endpoint>],
        adapters: &[&'a Arc<AdapterFacts>],
        now: Instant,
    ) -> Option<&'a Arc<AdapterFacts>> {
        self.endpoints
            .iter()
            .filter(|endpoint| !is_in(excluded, endpoint) && endpoint.is_fit(now))
            .find_map(|endpoint| endpoint.lacking(adapters))
    }

    /// Whether waiting for a worker makes sense. Only asked while there is none.
    pub fn availability(&self) -> Availability {
        let facts = &self.facts;
        let refusal = |reason: &str, message: &str| Refusal {
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        // A suspended one counts the workers that it had; see the facts of a Model.
        if facts.suspended {
            let message = "it is suspended and has no workers";
            return Availability::Refused(refusal("Suspended", message));
        }
        if facts.replicas == 0 {
            let message = "it is scaled to zero replicas";
            return Availability::Refused(refusal("ScaledToZero", message));
        }
        let told = || refusal(&facts.reason, &facts.message);
        match facts.hope {
            Hope::Good => Availability::Expected,
            // One that served before may have workers that are just being moved to another node,
            // of which the status does not tell at once.
            Hope::None if facts.commit.is_none() => Availability::Refused(told()),
            Hope::None | Hope::Faint => Availability::Doubtful(told()),
        }
    }

    /// Whether some worker is known to serve a commit that begins with `prefix`.
    pub(super) fn serves(&self, prefix: &str) -> bool {
        self.endpoints
            .iter()
            .any(|e| e.commit().is_some_and(|c| c.as_str().starts_with(prefix)))
    }
}

fn is_in(endpoints: &[Arc<Endpoint>], one: &Arc<Endpoint>) -> bool {
    endpoints.iter().any(|other| Arc::ptr_eq(other, one))
}
