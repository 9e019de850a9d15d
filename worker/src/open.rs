//! Choosing the backend that runs a model, and loading the model on it.

use std::sync::Arc;

use hyprstream_engine::Backend;
use hyprstream_models::{DType, Device, LoadError};

use crate::{
    Kernels, ModelArgs, Quantization,
    adapters::{BackendPacker, ModelPacker, Packer},
    backend::LoadFailure,
};

/// A loaded model.
pub(crate) struct Opened {
    /// Runs it.
    pub(crate) backend: Box<dyn Backend>,
    /// Makes adapters ready for it.
    pub(crate) packer: Arc<dyn Packer>,
}

/// Loads the model that `args` names on the backend that its options ask for: a GPU's if there is
/// one, else the CPU's own. libtorch on the CPU only runs when its kernels are asked for by name.
/// `sample` is some text to calibrate weights in 4 bits with.
///
/// # Errors
/// An option is not a value or is not to be had here, or the model cannot be loaded.
pub(crate) fn open(args: &ModelArgs, sample: Vec<u32>) -> Result<Opened, LoadFailure> {
    let device: Device = option("--device", &args.device)?;
    let dtype: DType = option("--dtype", &args.dtype)?;
    match Place::of(device, args.kernels)? {
        Place::Cpu => open_cpu(args, dtype, sample),
        Place::Torch(_) if args.quantization != Quantization::None => {
            Err(refused("--quantization", &args.quantization))
        }
        Place::Torch(device) => gpu::open(args, device, dtype),
    }
}

/// What computes, be it to serve or to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The CPU, with our own kernels.
    Cpu,
    /// libtorch on this device: a GPU, or [`Device::Cpu`].
    Torch(Device),
}

impl Place {
    /// What `--device` and `--kernels` stand for on this machine: a GPU's if there is one, else the
    /// CPU's own. libtorch on the CPU only runs when its kernels are asked for by name.
    ///
    /// # Errors
    /// They exclude each other. Whether this program has libtorch is not asked.
    pub(crate) fn of(device: Device, kernels: Kernels) -> Result<Self, LoadFailure> {
        let on_gpu = match device {
            Device::Cpu => false,
            Device::Cuda(_) => true,
            Device::Auto => kernels != Kernels::Aten && gpu::is_here(),
        };
        if on_gpu && !matches!(kernels, Kernels::Auto | Kernels::Aten) {
            return Err(refused("--kernels", &kernels));
        }
        Ok(match (on_gpu, kernels) {
            (true, _) => Self::Torch(device),
            (false, Kernels::Aten) => Self::Torch(Device::Cpu),
            (false, _) => Self::Cpu,
        })
    }
}

/// libtorch was asked for on this device, and is not there.
pub(crate) fn without_torch(device: Device) -> LoadFailure {
    LoadFailure::WithoutTorch {
        asked: match device {
            Device::Cpu => "--kernels aten".to_owned(),
            gpu => format!("--device {gpu}"),
        },
    }
}

/// What only the CPU's own backend has: libtorch runs weights as they are on disk.
pub(crate) fn refused(flag: &str, value: &dyn std::fmt::Display) -> LoadFailure {
    let why = format!("{flag} {value}: only the CPU's own backend has it");
    LoadFailure::InvalidOption(why)
}

fn option<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, LoadFailure>
where
    T::Err: std::fmt::Display,
{
    value
        .parse()
        .map_err(|error| LoadFailure::InvalidOption(format!("{flag}: {error}")))
}

fn open_cpu(args: &ModelArgs, dtype: DType, sample: Vec<u32>) -> Result<Opened, LoadFailure> {
    use hyprstream_cpu as cpu;

    let options = cpu::LoadOptions {
        dtype,
        quantization: match args.quantization {
            Quantization::None => cpu::Quantization::None,
            Quantization::Int8 => cpu::Quantization::Int8,
            Quantization::Int4 => cpu::Quantization::Int4,
        },
        kernels: args.kernels.on_cpu(),
        max_model_len: args.max_model_len,
        max_batch: args.max_batch,
        kv_cache_bytes: args.kv_cache_bytes,
        threads: args.threads,
        sample,
    };
    let backend = cpu::load(&args.model, &options).map_err(|error| failure(&error))?;
    let packer = backend.adapter_packer();
    opened(args, backend, packer)
}

fn opened(
    args: &ModelArgs,
    backend: impl Backend + 'static,
    packer: impl BackendPacker + 'static,
) -> Result<Opened, LoadFailure> {
    let packer = ModelPacker::open(&args.model, packer);
    Ok(Opened {
        backend: Box::new(backend),
        packer: Arc::new(packer.map_err(|error| failure(&error))?),
    })
}

fn failure(error: &LoadError) -> LoadFailure {
    let message = match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    LoadFailure::Backend {
        reason: error.reason(),
        message,
        is_final: error.is_final(),
    }
}

#[cfg(feature = "torch")]
mod gpu {
    use hyprstream_torch::LoadOptions;

    use super::{DType, Device, LoadFailure, ModelArgs, Opened, failure, opened};

    pub(super) fn is_here() -> bool {
        hyprstream_torch::has_gpu()
    }

    pub(super) fn open(
        args: &ModelArgs,
        device: Device,
        dtype: DType,
    ) -> Result<Opened, LoadFailure> {
        let options = LoadOptions {
            device,
            dtype,
            max_model_len: args.max_model_len,
            max_batch: args.max_batch,
            kv_cache_bytes: args.kv_cache_bytes,
            threads: args.threads,
        };
        let backend = hyprstream_torch::load(&args.model, &options);
        let backend = backend.map_err(|error| failure(&error))?;
        let packer = backend.adapter_packer();
        opened(args, backend, packer)
    }
}

#[cfg(not(feature = "torch"))]
mod gpu {
    use super::{DType, Device, LoadFailure, ModelArgs, Opened, without_torch};

    pub(super) fn is_here() -> bool {
        false
    }

    pub(super) fn open(_: &ModelArgs, device: Device, _: DType) -> Result<Opened, LoadFailure> {
        Err(without_torch(device))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Args, Command};

    fn refusal(more: &[&str]) -> String {
        let args = ["hyprstream-worker", "serve", "--model", "/nothing"];
        let Command::Serve(serve) = Args::parse_from(args.iter().chain(more)).command else {
            unreachable!("serve was asked for")
        };
        let refused = open(&serve.model, Vec::new())
            .err()
            .map(|error| error.to_string());
        refused.expect("there is no such model")
    }

    #[test]
    fn libtorch_refuses_what_only_packed_weights_have() {
        let why = refusal(&["--device", "cuda", "--quantization", "int4"]);
        assert!(why.contains("--quantization int4"), "{why}");
        let why = refusal(&["--device", "cuda:1", "--kernels", "avx2"]);
        assert!(why.contains("--kernels avx2"), "{why}");
        let why = refusal(&["--kernels", "aten", "--quantization", "int8"]);
        assert!(why.contains("--quantization int8"), "{why}");
    }

    #[test]
    fn the_cpu_is_taken_without_libtorch() {
        for more in [
            &["--device", "cpu"][..],
            &["--device", "cpu", "--quantization", "int4"],
        ] {
            assert!(
                refusal(more).contains("config.json is missing"),
                "{}",
                refusal(more)
            );
        }
        assert!(refusal(&["--device", "tpu"]).contains("tpu"));
        assert!(refusal(&["--device", "cpu", "--dtype", "int3"]).contains("int3"));
    }
}
