//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};
use humantime::Duration;
use hyprstream_contract::worker;
use hyprstream_gateway::{
    Config, Network,
    fine_tuning::{FineTuningConfig, JobTemplate},
};
use hyprstream_telemetry::LogFormat;
use url::Url;

/// The cluster's one OpenAI endpoint: routes requests to the workers of Models.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// What is logged, as a list of TARGET=LEVEL.
    #[arg(long, env = "HYPRSTREAM_LOG", default_value = "info", global = true)]
    pub(crate) log: String,
    /// Form of the log: text or json.
    #[arg(long, env = "HYPRSTREAM_LOG_FORMAT", default_value_t, global = true)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Asks a running gateway whether it is ready, prints its models, and fails if it is not.
    Check {
        /// Where it listens: http://HOST[:PORT].
        #[arg(long, env = "HYPRSTREAM_URL")]
        url: String,
        /// How long to wait.
        #[arg(long, env = "HYPRSTREAM_TIMEOUT", default_value = "10s")]
        timeout: Duration,
    },
}

/// Options of serving, which is what happens without a subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where clients are served.
    #[arg(long, env = "HYPRSTREAM_LISTEN", default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "HYPRSTREAM_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub(crate) admin_listen: SocketAddr,
    /// Namespaces whose Models are served, separated by commas. Without it, all.
    #[arg(long, env = "HYPRSTREAM_WATCH_NAMESPACES", value_delimiter = ',')]
    pub(crate) watch_namespaces: Vec<String>,
    /// How long a request waits for a Model that is starting.
    #[arg(long, env = "HYPRSTREAM_HOLD_TIMEOUT", default_value = "120s")]
    hold_timeout: Duration,
    /// How long a request waits for a Model whose workers fail to start.
    #[arg(long, env = "HYPRSTREAM_DOUBTFUL_HOLD_TIMEOUT", default_value = "10s")]
    doubtful_hold_timeout: Duration,
    /// Most requests that wait for Models at the same time; more get 429.
    #[arg(long, env = "HYPRSTREAM_MAX_HELD", default_value_t = 1024)]
    max_held: usize,
    /// Most requests at the same time; more get 503.
    #[arg(long, env = "HYPRSTREAM_MAX_REQUESTS", default_value_t = 8192)]
    max_requests: usize,
    /// Most connections at the same time; more are not accepted until others end.
    #[arg(long, env = "HYPRSTREAM_MAX_CONNECTIONS", default_value_t = 16384)]
    max_connections: usize,
    /// Largest request body in bytes; larger ones get 413.
    #[arg(long, env = "HYPRSTREAM_MAX_BODY_BYTES", default_value_t = worker::MAX_BODY_BYTES)]
    max_body_bytes: usize,
    /// Most bytes of request bodies and of answers that are held back until they are complete;
    /// requests beyond get 503, answers beyond are passed on as they come.
    #[arg(long, env = "HYPRSTREAM_MAX_BUFFERED_BYTES", default_value_t = 256 << 20)]
    max_buffered_bytes: usize,
    /// Largest request head in bytes, at least 8192; larger ones get 431.
    #[arg(long, env = "HYPRSTREAM_MAX_HEADER_BYTES", default_value_t = 32 << 10)]
    max_header_bytes: usize,
    /// Time for a request head to arrive.
    #[arg(long, env = "HYPRSTREAM_HEADER_TIMEOUT", default_value = "10s")]
    header_timeout: Duration,
    /// Time for a request body to arrive.
    #[arg(long, env = "HYPRSTREAM_BODY_TIMEOUT", default_value = "60s")]
    body_timeout: Duration,
    /// Time that a client may leave what is sent to it unread.
    #[arg(long, env = "HYPRSTREAM_WRITE_TIMEOUT", default_value = "60s")]
    write_timeout: Duration,
    /// Time that a connection may be idle; longer than that of the proxies in front.
    #[arg(long, env = "HYPRSTREAM_IDLE_TIMEOUT", default_value = "3700s")]
    idle_timeout: Duration,
    /// Time for a connection to a worker to be made.
    #[arg(long, env = "HYPRSTREAM_CONNECT_TIMEOUT", default_value = "2s")]
    connect_timeout: Duration,
    /// Time that a worker may send nothing of an answer; then the client gets 504.
    #[arg(long, env = "HYPRSTREAM_SILENCE_TIMEOUT", default_value = "1h")]
    silence_timeout: Duration,
    /// Addresses of proxies, as 10.0.0.0/8, separated by commas. Only they are believed when they
    /// say for whom they ask, by X-Forwarded-*, Forwarded and X-Real-IP.
    #[arg(long, env = "HYPRSTREAM_TRUSTED_PROXIES", value_delimiter = ',')]
    trusted_proxies: Vec<Network>,
    /// File with the secret from which the keys of the workers are derived. Without it, workers
    /// are asked without a key.
    #[arg(long, env = "HYPRSTREAM_WORKER_MASTER_KEY_FILE")]
    pub(crate) worker_master_key_file: Option<PathBuf>,
    /// File with the certificates of the authorities, in PEM, that workers must have theirs from:
    /// those that speak TLS are asked so. Without it, workers are asked over plain HTTP. Read again
    /// when it changes.
    #[arg(long, env = "HYPRSTREAM_WORKER_CA_FILE")]
    pub(crate) worker_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fine_tuning: FineTuningArgs,
    /// Time for requests in flight to end after SIGTERM, those that wait for a Model included.
    #[arg(long, env = "HYPRSTREAM_DRAIN_TIMEOUT", default_value = "300s")]
    drain_timeout: Duration,
}

/// Options of the fine-tuning API, which is off without the first.
#[derive(Debug, clap::Args)]
pub(crate) struct FineTuningArgs {
    /// Folder with the keys of clients that may upload files and fine-tune: a file for each
    /// namespace, called like it, with a key of at least 32 characters in each line. Read again
    /// when it changes.
    #[arg(
        long,
        env = "HYPRSTREAM_FINE_TUNING_KEYS_DIR",
        requires_all = ["registry_url", "registry_token_file"]
    )]
    pub(crate) fine_tuning_keys_dir: Option<PathBuf>,
    /// Where the registry answers, which keeps the files: https://HOST[:PORT].
    #[arg(
        long,
        env = "HYPRSTREAM_REGISTRY_URL",
        requires = "fine_tuning_keys_dir"
    )]
    pub(crate) registry_url: Option<Url>,
    /// File with the authorities (PEM) by which a registry with an https URL is trusted, and by
    /// nobody else. Read again when it changes.
    #[arg(
        long,
        env = "HYPRSTREAM_REGISTRY_CA_FILE",
        requires = "fine_tuning_keys_dir"
    )]
    pub(crate) registry_ca_file: Option<PathBuf>,
    /// File with a token of this gateway's service account for the registry. Read for every call.
    #[arg(
        long,
        env = "HYPRSTREAM_REGISTRY_TOKEN_FILE",
        requires = "fine_tuning_keys_dir"
    )]
    pub(crate) registry_token_file: Option<PathBuf>,
    /// Largest file in bytes; larger ones get 413.
    #[arg(long, env = "HYPRSTREAM_MAX_FILE_BYTES", default_value_t = 512 << 20)]
    max_file_bytes: u64,
    /// Most bytes of files that are on their way to the registry; files beyond get 503.
    #[arg(long, env = "HYPRSTREAM_MAX_SPOOLED_BYTES", default_value_t = 2 << 30)]
    max_spooled_bytes: usize,
    /// Folder in which they lie meanwhile. Without it, the one for temporary files.
    #[arg(long, env = "HYPRSTREAM_SPOOL_DIR")]
    spool_dir: Option<PathBuf>,
    /// Time for a file to arrive.
    #[arg(long, env = "HYPRSTREAM_UPLOAD_TIMEOUT", default_value = "15m")]
    upload_timeout: Duration,
    /// Fields of the spec of all TrainingJobs that are made for clients, as JSON: device, dtype,
    /// resources, nodeSelector, tolerations, runtimeClassName, activeDeadlineSeconds,
    /// ttlSecondsAfterFinished, data, checkpoint and gates.
    #[arg(long, env = "HYPRSTREAM_FINE_TUNING_JOBS", default_value = "{}")]
    fine_tuning_jobs: JobTemplate,
}

impl FineTuningArgs {
    pub(crate) fn config(&self) -> FineTuningConfig {
        let default = FineTuningConfig::default();
        FineTuningConfig {
            max_file_bytes: self.max_file_bytes,
            max_spooled_bytes: self.max_spooled_bytes,
            spool: self.spool_dir.clone().unwrap_or(default.spool),
            upload_timeout: self.upload_timeout.into(),
            jobs: self.fine_tuning_jobs.clone(),
        }
    }
}

impl ServeArgs {
    pub(crate) fn config(&self) -> Config {
        Config {
            hold_timeout: self.hold_timeout.into(),
            doubtful_hold_timeout: self.doubtful_hold_timeout.into(),
            max_held: self.max_held,
            max_requests: self.max_requests,
            max_connections: self.max_connections,
            max_body_bytes: self.max_body_bytes,
            max_buffered_bytes: self.max_buffered_bytes,
            max_header_bytes: self.max_header_bytes,
            header_timeout: self.header_timeout.into(),
            body_timeout: self.body_timeout.into(),
            write_timeout: self.write_timeout.into(),
            idle_timeout: self.idle_timeout.into(),
            connect_timeout: self.connect_timeout.into(),
            silence_timeout: self.silence_timeout.into(),
            drain_timeout: self.drain_timeout.into(),
            trusted_proxies: self.trusted_proxies.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn without_flags_everything_is_as_the_library_has_it() {
        let args = Args::try_parse_from(["gateway"]).unwrap();
        let ours = format!("{:?}", args.serve.config());
        assert_eq!(ours, format!("{:?}", Config::default()));
        let ours = format!("{:?}", args.serve.fine_tuning.config());
        assert_eq!(ours, format!("{:?}", FineTuningConfig::default()));
    }

    #[test]
    fn keys_of_clients_need_a_registry() {
        let parse = |flags: &[&str]| {
            let flags = ["gateway"].iter().chain(flags).copied();
            Args::try_parse_from(flags)
        };
        let keys = "--fine-tuning-keys-dir=/keys";
        let registry = ["--registry-url=http://r", "--registry-token-file=/token"];
        assert!(parse(&[keys]).is_err());
        assert!(parse(&registry).is_err());
        let args = parse(&[keys, registry[0], registry[1]]).unwrap();
        assert!(args.serve.fine_tuning.fine_tuning_keys_dir.is_some());
    }

    #[test]
    fn serving_needs_no_flag_and_checking_needs_a_url() {
        let args = Args::try_parse_from(["gateway", "--watch-namespaces", "a,b"]).unwrap();
        assert!(args.command.is_none());
        assert_eq!(args.serve.watch_namespaces, ["a", "b"]);
        assert!(Args::try_parse_from(["gateway", "check"]).is_err());
        assert!(Args::try_parse_from(["gateway", "check", "--url", "http://g"]).is_ok());
    }
}
