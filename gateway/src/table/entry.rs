//! One Model of the table.

use std::{fmt, sync::Arc, time::Instant};

use hyprstream_contract::CommitId;

use super::ModelKey;
use crate::endpoint::{Endpoint, Lease};

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

/// What the gateway needs to know of a Model beside its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Which Model.
    pub key: ModelKey,
    /// Its repository without credentials.
    pub repository: String,
    /// What its source follows.
    pub reference: Reference,
    /// The commit that its status names.
    pub commit: Option<CommitId>,
    /// Wanted workers.
    pub replicas: u32,
    /// Nothing is done for it at present.
    pub suspended: bool,
    /// It cannot become ready until somebody changes something.
    pub stalled: bool,
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

/// Why a Model has no worker for a request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// One is expected: waiting helps.
    Expected,
    /// None will come by itself.
    Refused {
        /// CamelCase reason.
        reason: String,
        /// A sentence for the client.
        message: String,
    },
}

impl ModelEntry {
    /// A lease on the least loaded worker that is fit and not in `excluded`. Among equally loaded
    /// ones each is as likely, because several gateways must not all choose the same.
    pub fn pick(&self, excluded: &[Arc<Endpoint>], now: Instant) -> Option<Lease> {
        let mut best: Option<(&Arc<Endpoint>, usize)> = None;
        let mut ties = 0_usize;
        for endpoint in &self.endpoints {
            if !endpoint.is_fit(now) || excluded.iter().any(|other| Arc::ptr_eq(other, endpoint)) {
                continue;
            }
            let load = endpoint.in_flight();
            match best {
                Some((_, least)) if load > least => {}
                Some((_, least)) if load == least => {
                    ties += 1;
                    // Reservoir sampling: the k-th tie replaces with probability 1/k.
                    if fastrand::usize(..ties) == 0 {
                        best = Some((endpoint, load));
                    }
                }
                _ => {
                    ties = 1;
                    best = Some((endpoint, load));
                }
            }
        }
        let (endpoint, _) = best?;
        endpoint.tried(now);
        Some(Lease::new(Arc::clone(endpoint)))
    }

    /// The first moment at which an endpoint that is unfit now is worth another try.
    pub fn next_fit(&self, excluded: &[Arc<Endpoint>]) -> Option<Instant> {
        self.endpoints
            .iter()
            .filter(|endpoint| !excluded.iter().any(|other| Arc::ptr_eq(other, endpoint)))
            .filter_map(|endpoint| endpoint.unfit_until())
            .min()
    }

    /// Whether waiting for a worker makes sense. Only asked while there is none.
    pub fn availability(&self) -> Availability {
        let facts = &self.facts;
        let refused = |reason: &str, message: String| Availability::Refused {
            reason: reason.to_owned(),
            message,
        };
        // A suspended one counts the workers that it had; see the facts of a Model.
        if facts.suspended {
            return refused("Suspended", "it is suspended and has no workers".to_owned());
        }
        if facts.replicas == 0 {
            return refused("ScaledToZero", "it is scaled to zero replicas".to_owned());
        }
        // A Model that served before has a last known good commit, which the operator brings
        // back; one that never did fails until somebody changes something.
        if facts.stalled && facts.commit.is_none() {
            return refused(&facts.reason, facts.message.clone());
        }
        Availability::Expected
    }

    /// Whether some worker is known to serve a commit that begins with `prefix`.
    pub(super) fn serves(&self, prefix: &str) -> bool {
        self.endpoints
            .iter()
            .any(|e| e.commit().is_some_and(|c| c.as_str().starts_with(prefix)))
    }
}
