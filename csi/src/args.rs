//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use hyprstream_telemetry::LogFormat;

use crate::gc::{Policy, Scrub};

/// CSI node plugin of hyprstream: shows commits of git repositories as volumes.
#[derive(Clone, Debug, Parser)]
#[command(name = "hyprstream-csi", version)]
pub struct Args {
    /// Where to serve CSI: `unix://` and a path.
    #[arg(long, env = "HYPRSTREAM_ENDPOINT", default_value = "unix:///csi/csi.sock", value_parser = socket_path)]
    pub endpoint: PathBuf,

    /// The kubelet's folder for plugin registration, as this process sees it.
    #[arg(
        long,
        env = "HYPRSTREAM_REGISTRATION_DIR",
        default_value = "/registration"
    )]
    pub registration_dir: PathBuf,

    /// Path of the endpoint's socket on the host, for the kubelet.
    #[arg(
        long,
        env = "HYPRSTREAM_HOST_ENDPOINT",
        default_value = "/var/lib/kubelet/plugins/csi.hyprstream.io/csi.sock"
    )]
    pub host_endpoint: String,

    /// The kubelet's folder; the same path on the host and for this process.
    #[arg(
        long,
        env = "HYPRSTREAM_KUBELET_DIR",
        default_value = "/var/lib/kubelet"
    )]
    pub kubelet_dir: PathBuf,

    /// Where fetched files and written data are kept; the same path on the host and for this
    /// process, on a filesystem that overlayfs takes as an upper (ext4, xfs).
    #[arg(
        long,
        env = "HYPRSTREAM_STATE_DIR",
        default_value = "/var/lib/hyprstream"
    )]
    pub state_dir: PathBuf,

    /// Name of the node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// URL of the cluster's registry.
    #[arg(long, env = "HYPRSTREAM_REGISTRY_URL")]
    pub registry_url: String,

    /// File with the authorities (PEM) by which a registry with an https URL is trusted, and by
    /// nobody else. Read again when it changes.
    #[arg(long, env = "HYPRSTREAM_REGISTRY_CA_FILE")]
    pub registry_ca_file: Option<PathBuf>,

    /// File with the token of the nodes for the registry.
    #[arg(long, env = "HYPRSTREAM_REGISTRY_TOKEN_FILE")]
    pub registry_token_file: Option<PathBuf>,

    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, env = "HYPRSTREAM_ADMIN_LISTEN", default_value = "0.0.0.0:9808")]
    pub admin_listen: SocketAddr,

    /// How long to keep files, and what was written to volumes, after their last use.
    #[arg(long, env = "HYPRSTREAM_KEEP_UNUSED", default_value = "24h", value_parser = humantime::parse_duration)]
    pub keep_unused: Duration,

    /// Share of the state directory's disk in use, in percent, from which unused files go at once.
    #[arg(long, env = "HYPRSTREAM_DISK_HIGH_PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub disk_high_percent: u8,

    /// Share of the disk in use, in percent, at which that ends.
    #[arg(long, env = "HYPRSTREAM_DISK_LOW_PERCENT", default_value_t = 75, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub disk_low_percent: u8,

    /// How fast files are read again to find what the disk damaged, in MiB per second; 0: never.
    #[arg(long, env = "HYPRSTREAM_SCRUB_MIB_PER_SECOND", default_value_t = 16)]
    pub scrub_mib_per_second: u32,

    /// Time from the end of one such pass over all files to the beginning of the next.
    #[arg(long, env = "HYPRSTREAM_SCRUB_EVERY", default_value = "24h", value_parser = humantime::parse_duration)]
    pub scrub_every: Duration,

    /// Log filter: a level, or a list of target=level.
    #[arg(long, env = "HYPRSTREAM_LOG", default_value = "info")]
    pub log: String,

    /// Form of log lines: text or json.
    #[arg(long, env = "HYPRSTREAM_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

impl Args {
    /// When unused data goes.
    ///
    /// # Errors
    /// The watermarks are the wrong way round.
    pub fn policy(&self) -> Result<Policy, String> {
        if self.disk_low_percent > self.disk_high_percent {
            return Err(format!(
                "--disk-low-percent {} must not be above --disk-high-percent {}",
                self.disk_low_percent, self.disk_high_percent
            ));
        }
        Ok(Policy {
            keep_unused: self.keep_unused,
            disk_high_percent: self.disk_high_percent,
            disk_low_percent: self.disk_low_percent,
        })
    }
}

impl Args {
    /// How files are read again; `None` if never.
    pub fn scrub(&self) -> Option<Scrub> {
        (self.scrub_mib_per_second > 0).then(|| Scrub {
            bytes_per_second: u64::from(self.scrub_mib_per_second) << 20,
            every: self.scrub_every,
        })
    }
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err("it must be unix:// and an absolute path, as in unix:///csi/csi.sock".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_endpoint_is_a_unix_socket() {
        assert_eq!(
            socket_path("unix:///csi/csi.sock"),
            Ok("/csi/csi.sock".into())
        );
        for wrong in ["tcp://1.2.3.4:5", "/csi/csi.sock", "unix://csi.sock"] {
            assert!(socket_path(wrong).is_err(), "{wrong}");
        }
    }
}
