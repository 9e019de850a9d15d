//! The command line.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use hyprstream_api::Device;
use hyprstream_telemetry::LogFormat;

use crate::policy::WorkerTls;

/// Makes the commits that Models name answer requests.
#[derive(Debug, Parser)]
#[command(name = "hyprstream-operator", version)]
pub struct Args {
    /// What to log, as target=level,...
    #[arg(long, env = "HYPRSTREAM_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Form of the log: json or text.
    #[arg(long, env = "HYPRSTREAM_LOG_FORMAT", default_value_t, global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML.
    Crds,
    /// Remove what was made for Models, and keep the Models: for use before an uninstall.
    Cleanup(CleanupArgs),
}

/// Options of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Namespace of the operator; its Lease lies there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this pod, by which it holds the Lease.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Where the registry answers, as https://hyprstream-registry.NAMESPACE.svc.
    #[arg(long, env = "HYPRSTREAM_REGISTRY_URL")]
    pub registry_url: url::Url,
    /// Names and addresses of the registry, separated by commas, that certificates are made for.
    /// With them, Secrets and a ConfigMap of this namespace are kept by which the registry serves
    /// TLS and is trusted. Needed where the registry's URL is https.
    #[arg(long, env = "HYPRSTREAM_CERTIFICATE_NAMES", value_delimiter = ',')]
    pub certificate_names: Vec<String>,
    /// How long a new authority is trusted before it signs, such as 1h. Longer than the kubelets
    /// take to show a changed ConfigMap.
    #[arg(long, env = "HYPRSTREAM_TRUST_OVERLAP", default_value = "1h", value_parser = duration)]
    pub trust_overlap: Duration,
    /// File with the registry's admin token. Read again for every request.
    #[arg(long, env = "HYPRSTREAM_REGISTRY_TOKEN_FILE")]
    pub registry_token_file: PathBuf,
    /// File with the secret that the keys of workers are made from: 32 bytes or more, the same as
    /// the gateway's. Read again every ten seconds; another one makes new workers.
    #[arg(long, env = "HYPRSTREAM_WORKER_MASTER_KEY_FILE")]
    pub worker_master_key_file: PathBuf,
    /// Hosts, as HOST or HOST:PORT and separated by commas, that credentials of Models may be sent
    /// to over plain http.
    #[arg(
        long,
        env = "HYPRSTREAM_ALLOW_INSECURE_CREDENTIALS",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub allow_insecure_credentials: Vec<String>,
    /// Images of the workers.
    #[command(flatten)]
    pub images: Images,
    /// Whether workers speak TLS: off, permissive (and plain HTTP on another port) or strict. Needs
    /// --certificate-names, since the certificates are of the same authority.
    #[arg(long, env = "HYPRSTREAM_WORKER_TLS", value_enum, default_value_t)]
    pub worker_tls: WorkerTls,
    /// How many Models change their workers at a time because this release or its images make
    /// other ones. What a Model or its source asks for waits for nobody.
    #[arg(long, env = "HYPRSTREAM_ROLLOUTS_AT_ONCE", default_value = "4")]
    pub rollouts_at_once: NonZeroUsize,
    /// Namespaces whose Models to look after, separated by commas; all if none is given.
    #[arg(long, env = "HYPRSTREAM_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Where health and metrics answer.
    #[arg(long, env = "HYPRSTREAM_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
}

/// Images of the workers.
#[derive(Debug, Clone, clap::Args)]
pub struct Images {
    /// Image of workers that compute on the CPU.
    #[arg(long = "worker-image", env = "HYPRSTREAM_WORKER_IMAGE")]
    pub cpu: String,
    /// Image of workers that compute on GPUs of NVIDIA. Without it, device cuda is refused.
    #[arg(long = "worker-image-cuda", env = "HYPRSTREAM_WORKER_IMAGE_CUDA")]
    pub cuda: Option<String>,
    /// Image of workers that compute on GPUs of AMD. Without it, device rocm is refused.
    #[arg(long = "worker-image-rocm", env = "HYPRSTREAM_WORKER_IMAGE_ROCM")]
    pub rocm: Option<String>,
    /// When the kubelet pulls the workers' image.
    #[arg(
        long = "worker-image-pull-policy",
        env = "HYPRSTREAM_WORKER_IMAGE_PULL_POLICY",
        value_enum,
        default_value_t = PullPolicy::IfNotPresent
    )]
    pub pull_policy: PullPolicy,
}

impl Images {
    /// The image for a device, if there is one.
    pub fn of(&self, device: Device) -> Option<&str> {
        let image = match device {
            Device::Cpu => Some(&self.cpu),
            Device::Cuda => self.cuda.as_ref(),
            Device::Rocm => self.rocm.as_ref(),
        };
        image.map(String::as_str).filter(|image| !image.is_empty())
    }
}

/// When the kubelet pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Before every start.
    #[value(name = "Always")]
    Always,
    /// If the node does not have it.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Never.
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// The name as in a pod.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Options of `cleanup`.
#[derive(Debug, Clone, clap::Args)]
pub struct CleanupArgs {
    /// Namespace of the operator; its Lease lies there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Namespaces whose objects to remove, separated by commas; all if none is given.
    #[arg(long, env = "HYPRSTREAM_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// How long to wait until all of it is gone.
    #[arg(long, env = "HYPRSTREAM_TIMEOUT", default_value = "240s", value_parser = duration)]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration = text.parse().map_err(|e| format!("{e}"))?;
    if parsed.is_negative() {
        Err("it is negative".to_owned())
    } else {
        Ok(parsed.into())
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
    fn cleanup_reads_durations_as_go_writes_them() {
        assert_eq!(duration("4m30s"), Ok(Duration::from_secs(270)));
        assert!(duration("-1s").is_err() && duration("soon").is_err());
    }
}
