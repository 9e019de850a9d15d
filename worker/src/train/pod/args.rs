//! What the command line says of a pod.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use hyprstream_contract::{training, worker};

/// Arguments of `train` in a pod of a TrainingJob.
#[derive(Clone, Debug, clap::Args)]
pub struct PodArgs {
    /// What becomes of the adapter: a file that the operator of a cluster writes. Checkpoints and
    /// the adapter are then commits of a branch, which is where a job goes on that is started
    /// elsewhere.
    #[arg(long)]
    pub pod: Option<PathBuf>,
    /// File of the token for the registry. Read anew for every call.
    #[arg(long, requires = "pod", default_value = training::TOKEN_FILE)]
    pub token_file: PathBuf,
    /// Folder of the key that who asks for the progress must show.
    #[arg(long, requires = "pod", default_value = training::KEY_DIR)]
    pub key_dir: PathBuf,
    /// Address to listen on.
    #[arg(long, requires = "pod", default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, requires = "pod", default_value_t = training::PORT)]
    pub port: u16,
    /// File for how it ended, which the kubelet reads.
    #[arg(long, requires = "pod", default_value = worker::TERMINATION_LOG)]
    pub termination_log: PathBuf,
    /// How long the registry is waited for at the beginning and at the end.
    #[arg(long, requires = "pod", default_value = "10m", value_parser = humantime::parse_duration)]
    pub registry_patience: Duration,
    /// How long at most the last checkpoint is pushed after SIGTERM; less than the pod's grace
    /// period.
    #[arg(long, requires = "pod", default_value = "4m", value_parser = humantime::parse_duration)]
    pub push_grace: Duration,
}
