//! States of the adapter that the registry keeps.

use hyprstream_api::{TrainingJob, TrainingJobStatus};
use hyprstream_openai::fine_tuning::{Checkpoint, CheckpointMetrics, Job};
use kube::ResourceExt;

use super::{super::ids, view};

/// The checkpoints of a job that its status still tells, the latest first: the adapter once it is
/// complete, and the last checkpoint before. Older ones are commits of the branch `train/NAME`.
pub(super) fn checkpoints(job: &TrainingJob, shown: &Job) -> Vec<Checkpoint> {
    let Some(status) = &job.status else {
        return Vec::new();
    };
    let output = status.output.as_ref().map(|output| Kept {
        step: status.steps.or(status.step).unwrap_or(0),
        commit: &output.commit,
        model: shown.fine_tuned_model.as_deref(),
        heard: None,
    });
    let last = status.checkpoint.as_ref().map(|checkpoint| Kept {
        step: checkpoint.step,
        commit: &checkpoint.commit,
        model: None,
        heard: checkpoint.time.as_ref().map(|time| time.0.as_second()),
    });
    let last = last.filter(|last| {
        output
            .as_ref()
            .is_none_or(|output| output.commit != last.commit && output.step != last.step)
    });
    let kept = output.into_iter().chain(last);
    kept.map(|kept| kept.tell(job, status)).collect()
}

struct Kept<'a> {
    step: i64,
    commit: &'a str,
    /// What serves it, if something does.
    model: Option<&'a str>,
    /// When it was heard of, in seconds since 1970, if that is told.
    heard: Option<i64>,
}

impl Kept<'_> {
    fn tell(&self, job: &TrainingJob, status: &TrainingJobStatus) -> Checkpoint {
        let repository = status
            .inputs
            .as_ref()
            .map(|inputs| inputs.repository.as_str());
        let lies = || {
            let repository = repository.unwrap_or_default();
            format!("hyprstream://{repository}@{}", self.commit)
        };
        Checkpoint {
            id: ids::of("ftckpt_", &[&job.uid().unwrap_or_default(), self.commit]),
            object: "fine_tuning.job.checkpoint".to_owned(),
            created_at: self.heard.unwrap_or_else(|| told_at(job, status)),
            fine_tuned_model_checkpoint: self.model.map_or_else(lies, str::to_owned),
            fine_tuning_job_id: job.name_any(),
            metrics: self.metrics(status),
            step_number: self.step,
        }
    }

    /// The figures of this very step, as far as they are told.
    fn metrics(&self, status: &TrainingJobStatus) -> CheckpointMetrics {
        let number = |text: &str| text.parse().ok().filter(|value: &f64| value.is_finite());
        let point = status.curve.iter().find(|point| point.step == self.step);
        let is_latest = status.step == Some(self.step);
        let latest = |name| is_latest.then(|| view::figure(status, name)).flatten();
        let valid_loss = latest("evalLoss").or_else(|| number(point?.eval_loss.as_ref()?));
        let valid_accuracy = latest("evalAccuracy");
        // All that is held back is looked at each time, and never a part of it.
        CheckpointMetrics {
            step: self.step as f64,
            train_loss: latest("loss").or_else(|| number(&point?.loss)),
            train_mean_token_accuracy: latest("accuracy"),
            valid_loss,
            valid_mean_token_accuracy: valid_accuracy,
            full_valid_loss: valid_loss,
            full_valid_mean_token_accuracy: valid_accuracy,
        }
    }
}

/// When the status last told of it: at the end, or when it was last written.
fn told_at(job: &TrainingJob, status: &TrainingJobStatus) -> i64 {
    if let Some(end) = &status.completion_time {
        return end.0.as_second();
    }
    let written = job
        .managed_fields()
        .iter()
        .filter(|entry| entry.subresource.as_deref() == Some("status"));
    let last = written
        .filter_map(|entry| Some(entry.time.as_ref()?.0.as_second()))
        .max();
    last.unwrap_or_else(|| view::created_at(job))
}
