//! The command line.

use std::{fmt, io, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use hyprstream_contract::worker::{self, env};
use hyprstream_telemetry::LogFormat;

use crate::{
    adapters::AdapterArgs,
    bench::BenchArgs,
    server::{ApiKeys, ApiOptions, ReasoningMode, ToolCallParser},
    train::TrainArgs,
};

/// Runs a model and answers the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "hyprstream-worker", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a model over HTTP.
    Serve(Box<ServeArgs>),
    /// Trains a LoRA adapter for a model, by a job file.
    Train(Box<TrainArgs>),
    /// Measures how fast a model runs here, or how a server does under load.
    Bench(Box<BenchArgs>),
}

/// Where log lines go and which.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// Which log lines, as a list of target=level.
    #[arg(long, env = "HYPRSTREAM_LOG", default_value = "info")]
    pub log: String,
    /// Form of log lines: json or text.
    #[arg(long, env = "HYPRSTREAM_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// Which model, and how it is run.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Directory of the model in Hugging Face's layout.
    #[arg(long, env = env::MODEL)]
    pub model: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, env = env::DEVICE, default_value = "auto")]
    pub device: String,
    /// auto, float32, bfloat16 or float16.
    #[arg(long, env = env::DTYPE, default_value = "auto")]
    pub dtype: String,
    /// Longest prompt plus answer in tokens; by default what the model was made for, as far as
    /// the cache has room.
    #[arg(long, env = env::MAX_MODEL_LEN, value_parser = at_least_one)]
    pub max_model_len: Option<usize>,
    /// Most requests in one step.
    #[arg(long, env = env::MAX_BATCH, default_value = "32", value_parser = at_least_one)]
    pub max_batch: usize,
    /// Threads of the CPU backend; by default what the machine and the cgroup's quota allow.
    #[arg(long, env = env::THREADS, value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Bytes of the key and value cache; by default a share of the free memory.
    #[arg(long, env = "HYPRSTREAM_KV_CACHE_BYTES")]
    pub kv_cache_bytes: Option<u64>,
    /// Most tokens in one step; longer prompts run in pieces of this size.
    #[arg(long, env = "HYPRSTREAM_MAX_STEP_TOKENS", default_value = "512", value_parser = at_least_one)]
    pub max_step_tokens: usize,
    /// How weights are kept: none as they are on disk, int8 and int4 quantised in groups.
    #[arg(long, env = env::QUANTIZATION, value_enum, default_value_t)]
    pub quantization: Quantization,
    /// Kernels of the CPU backend: auto for the fastest that work here, or one kind, to compare.
    #[arg(long, env = "HYPRSTREAM_KERNELS", value_enum, default_value_t)]
    pub kernels: Kernels,
    /// Compute every prompt anew rather than keep beginnings that prompts share.
    #[arg(long, env = "HYPRSTREAM_NO_PREFIX_CACHE")]
    pub no_prefix_cache: bool,
}

/// How weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// In the type that the model computes in.
    #[default]
    None,
    /// In groups of 8 bit integers with a scale each.
    Int8,
    /// In groups of 4 bit integers with a scale each.
    Int4,
}

/// Which instructions the CPU backend computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kernels {
    /// The fastest that the machine has.
    #[default]
    Auto,
    /// AMX, beside AVX-512.
    Amx,
    /// AVX-512.
    Avx512,
    /// AVX2.
    Avx2,
    /// None in particular.
    Portable,
    /// libtorch's own instead of ours, as a reference.
    Aten,
}

impl Kernels {
    /// The kind as the CPU backend calls it; `None` leaves the choice to it.
    pub(crate) fn on_cpu(self) -> Option<hyprstream_cpu::Kernels> {
        use hyprstream_cpu::Kernels as Theirs;
        match self {
            Self::Auto | Self::Aten => None,
            Self::Amx => Some(Theirs::Amx),
            Self::Avx512 => Some(Theirs::Avx512),
            Self::Avx2 => Some(Theirs::Avx2),
            Self::Portable => Some(Theirs::Portable),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Amx => "amx",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
            Self::Aten => "aten",
        })
    }
}

/// Arguments of `serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on.
    #[arg(long, env = "HYPRSTREAM_HOST", default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, env = env::PORT, default_value_t = worker::PORT)]
    pub port: u16,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Name by which clients call the model; by default the directory's.
    #[arg(long, env = env::NAME)]
    pub name: Option<String>,
    /// Namespace that clients may put before the name.
    #[arg(long, env = env::NAMESPACE)]
    pub namespace: Option<String>,
    /// Most requests that wait for their first step; further ones get a 429.
    #[arg(long, env = "HYPRSTREAM_MAX_QUEUE", default_value = "512", value_parser = at_least_one)]
    pub max_queue: usize,
    /// How it answers.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which adapters it has.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// After SIGTERM, how long requests in flight may go on.
    #[arg(long, env = "HYPRSTREAM_DRAIN_TIMEOUT", default_value = "100s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// After SIGTERM, how long at least new requests are answered with a 503 that sends them
    /// elsewhere.
    #[arg(long, env = "HYPRSTREAM_DRAIN_DELAY", default_value = "1s", value_parser = humantime::parse_duration)]
    pub drain_delay: Duration,
    /// File for the reason of a failure, which the kubelet reads.
    #[arg(long, env = "HYPRSTREAM_TERMINATION_LOG", default_value = worker::TERMINATION_LOG)]
    pub termination_log: PathBuf,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
}

/// Whether a server speaks TLS.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// File with the certificate to show, in PEM, and those between it and its authority. With it
    /// the server speaks TLS, and plain HTTP no more unless --tls-port is given. Read again when it
    /// changes.
    #[arg(long, env = env::TLS_CERT, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's key, in PEM.
    #[arg(long, env = env::TLS_KEY, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Port for TLS, if --port is to speak plain HTTP beside it.
    #[arg(long, env = env::TLS_PORT, requires = "tls_cert")]
    pub tls_port: Option<u16>,
}

/// How a server answers.
#[derive(Clone, Debug, clap::Args)]
pub struct ApiArgs {
    /// Longest request body in bytes.
    #[arg(long, env = "HYPRSTREAM_MAX_BODY_BYTES", default_value_t = worker::MAX_BODY_BYTES)]
    pub max_body_bytes: usize,
    /// Key that requests must show as a bearer token; without one all are welcome.
    #[arg(long, env = "HYPRSTREAM_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// File of such keys, one a line. Read at the start: a change takes a restart.
    #[arg(long, env = "HYPRSTREAM_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// How calls of tools are found in answers.
    #[arg(
        long,
        env = "HYPRSTREAM_TOOL_CALL_PARSER",
        value_enum,
        default_value = "auto"
    )]
    pub tool_call_parser: ToolCallParser,
    /// How thoughts are found in answers.
    #[arg(
        long,
        env = "HYPRSTREAM_REASONING_PARSER",
        value_enum,
        default_value = "auto"
    )]
    pub reasoning_parser: ReasoningMode,
    /// How long a client may take nothing of its answer before it is given up.
    #[arg(long, env = "HYPRSTREAM_WRITE_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration)]
    pub write_timeout: Duration,
}

impl ApiArgs {
    /// What the server is told.
    ///
    /// # Errors
    /// The file of keys cannot be read, or there are none where some were to be.
    pub fn options(&self) -> io::Result<ApiOptions> {
        let mut keys = self.api_key.clone().unwrap_or_default();
        if let Some(file) = &self.api_key_file {
            keys.push('\n');
            keys.push_str(&std::fs::read_to_string(file)?);
        }
        let keys = ApiKeys::new(keys.lines());
        // An empty secret must not open the door.
        if keys.is_empty() && (self.api_key.is_some() || self.api_key_file.is_some()) {
            return Err(io::Error::other("the API key is empty"));
        }
        Ok(ApiOptions {
            max_body_bytes: self.max_body_bytes,
            keys,
            tool_calls: self.tool_call_parser,
            reasoning: self.reasoning_parser,
            write_timeout: self.write_timeout,
        })
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_flag_of_serve_has_a_variable() {
        Args::command().debug_assert();
        let command = Args::command();
        let serve = command.find_subcommand("serve").unwrap();
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let flag = arg.get_long().unwrap().to_uppercase().replace('-', "_");
            let variable = arg.get_env().unwrap().to_str().unwrap();
            assert_eq!(variable, format!("HYPRSTREAM_{flag}"));
        }
    }

    #[test]
    fn an_empty_key_is_an_error_and_not_an_open_door() {
        let options = |more: &[&str]| {
            let args = ["hyprstream-worker", "serve", "--model", "/m"];
            let args = args.into_iter().chain(more.iter().copied());
            let Command::Serve(args) = Args::try_parse_from(args).unwrap().command else {
                unreachable!("it is serve");
            };
            args.api.options()
        };
        assert!(options(&[]).unwrap().keys.is_empty());
        assert!(options(&["--api-key", "k"]).unwrap().keys.accept(b"k"));
        assert!(options(&["--api-key", " "]).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(options(&["--api-key-file", path]).is_err());
        std::fs::write(path, "a\n\nb\n").unwrap();
        let keys = options(&["--api-key-file", path]).unwrap().keys;
        assert!(keys.accept(b"a") && keys.accept(b"b") && !keys.accept(b""));
    }

    #[test]
    fn zero_is_no_size() {
        for flag in [
            "--max-batch",
            "--max-queue",
            "--threads",
            "--max-model-len",
            "--max-adapters",
            "--max-adapter-rank",
            "--max-stacked-adapters",
        ] {
            let args = ["hyprstream-worker", "serve", "--model", "/m", flag, "0"];
            assert!(Args::try_parse_from(args).is_err(), "{flag}");
        }
    }

    #[test]
    fn no_more_adapters_are_stacked_than_can_be_named() {
        let parse = |most: &str| {
            let flag = "--max-stacked-adapters";
            Args::try_parse_from(["hyprstream-worker", "serve", "--model", "/m", flag, most])
        };
        assert!(parse("8").is_ok());
        let error = parse("9").unwrap_err().to_string();
        assert!(error.contains("8 is the most"), "{error}");
    }
}
