//! Metrics of the gateway.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector, proto::LabelPair,
};

use crate::table::{ModelKey, Table};

/// Metrics of the gateway. The label `model` is `NAMESPACE/NAME`, or empty for requests that
/// reached no Model, so that clients cannot make labels. A request with adapters counts for its
/// Model.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) in_flight: IntGaugeVec,
    pub(crate) held: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) retries: IntCounterVec,
    pub(crate) truncated: IntCounterVec,
    pub(crate) added: Histogram,
    pub(crate) first_byte: HistogramVec,
    pub(crate) hold: Histogram,
    pub(crate) models: IntGauge,
    pub(crate) adapters: IntGauge,
    pub(crate) endpoints: IntGauge,
    pub(crate) unread: IntGaugeVec,
}

/// Buckets of times that the gateway itself takes, in seconds.
const FINE: [f64; 12] = [
    50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 0.1, 0.5, 1.0,
];
/// Buckets of times that workers take, in seconds.
const COARSE: [f64; 12] = [
    5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

impl Metrics {
    /// Metrics that `registry` shows.
    ///
    /// # Errors
    /// One of the names is taken in that registry.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        fn add<C: Collector + Clone + 'static>(r: &Registry, c: C) -> prometheus::Result<C> {
            r.register(Box::new(c.clone()))?;
            Ok(c)
        }
        let opts = |name: &str, help: &str| Opts::new(format!("hyprstream_gateway_{name}"), help);
        let times = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())
        };
        Ok(Self {
            requests: add(
                registry,
                IntCounterVec::new(
                    opts(
                        "requests_total",
                        "Requests by status; 499: the client went away",
                    ),
                    &["model", "code"],
                )?,
            )?,
            in_flight: add(
                registry,
                IntGaugeVec::new(opts("in_flight", "Requests that workers have"), &["model"])?,
            )?,
            held: add(
                registry,
                IntGauge::with_opts(opts("held", "Requests that wait for a worker"))?,
            )?,
            connections: add(
                registry,
                IntGauge::with_opts(opts("connections", "Open client connections"))?,
            )?,
            retries: add(
                registry,
                IntCounterVec::new(
                    opts(
                        "retries_total",
                        "Attempts that were repeated on another worker",
                    ),
                    &["reason"],
                )?,
            )?,
            truncated: add(
                registry,
                IntCounterVec::new(
                    opts("truncated_total", "Answers that a worker broke off"),
                    &["model"],
                )?,
            )?,
            added: add(
                registry,
                Histogram::with_opts(times(
                    "forward_seconds",
                    "From the request's body to its forwarding, for requests that did not wait",
                    &FINE,
                ))?,
            )?,
            first_byte: add(
                registry,
                HistogramVec::new(
                    times(
                        "first_byte_seconds",
                        "From forwarding to the answer's head",
                        &COARSE,
                    ),
                    &["model"],
                )?,
            )?,
            hold: add(
                registry,
                Histogram::with_opts(times(
                    "hold_seconds",
                    "How long requests waited for a worker",
                    &COARSE,
                ))?,
            )?,
            models: add(
                registry,
                IntGauge::with_opts(opts("models", "Models in the table"))?,
            )?,
            adapters: add(
                registry,
                IntGauge::with_opts(opts("adapters", "Adapters of Models in the table"))?,
            )?,
            endpoints: add(
                registry,
                IntGauge::with_opts(opts("endpoints", "Ready workers in the table"))?,
            )?,
            unread: add(
                registry,
                IntGaugeVec::new(
                    opts(
                        "unread_objects",
                        "Objects with a field that could not be read and counts as absent",
                    ),
                    &["kind"],
                )?,
            )?,
        })
    }

    /// Follows a new table: its sizes, and no series of Models that are gone.
    pub fn follow(&self, old: &Table, new: &Table) {
        self.models.set(new.models().len() as i64);
        self.adapters.set(new.adapter_count() as i64);
        self.endpoints
            .set(new.models().map(|entry| entry.endpoints.len() as i64).sum());
        for entry in old.models() {
            if new.get(&entry.facts.key).is_none() {
                self.forget(&entry.facts.key);
            }
        }
    }

    fn forget(&self, key: &ModelKey) {
        let model = key.to_string();
        for family in self.requests.collect() {
            for metric in family.get_metric() {
                let value = |name: &str| {
                    metric
                        .get_label()
                        .iter()
                        .find(|l| l.name() == name)
                        .map(LabelPair::value)
                };
                if let (Some(code), true) = (value("code"), value("model") == Some(&model)) {
                    let _ = self.requests.remove_label_values(&[&model, code]);
                }
            }
        }
        // Those that were never used are not there to be removed.
        let _ = self.in_flight.remove_label_values(&[&model]);
        let _ = self.truncated.remove_label_values(&[&model]);
        let _ = self.first_byte.remove_label_values(&[&model]);
    }
}
