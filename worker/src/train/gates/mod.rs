//! What a finished adapter shows before it is published.

use std::path::Path;

use hyprstream_contract::training::{Gate, Verdict};
use hyprstream_training::{Control, Job, Learner, Prepared};

use super::TrainArgs;

/// What is judged, and with what.
#[allow(dead_code, reason = "what judges is made beside this")]
pub(crate) struct Judging<'a> {
    /// The job.
    pub(crate) job: &'a Job,
    /// Its model and data.
    pub(crate) prepared: &'a Prepared,
    /// What the adapter must show, beside serving parity.
    pub(crate) gates: &'a [Gate],
    /// The adapter's name, by which the last known good is found in the model's folder.
    pub(crate) name: &'a str,
    /// What trained it. It is dropped before the engine is opened, so that the weights are never in
    /// memory twice.
    pub(crate) learner: Box<dyn Learner>,
    /// The adapter's numbers, as the learner takes them.
    pub(crate) values: &'a [f32],
    /// The folder with PEFT's pair, as it was written.
    pub(crate) adapter: &'a Path,
    /// Threads and kernels that compute.
    pub(crate) args: &'a TrainArgs,
    /// Ends it from another thread.
    pub(crate) control: &'a Control,
    /// Is told how far it is, for people.
    pub(crate) tell: &'a dyn Fn(&str),
}

/// Nothing was found: the control ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("judging was ended before all was measured")]
pub(crate) struct Cancelled;

/// What was found. Nothing is measured yet.
///
/// # Errors
/// [`Cancelled`].
#[allow(
    clippy::unnecessary_wraps,
    clippy::needless_pass_by_value,
    reason = "what judges is made beside this"
)]
pub(crate) fn judge(judging: Judging<'_>) -> Result<Vec<Verdict>, Cancelled> {
    (judging.tell)("nothing is measured");
    Ok(Vec::new())
}
