//! Pods that were killed. Kubernetes counts none of them against `backoffLimit`, since whoever kills
//! them, a node or a person, seldom says something of the job. One that needs more memory than it may
//! have is killed again and again, and so it would go on for good.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

use super::{
    disk,
    pod::{End, end},
};
use crate::training::fetch::disruption;

/// Pods that were killed one after the other without a new checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kills {
    all: usize,
    /// Those that needed more memory than they may have.
    out_of_memory: usize,
}

impl Kills {
    /// Those up to the last pod, since the last checkpoint was heard of. `pods` are oldest first. What
    /// the cluster takes away counts for nothing.
    pub(super) fn of(pods: &[Arc<Pod>], checkpoint: Option<Timestamp>) -> Self {
        let mut kills = Self::default();
        let own = pods.iter().rev().filter(|pod| disruption(pod).is_none());
        for end in own.filter_map(|pod| end(pod)) {
            match end {
                End::Killed {
                    at,
                    is_out_of_memory,
                } if checkpoint.is_none_or(|known| at.is_some_and(|at| at > known)) => {
                    kills.all += 1;
                    kills.out_of_memory += usize::from(is_out_of_memory);
                }
                End::Killed { .. } | End::Other => break,
            }
        }
        kills
    }

    /// Whether that is more than a job with this `backoffLimit` may.
    pub(super) fn are_too_many(self, backoff_limit: i32) -> bool {
        let limit = usize::try_from(backoff_limit).unwrap_or(0);
        self.out_of_memory > limit || self.all >= disk::MOST.max(limit + 1)
    }

    /// What is said behind how the last of them ended.
    pub(super) fn verdict(self) -> String {
        format!(
            "{} pods in a row were killed without a new checkpoint; its branch has the last one.",
            self.all
        )
    }
}
