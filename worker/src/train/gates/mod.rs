//! What a finished adapter shows before it is published.

use std::path::Path;

use hyprstream_contract::training::{TrainingPod, Verdict};
use hyprstream_training::{Control, Job, Learner, Prepared};

/// What is judged, and with what.
pub(crate) struct Judging<'a> {
    /// The job.
    pub(crate) job: &'a Job,
    /// Its model and data.
    pub(crate) prepared: &'a Prepared,
    /// What the adapter must show: its `gates`.
    pub(crate) pod: &'a TrainingPod,
    /// What trained it.
    pub(crate) learner: &'a mut dyn Learner,
    /// The adapter's numbers, as the learner takes them.
    pub(crate) values: &'a [f32],
    /// The folder with PEFT's pair, as it was written.
    pub(crate) adapter: &'a Path,
    /// Threads that compute; `None` for what the machine allows.
    pub(crate) threads: Option<usize>,
    /// Ends it from another thread.
    pub(crate) control: &'a Control,
    /// Is told how far it is, for people.
    pub(crate) tell: &'a dyn Fn(&str),
}

/// What was found, in the order of the gates. Nothing is measured yet.
pub(crate) fn judge(judging: Judging<'_>) -> Vec<Verdict> {
    let Judging {
        job: _,
        prepared: _,
        pod: _,
        learner: _,
        values: _,
        adapter: _,
        threads: _,
        control: _,
        tell: _,
    } = judging;
    Vec::new()
}
