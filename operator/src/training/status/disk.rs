//! Pods whose disk was full. Kubernetes starts another after each, with growing pauses, and counts
//! none of them against `backoffLimit`: a node's disk may have been freed meanwhile. One whose own
//! disk is too small would go on so for good.

use std::sync::Arc;

use hyprstream_contract::training::reason::DISK_FULL;
use k8s_openapi::api::core::v1::Pod;

use super::pod::last_words;
use crate::reporting::conditions::sentence;

/// How many pods in a row may end so without a new checkpoint. With the pauses that the controller
/// of Jobs makes, 10 s and then twice as long each time, the last one begins after five minutes.
pub(super) const MOST: usize = 6;

/// How many pods up to the last that said anything ended so, without a new checkpoint between two of
/// them. `pods` are oldest first.
pub(super) fn in_a_row(pods: &[Arc<Pod>]) -> usize {
    let mut all = pods.iter().rev().filter_map(|pod| last_words(pod));
    let Some(last) = all.next().filter(|words| words.reason == DISK_FULL) else {
        return 0;
    };
    let is_same = |words: &_| {
        let hyprstream_contract::training::LastWords {
            reason, checkpoint, ..
        } = words;
        reason == DISK_FULL && *checkpoint == last.checkpoint
    };
    1 + all.take_while(is_same).count()
}

/// What to do, behind what a pod said.
pub(super) fn advice(said: &str) -> String {
    format!(
        "{} If the disk of its node is full, free it; if its own is, make another TrainingJob with \
         more spec.resources.storage or a smaller spec.checkpoint.keep.",
        sentence(said)
    )
}
