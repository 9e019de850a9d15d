//! What is counted.

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};

/// The registry's metrics, registered once.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) upstream_downloads: IntCounter,
    pub(crate) upstream_bytes: IntCounter,
    pub(crate) lfs_served_bytes: IntCounter,
    pub(crate) lfs_received_bytes: IntCounter,
    pub(crate) mirrors: IntGaugeVec,
    pub(crate) pushes: IntCounterVec,
    pub(crate) requests: IntCounterVec,
    pub(crate) corrupt: IntCounterVec,
    pub(crate) handshakes: IntCounterVec,
    pub(crate) git_processes: IntGauge,
    pub(crate) free_bytes: IntGauge,
}

impl Metrics {
    /// Metrics at zero in a registry of their own.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            upstream_downloads: IntCounter::new(
                "hyprstream_registry_upstream_downloads_total",
                "LFS objects downloaded from upstreams",
            )?,
            upstream_bytes: IntCounter::new(
                "hyprstream_registry_upstream_bytes_total",
                "Bytes of LFS objects downloaded from upstreams",
            )?,
            lfs_served_bytes: IntCounter::new(
                "hyprstream_registry_lfs_served_bytes_total",
                "Bytes of LFS objects sent to clients",
            )?,
            lfs_received_bytes: IntCounter::new(
                "hyprstream_registry_lfs_received_bytes_total",
                "Bytes of LFS objects taken from clients",
            )?,
            mirrors: IntGaugeVec::new(
                Opts::new(
                    "hyprstream_registry_mirrors",
                    "Mirrored commits asked for since start",
                ),
                &["state"],
            )?,
            pushes: IntCounterVec::new(
                Opts::new("hyprstream_registry_push_total", "Pushes"),
                &["result"],
            )?,
            requests: IntCounterVec::new(
                Opts::new("hyprstream_registry_requests_total", "HTTP requests"),
                &["protocol", "code"],
            )?,
            handshakes: IntCounterVec::new(
                Opts::new(
                    "hyprstream_registry_tls_failures_total",
                    "Connections that came to nothing before a request, by reason",
                ),
                &["reason"],
            )?,
            corrupt: IntCounterVec::new(
                Opts::new(
                    "hyprstream_registry_corrupt_total",
                    "What was found bad on the disk and set aside",
                ),
                &["kind"],
            )?,
            git_processes: IntGauge::new(
                "hyprstream_registry_git_processes",
                "Git processes that serve clients now",
            )?,
            free_bytes: IntGauge::new(
                "hyprstream_registry_free_bytes",
                "Bytes free on the file system of the root",
            )?,
            registry,
        };
        let all: [Box<dyn Collector>; 11] = [
            Box::new(metrics.handshakes.clone()),
            Box::new(metrics.upstream_downloads.clone()),
            Box::new(metrics.upstream_bytes.clone()),
            Box::new(metrics.lfs_served_bytes.clone()),
            Box::new(metrics.lfs_received_bytes.clone()),
            Box::new(metrics.mirrors.clone()),
            Box::new(metrics.pushes.clone()),
            Box::new(metrics.requests.clone()),
            Box::new(metrics.corrupt.clone()),
            Box::new(metrics.git_processes.clone()),
            Box::new(metrics.free_bytes.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }
}
