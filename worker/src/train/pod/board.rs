//! What is known of a job, for whoever asks.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use hyprstream_contract::training::{Checkpoint, LastWords, Output, Phase, Progress, Verdict};
use hyprstream_training::{Cursor, Event, Report};

use super::{curve::Curve, metrics::Metrics};

/// Most notices at once.
const MAX_NOTICES: usize = 16;

/// What is known of a job, shared by all threads of its pod.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) metrics: Metrics,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    progress: Progress,
    curve: Curve,
    /// By what they are about: a newer one takes the place of the older.
    notices: VecDeque<(&'static str, String)>,
    gates: Vec<Verdict>,
    output: Option<Output>,
}

impl Board {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            metrics: Metrics::new()?,
            known: Mutex::default(),
        })
    }

    /// How far the job is.
    pub(super) fn progress(&self) -> Progress {
        let known = self.lock();
        Progress {
            curve: known.curve.points(),
            notices: known.notices.iter().map(|(_, text)| text.clone()).collect(),
            ..known.progress.clone()
        }
    }

    /// How it ended.
    pub(super) fn words(&self, reason: &str, message: &str) -> LastWords {
        let known = self.lock();
        let Progress {
            step,
            steps,
            metrics,
            dataset_digest,
            checkpoint,
            ..
        } = known.progress.clone();
        LastWords {
            reason: reason.to_owned(),
            message: message.to_owned(),
            step,
            steps,
            metrics,
            dataset_digest,
            checkpoint,
            gates: known.gates.clone(),
            output: known.output.clone(),
        }
    }

    /// Takes over what a pod before said when all was done.
    pub(super) fn take_words(&self, words: LastWords) {
        let mut known = self.lock();
        known.progress.step = words.step;
        known.progress.steps = words.steps;
        known.progress.metrics = words.metrics;
        known.progress.dataset_digest = words.dataset_digest;
        known.progress.checkpoint = words.checkpoint;
        known.gates = words.gates;
    }

    /// Takes over how far a pod before was, for one that goes on from `step`.
    pub(super) fn take_progress(&self, before: Progress, step: u64) {
        let mut known = self.lock();
        known.curve = Curve::resumed(&before.curve, step);
        known.progress.metrics = before.metrics;
        known.progress.epoch = before.epoch;
        known.progress.steps = before.steps;
    }

    /// Where the run begins, or ended.
    pub(super) fn cursor(&self, cursor: &Cursor) {
        let mut known = self.lock();
        known.progress.step = cursor.step;
        known.set("tokens", cursor.tokens as f64);
        known.set("skippedSteps", cursor.skipped as f64);
        self.metrics.step.set(cursor.step as i64);
        self.metrics.tokens.set(cursor.tokens as i64);
        self.metrics.skipped.set(cursor.skipped as i64);
    }

    /// What was seen of the data.
    pub(super) fn read(&self, report: &Report) {
        let mut known = self.lock();
        known.progress.dataset_digest = Some(report.digest.clone());
        known.set("records", report.records as f64);
        known.set("samples", report.samples as f64);
        known.set("badRecords", report.bad as f64);
        known.set("truncatedSamples", report.truncated as f64);
        known.set("cutAwaySamples", report.cut_away as f64);
        known.set("endlessAnswers", report.endless as f64);
        drop(known);
        if !report.left_out.is_empty() {
            let files = report.left_out.join(", ");
            let text = format!("nothing is learnt from {files}, which eval or gates name");
            self.note("files", text);
        }
        if report.is_shared {
            let text = "the dataset's file is learnt from and judged by: its figures say little";
            self.note("files", text.to_owned());
        }
        if let Some(advice) = report.joined_advice() {
            self.note("texts", advice.to_owned());
        }
        if report.bad > 0 {
            let (bad, first) = (report.bad, report.first_bad());
            self.note("records", format!("{bad} records are left out, as {first}"));
        }
        if report.truncated + report.cut_away > 0 {
            let (cut, away) = (report.truncated, report.cut_away);
            let text = format!(
                "{cut} samples are longer than maxLength and were cut; of {away} more nothing was \
                 left to learn"
            );
            self.note("samples", text);
        }
        if report.endless > 0 {
            let text = format!(
                "{} answers end without a token by which serving would stop",
                report.endless
            );
            self.note("endless", text);
        }
    }

    /// What it is at.
    pub(super) fn phase(&self, phase: Phase) {
        self.lock().progress.phase = phase;
    }

    /// What happens in the run.
    pub(super) fn hear(&self, event: &Event<'_>) {
        match *event {
            Event::Step(step) => self.step(step),
            Event::Skipped { .. } => {
                let mut known = self.lock();
                let skipped = known.progress.metrics.get("skippedSteps").unwrap_or(&0.0) + 1.0;
                known.set("skippedSteps", skipped);
                self.metrics.skipped.set(skipped as i64);
            }
            Event::Halved { tokens, message } => {
                let text = format!(
                    "memory does not suffice ({message}): at most {tokens} tokens are computed at \
                     once, and results differ by the order of sums"
                );
                self.note("memory", text);
            }
            Event::Evaluated { loss, accuracy, .. } => {
                let mut known = self.lock();
                known.set("evalLoss", loss);
                known.set("evalAccuracy", accuracy);
                known.curve.evaluated(loss);
                self.metrics.eval_loss.set(loss);
            }
            Event::Saved { .. } => self.clear("checkpoint"),
            Event::NotSaved { step, error } => {
                let why = super::chain(error);
                let text = format!("the checkpoint of step {step} could not be written: {why}");
                self.note("checkpoint", text);
            }
        }
    }

    fn step(&self, step: &hyprstream_training::Progress) {
        let mut known = self.lock();
        known.progress.step = step.step;
        known.progress.steps = step.steps;
        known.progress.epoch = step.epoch;
        known.progress.remaining_seconds = step.remaining.map(|left| left.as_secs());
        let tokens = known.progress.metrics.get("tokens").unwrap_or(&0.0) + step.tokens as f64;
        for (name, value) in [
            ("loss", step.loss),
            ("accuracy", step.accuracy),
            ("learningRate", step.learning_rate),
            ("gradientNorm", step.gradient_norm),
            ("tokensPerSecond", step.tokens_per_second()),
            ("tokens", tokens),
        ] {
            known.set(name, value);
        }
        known.curve.step(step.step, step.loss);
        let metrics = &self.metrics;
        metrics.loss.set(step.loss);
        metrics.step.set(step.step as i64);
        metrics.steps.set(step.steps as i64);
        metrics.tokens_per_second.set(step.tokens_per_second());
        metrics.tokens.set(tokens as i64);
    }

    /// The registry has this checkpoint.
    pub(super) fn has(&self, checkpoint: Checkpoint) {
        self.metrics.checkpoint_step.set(checkpoint.step as i64);
        self.lock().progress.checkpoint = Some(checkpoint);
    }

    /// What the gates found.
    pub(super) fn judged(&self, gates: Vec<Verdict>) {
        self.lock().gates = gates;
    }

    /// The adapter is there.
    pub(super) fn output(&self, output: Output) {
        self.lock().output = Some(output);
    }

    /// The figures by now.
    pub(super) fn figures(&self) -> BTreeMap<String, f64> {
        self.lock().progress.metrics.clone()
    }

    /// People should know this of `what`.
    pub(super) fn note(&self, what: &'static str, text: String) {
        let mut known = self.lock();
        known.notices.retain(|(about, _)| *about != what);
        known.notices.push_back((what, text));
        if known.notices.len() > MAX_NOTICES {
            known.notices.pop_front();
        }
    }

    /// There is nothing to know of `what` any more.
    pub(super) fn clear(&self, what: &str) {
        self.lock().notices.retain(|(about, _)| *about != what);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one assignment after the other, so that half of them are as good.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Sets a figure; what is no finite number is no figure.
    fn set(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.progress.metrics.insert(name.to_owned(), value);
        } else {
            self.progress.metrics.remove(name);
        }
    }
}
