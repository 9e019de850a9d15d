//! What the operator counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// All metrics of the operator.
#[derive(Clone)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Reconciliations by result: `ok` or the reason of the error.
    pub reconciles: IntCounterVec,
    /// Duration of reconciliations.
    pub reconcile_seconds: Histogram,
    /// Objects that our types cannot hold, by kind.
    pub malformed: IntCounterVec,
    /// Models by whether they are ready.
    pub models: IntGaugeVec,
    /// Adapters by whether they are ready.
    pub adapters: IntGaugeVec,
    /// TrainingJobs by whether they are complete.
    pub training_jobs: IntGaugeVec,
    /// Requests that change something, by kind of object.
    pub writes: IntCounterVec,
    /// When certificates end, in seconds since 1970, by which.
    pub certificate_ends: IntGaugeVec,
    /// 1 while this process leads.
    pub leader: IntGauge,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// A name is taken or malformed, which would be a bug.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let reconciles = counter(
            "hyprstream_operator_reconcile_total",
            "Reconciliations by result.",
            "result",
        )?;
        let writes = counter(
            "hyprstream_operator_writes_total",
            "Requests to the API server that change something, by kind.",
            "kind",
        )?;
        let malformed = counter(
            "hyprstream_operator_malformed_objects_total",
            "Objects found that cannot be read, by kind; each counts once per fault.",
            "kind",
        )?;
        let reconcile_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "hyprstream_operator_reconcile_duration_seconds",
                "Duration of reconciliations.",
            )
            .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
        )?;
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["ready"]);
        let models = gauge(
            "hyprstream_operator_models",
            "Models by whether they are ready.",
        )?;
        let adapters = gauge(
            "hyprstream_operator_adapters",
            "Adapters by whether they are ready.",
        )?;
        let training_jobs = gauge(
            "hyprstream_operator_training_jobs",
            "TrainingJobs by whether they are complete.",
        )?;
        let leader = IntGauge::new(
            "hyprstream_operator_leader",
            "1 while this process holds the Lease.",
        )?;
        let certificate_ends = IntGaugeVec::new(
            Opts::new(
                "hyprstream_operator_certificate_end_timestamp_seconds",
                "When a certificate ends, in seconds since 1970. It is made anew at two thirds of its time.",
            ),
            &["certificate"],
        )?;
        registry.register(Box::new(certificate_ends.clone()))?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        registry.register(Box::new(models.clone()))?;
        registry.register(Box::new(adapters.clone()))?;
        registry.register(Box::new(training_jobs.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        Ok(Self {
            registry,
            reconciles,
            reconcile_seconds,
            malformed,
            models,
            adapters,
            training_jobs,
            writes,
            certificate_ends,
            leader,
        })
    }
}
