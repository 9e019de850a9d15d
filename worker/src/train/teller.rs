//! What people see of a run: a bar on a terminal, else a line a minute.

use std::time::{Duration, Instant};

use hyprstream_training::{Event, Observer, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use tracing::{debug, info, warn};

/// Between two lines of a log.
const EVERY: Duration = Duration::from_mins(1);

/// What is told of as a wait for the disk.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Tells people of a run.
pub(super) struct Teller {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
    loss: Option<f64>,
}

impl Teller {
    /// On a terminal, or into the log.
    pub(super) fn new(on_terminal: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}");
        let bar = on_terminal.then(|| {
            let bar = ProgressBar::new(0);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self {
            bar,
            told: None,
            loss: None,
        }
    }

    /// The loss of the last step.
    pub(super) fn loss(&self) -> Option<f64> {
        self.loss
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, progress: &Progress) {
        self.loss = Some(progress.loss);
        let pace = progress.tokens_per_second();
        if let Some(bar) = &self.bar {
            let left = progress
                .remaining
                .map(|left| humantime::format_duration(Duration::from_secs(left.as_secs())));
            let left = left.map_or_else(String::new, |left| format!(", {left} left"));
            bar.set_length(progress.steps);
            bar.set_position(progress.step);
            bar.set_message(format!(
                "loss {:.4}, {pace:.0} tokens/s{left}",
                progress.loss
            ));
        }
        let is_due = self.told.is_none_or(|told| told.elapsed() >= EVERY);
        // A bar and lines would be in each other's way.
        let is_told = self.bar.is_none() && (is_due || progress.step == progress.steps);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    step = progress.step,
                    steps = progress.steps,
                    epoch = progress.epoch,
                    loss = progress.loss,
                    accuracy = progress.accuracy,
                    gradient_norm = progress.gradient_norm,
                    learning_rate = progress.learning_rate,
                    tokens_per_second = pace,
                    remaining_seconds = progress.remaining.map(|left| left.as_secs()),
                    "trained"
                )
            };
        }
        if is_told {
            self.told = Some(Instant::now());
            line!(info);
        } else {
            line!(debug);
        }
    }
}

impl Observer for Teller {
    fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Step(progress) => self.step(progress),
            Event::Skipped { step, loss, norm } => {
                warn!(step, loss, norm, "a step is skipped: it is not finite");
            }
            Event::Halved { tokens, message } => {
                warn!(
                    tokens,
                    message, "memory does not suffice: goes on in smaller parts"
                );
            }
            Event::Evaluated {
                step,
                loss,
                accuracy,
                better,
            } => info!(step, loss, accuracy, better, "evaluated"),
            Event::Saved { step, path, cost } => {
                debug!(
                    step,
                    path = %path.display(),
                    bytes = cost.bytes,
                    stood_still_ms = cost.stood_still.as_secs_f64() * 1e3,
                    waited_ms = cost.waited.as_secs_f64() * 1e3,
                    took_ms = cost.took.as_secs_f64() * 1e3,
                    "a checkpoint is written"
                );
                if cost.waited >= LONG_WAIT {
                    warn!(
                        step,
                        waited_seconds = cost.waited.as_secs_f64(),
                        "training waited for the disk: checkpoints are asked for faster than it \
                         takes them; raise checkpoints.every"
                    );
                }
            }
            Event::NotSaved { step, error } => {
                let error = super::anyhow_chain(error);
                warn!(
                    step,
                    error, "a checkpoint could not be written; the one before stays"
                );
            }
        }
    }
}
