//! What a scraper sees of a training.

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder,
};

/// The figures of a job under `hyprstream_training_*`.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub(super) loss: Gauge,
    pub(super) eval_loss: Gauge,
    pub(super) step: IntGauge,
    pub(super) steps: IntGauge,
    pub(super) tokens_per_second: Gauge,
    pub(super) tokens: IntGauge,
    pub(super) skipped: IntGauge,
    pub(super) checkpoint_step: IntGauge,
    pub(super) stood_still: Histogram,
    pub(super) to_disk: Histogram,
    pub(super) pushes: IntCounter,
    pub(super) push_failures: IntCounter,
}

impl Metrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        macro_rules! of {
            ($kind:ident, $name:literal, $help:literal) => {{
                let name = concat!("hyprstream_training_", $name);
                let metric = $kind::with_opts(Opts::new(name, $help))?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        let histogram = |name: &str, help: &str, buckets| {
            let name = format!("hyprstream_training_{name}");
            let options = HistogramOpts::new(name, help).buckets(buckets);
            let metric = Histogram::with_opts(options)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        Ok(Self {
            loss: of!(Gauge, "loss", "Loss of the last step."),
            eval_loss: of!(
                Gauge,
                "eval_loss",
                "Loss of what is held back, when it was last measured."
            ),
            step: of!(IntGauge, "step", "Updates that are done."),
            steps: of!(IntGauge, "steps", "Updates in all; 0 while unknown."),
            tokens_per_second: of!(
                Gauge,
                "tokens_per_second",
                "Tokens a second of the last step."
            ),
            tokens: of!(
                IntGauge,
                "tokens",
                "Tokens that were read since the job began."
            ),
            skipped: of!(
                IntGauge,
                "skipped_steps",
                "Steps whose loss was no finite number."
            ),
            checkpoint_step: of!(
                IntGauge,
                "checkpoint_step",
                "The step of the last checkpoint that the registry has."
            ),
            stood_still: histogram(
                "checkpoint_stall_seconds",
                "How long training stood still for a checkpoint.",
                vec![0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0],
            )?,
            to_disk: histogram(
                "checkpoint_seconds",
                "How long a checkpoint took until it was on the pod's disk.",
                vec![0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0],
            )?,
            pushes: of!(
                IntCounter,
                "pushes_total",
                "Commits that the registry took."
            ),
            push_failures: of!(
                IntCounter,
                "push_failures_total",
                "Pushes that it did not take."
            ),
            registry,
        })
    }

    /// All of them in the text format of Prometheus.
    pub(super) fn text(&self) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.unwrap_or_default()
    }
}
