//! What this program counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// All metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are gathered.
    pub registry: Registry,
    /// Bytes of LFS objects that came from the registry.
    pub fetched_bytes: IntCounter,
    /// Complete checkouts on the node.
    pub checkouts: IntGauge,
    /// Volumes that are staged.
    pub volumes: IntGauge,
    /// Adapters of Models with a volume here that are on the node.
    pub adapters: IntGauge,
    /// Those that are not.
    pub adapters_missing: IntGauge,
    /// Seconds that a call of `NodeStageVolume` took, whatever its outcome.
    pub stage_seconds: Histogram,
    /// Bytes that the staged volumes show beyond those that they take on the disk.
    pub bytes_shared: IntGauge,
    /// Bytes that objects and checkouts take on the disk, each inode once.
    pub disk_bytes: IntGauge,
    /// Bytes on the disk of what was written to volumes that are not on the node at present.
    pub left_bytes: IntGauge,
    /// Bytes of objects that were read again and were as they should be.
    pub scrubbed_bytes: IntCounter,
    /// Objects whose bytes were found to have changed on the disk.
    pub damaged_objects: IntCounter,
    /// Bytes that were deleted because nothing used them.
    pub collected_bytes: IntCounter,
}

impl Metrics {
    /// Metrics at zero.
    ///
    /// # Errors
    /// A name is not valid or there twice.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let stage_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "hyprstream_csi_stage_seconds",
                "Duration of NodeStageVolume.",
            )
            .buckets(vec![
                0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 120.0,
            ]),
        )?;
        registry.register(Box::new(stage_seconds.clone()))?;
        Ok(Self {
            fetched_bytes: counter(
                "hyprstream_csi_fetched_bytes_total",
                "Bytes of LFS objects that came from the registry.",
            )?,
            checkouts: gauge(
                "hyprstream_csi_checkouts",
                "Complete checkouts on the node.",
            )?,
            volumes: gauge("hyprstream_csi_volumes", "Volumes that are staged.")?,
            adapters: gauge(
                "hyprstream_csi_adapters",
                "Adapters of Models with a volume here that are on the node.",
            )?,
            adapters_missing: gauge(
                "hyprstream_csi_adapters_missing",
                "Adapters of Models with a volume here that are not on the node.",
            )?,
            bytes_shared: gauge(
                "hyprstream_csi_bytes_shared",
                "Bytes that staged volumes show beyond those that they take on the disk.",
            )?,
            disk_bytes: gauge(
                "hyprstream_csi_disk_bytes",
                "Bytes that objects and checkouts take on the disk, each inode once.",
            )?,
            left_bytes: gauge(
                "hyprstream_csi_left_bytes",
                "Bytes on the disk of what was written to volumes that are not on the node now.",
            )?,
            scrubbed_bytes: counter(
                "hyprstream_csi_scrubbed_bytes_total",
                "Bytes of objects that were read again and were as they should be.",
            )?,
            damaged_objects: counter(
                "hyprstream_csi_damaged_objects_total",
                "Objects whose bytes were found to have changed on the disk.",
            )?,
            collected_bytes: counter(
                "hyprstream_csi_collected_bytes_total",
                "Bytes that were deleted because nothing used them.",
            )?,
            stage_seconds,
            registry,
        })
    }
}
