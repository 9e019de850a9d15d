//! The command line of `bench`.

use std::{path::PathBuf, time::Duration};

use crate::{LogArgs, ModelArgs, args::at_least_one};

/// Flags that say how a model is run, which a server has its own of.
const OF_THE_MODEL: [&str; 20] = [
    "model",
    "device",
    "dtype",
    "max_model_len",
    "max_batch",
    "threads",
    "kv_cache_bytes",
    "max_step_tokens",
    "quantization",
    "kernels",
    "no_prefix_cache",
    "batch",
    "repeat",
    "context",
    "shared_prefix",
    "adapters",
    "train",
    "ragged",
    "checkpoints",
    "rank",
];

/// Flags that say nothing of training.
const OF_SERVING: [&str; 12] = [
    "device",
    "max_model_len",
    "max_batch",
    "kv_cache_bytes",
    "max_step_tokens",
    "quantization",
    "no_prefix_cache",
    "prompt_tokens",
    "gen_tokens",
    "context",
    "shared_prefix",
    "adapters",
];

/// Arguments of `bench`. What is measured stands in the command line: no variable is read but
/// those of the logs.
#[derive(Clone, Debug, clap::Args)]
#[command(
    mut_args(|arg| if arg.get_id().as_str().starts_with("log") { arg } else { arg.env(None::<&str>) }),
    mut_arg("model", |arg| arg
        .required(false)
        .required_unless_present("serve")
        .default_value_if("serve", clap::builder::ArgPredicate::IsPresent, ".")),
)]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of each prompt; by default 512, and 16 behind a shared prefix. A server's prompts
    /// are about so long; the report tells how long they were.
    #[arg(long, value_parser = at_least_one)]
    pub prompt_tokens: Option<usize>,
    /// Tokens to generate after each prompt.
    #[arg(long, default_value = "128", value_parser = at_least_one)]
    pub gen_tokens: usize,
    /// How many requests at once; a list of sizes that are measured one after the other.
    #[arg(long, default_value = "1,8", value_delimiter = ',', value_parser = at_least_one)]
    pub batch: Vec<usize>,
    /// Times that each size is measured; the median is told.
    #[arg(long, default_value = "3", value_parser = at_least_one)]
    pub repeat: usize,
    /// Measures decoding behind so many tokens of context, whose own computation is not counted.
    #[arg(long, value_parser = at_least_one, conflicts_with_all = ["prompt_tokens", "shared_prefix"])]
    pub context: Option<usize>,
    /// Measures the time to the first token of requests that share so many tokens, with the
    /// prefix cache and without; `--prompt-tokens` is what each has behind them.
    #[arg(long, value_parser = at_least_one, conflicts_with_all = ["no_prefix_cache", "gen_tokens"])]
    pub shared_prefix: Option<usize>,
    /// Measures what so many adapters cost, with random numbers on all linear layers: each batch
    /// size with them, its requests having them in turn, and without, alternately.
    #[arg(long, value_parser = at_least_one, conflicts_with_all = ["context", "shared_prefix"])]
    pub adapters: Option<usize>,
    /// Measures training on the CPU: updates of a LoRA adapter on all linear layers, of rows of so
    /// many random tokens that all count. `--batch` are rows of an update, `--repeat` updates after
    /// two that are not counted.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 20), conflicts_with_all = OF_SERVING)]
    pub train: Option<u32>,
    /// With `--train`, rows of different lengths up to its TOKENS, spread as those of chats are
    /// (log-normal, median a third, sigma 1); only tokens that a row has are counted. The report lists
    /// the lengths, for a peer to pad.
    #[arg(long, requires = "train")]
    pub ragged: bool,
    /// With `--train`, also what checkpoints of a job cost and how soon a job that was killed goes on: in a
    /// new folder below DIR, of whose disk the figures are, with `--repeat` checkpoints and rows of
    /// the first `--batch`.
    #[arg(long, value_name = "DIR", requires = "train")]
    pub checkpoints: Option<PathBuf>,
    /// Rank of adapters.
    #[arg(long, default_value = "16", value_parser = at_least_one)]
    pub rank: usize,
    /// Seed of prompts and arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// A server rather than a model.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
}

/// Loading a server.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Loads the OpenAI server at this http address instead of a model.
    #[arg(long, value_name = "URL", conflicts_with_all = OF_THE_MODEL)]
    pub serve: Option<String>,
    /// Requests a second, with the gaps of a Poisson process.
    #[arg(long, value_parser = positive, conflicts_with_all = ["model", "concurrency"])]
    pub rate: Option<f64>,
    /// So many clients, each of which sends its next request when it has its answer.
    #[arg(long, conflicts_with = "model", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub concurrency: Option<u16>,
    /// Requests in all.
    #[arg(long, conflicts_with = "model", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub requests: u32,
    /// After so long what is in flight is cut off and counted as failed.
    #[arg(long, conflicts_with = "model", default_value = "10m", value_parser = humantime::parse_duration)]
    pub time_limit: Duration,
    /// Name of the model; by default the first that the server lists.
    #[arg(long, conflicts_with = "model")]
    pub served_name: Option<String>,
    /// Each request asks for one, drawn by lot, of all models and adapters that the server lists.
    #[arg(long, conflicts_with_all = ["model", "served_name"])]
    pub every_model: bool,
    /// Also load a server that is not on this machine: it must be yours.
    #[arg(long, conflicts_with = "model")]
    pub allow_remote: bool,
}

impl BenchArgs {
    /// Tokens of each prompt that no other has.
    pub(super) fn own_tokens(&self) -> usize {
        let default = if self.shared_prefix.is_some() {
            16
        } else {
            512
        };
        self.prompt_tokens.unwrap_or(default)
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        Ok(_) => Err("must be more than 0".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::{Args, Command};

    #[track_caller]
    fn parse(line: &str) -> Result<super::BenchArgs, String> {
        let words = ["hyprstream-worker", "bench"].into_iter();
        match Args::try_parse_from(words.chain(line.split_whitespace())) {
            Ok(Args {
                command: Command::Bench(args),
            }) => Ok(*args),
            Ok(_) => unreachable!("bench was asked for"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_model_or_a_server_is_measured_and_never_both() {
        assert!(parse("--model /m --batch 1,8,32").is_ok());
        assert!(parse("").unwrap_err().contains("--model"));
        assert!(parse("--serve http://127.0.0.1:1").is_ok());
        for flag in [
            "--model /m",
            "--batch 2",
            "--quantization int8",
            "--threads 2",
            "--context 9",
            "--no-prefix-cache",
            "--adapters 2",
            "--rank 8",
            "--train 8 --checkpoints /c",
        ] {
            let line = format!("--serve http://127.0.0.1:1 {flag}");
            assert!(parse(&line).is_err(), "{flag}");
        }
    }

    #[test]
    fn checkpoints_are_of_a_training() {
        let checkpoints = parse("--model /m --train 8 --checkpoints /c").unwrap();
        assert_eq!(checkpoints.checkpoints.unwrap(), std::path::Path::new("/c"));
        let refused = parse("--model /m --checkpoints /c").unwrap_err();
        assert!(refused.contains("--train"), "{refused}");
    }

    #[test]
    fn load_is_bounded_and_only_for_servers() {
        for flag in [
            "--rate 2",
            "--requests 3",
            "--concurrency 2",
            "--allow-remote",
            "--every-model",
        ] {
            assert!(parse(&format!("--model /m {flag}")).is_err(), "{flag}");
            let line = format!("--serve http://127.0.0.1:1 {flag}");
            assert!(parse(&line).is_ok(), "{flag}");
        }
        for flag in [
            "--requests 100001",
            "--rate 0",
            "--rate inf",
            "--rate 1 --concurrency 1",
        ] {
            let line = format!("--serve http://127.0.0.1:1 {flag}");
            assert!(parse(&line).is_err(), "{flag}");
        }
    }
}
