//! The command line of `train`.

use std::path::PathBuf;

use hyprstream_models::{DType, Device};

use super::{
    PodArgs,
    learner::{LearnerChoice, LearnerError},
};
use crate::{Kernels, LogArgs, args::at_least_one};

/// Arguments of `train`.
#[derive(Clone, Debug, clap::Args)]
pub struct TrainArgs {
    /// The job: a file in YAML or JSON (docs/training.md). Its paths are relative to the working
    /// directory. A job whose output folder has checkpoints goes on from the last of them.
    #[arg(long)]
    pub job: PathBuf,
    /// What it is trained on: auto, cpu, cuda or cuda:N. auto is a GPU if this program finds one.
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: Device,
    /// In which type the frozen weights are kept: auto, float32 or bfloat16.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    pub dtype: DType,
    /// In which type what meets the frozen weights is rounded: auto for that of the weights, on every
    /// processor, or float32 for products that round nothing, at half the speed where the processor
    /// multiplies bfloat16. A job is to be resumed with the type that it began with.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    pub products: DType,
    /// Threads; by default what the machine and the cgroup's quota allow. The result does not
    /// depend on them.
    #[arg(long, value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Kernels: auto for the fastest that work here, or one kind; aten is libtorch on the CPU.
    /// Results of two kinds differ by rounding, so that a job is to be resumed with the kind that it
    /// began with.
    #[arg(long, value_enum, default_value_t)]
    pub kernels: Kernels,
    /// Print what came of it as JSON.
    #[arg(long)]
    pub json: bool,
    /// In a pod.
    #[command(flatten)]
    pub pod: PodArgs,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
}

impl TrainArgs {
    /// What is to compute.
    ///
    /// # Errors
    /// It cannot be had here.
    pub(super) fn learner(&self) -> Result<LearnerChoice, LearnerError> {
        LearnerChoice::new(
            self.device,
            [self.dtype, self.products],
            self.kernels,
            self.threads,
        )
    }
}

fn device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn dtype(text: &str) -> Result<DType, String> {
    text.parse().map_err(|error| format!("{error}"))
}
