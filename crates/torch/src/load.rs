//! Loading a Hugging Face folder.

use std::{path::Path, sync::Arc, time::Instant};

use hyprstream_engine::ModelSpec;
use hyprstream_models::{
    CacheSize, CacheSizing, Checkpoint, DType, DecoderConfig, LoadError, Weights, available_bytes,
};
use tch::Kind;

use crate::{
    Device, TorchBackend,
    adapter::{Attached, Shape},
    cache::{BLOCK_SIZE, CacheShape, KvCache},
    decoder::{Decoder, kind_of},
    device,
    error::load_error,
    gpu_memory,
};

/// How a model is to be loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// In which type it computes.
    pub dtype: DType,
    /// Longest sequence in tokens. `None` is what the model was made for, or less if the cache
    /// cannot hold it.
    pub max_model_len: Option<usize>,
    /// Most sequences in a step; only bounds the default size of the cache.
    pub max_batch: usize,
    /// Bytes of the key and value cache. `None` is a share of the memory that is free, on the
    /// CPU within the limit of the cgroup, but not more than `max_batch` longest sequences need.
    pub kv_cache_bytes: Option<u64>,
    /// Threads of the CPU. `None` is what the machine and the quota of the cgroup allow.
    pub threads: Option<usize>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            dtype: DType::Auto,
            max_model_len: None,
            max_batch: 32,
            kv_cache_bytes: None,
            threads: None,
        }
    }
}

/// Loads the model in `dir`: `config.json` and its safetensors.
///
/// Weights that lie on disk in the type and for the device that they are used on are mapped, not
/// copied: the files must not change while the backend lives. The tokenizer is not looked at.
///
/// On the CPU, libtorch's threads spin while they wait for each other. Where they do not have
/// their cores for themselves, steps become many times slower; a program should see to it that
/// it was started with `OMP_WAIT_POLICY=PASSIVE`.
///
/// # Errors
/// [`LoadError`]; [`LoadError::reason`] is for a condition, its text for the user of the Model.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<TorchBackend, LoadError> {
    let begin = Instant::now();
    let Opened {
        model,
        weights,
        config,
        kind,
        device,
        num_threads,
    } = open(dir, options.device, options.threads, |stored, device| {
        resolve(options.dtype, stored, device)
    })?;
    let weight_bytes = weights.bytes;

    let shape = CacheShape {
        layers: config.num_layers() as i64,
        kv_heads: config.num_kv_heads as i64,
        head_dim: config.head_dim as i64,
        kind,
    };
    let CacheSize {
        num_blocks,
        max_positions,
    } = CacheSizing {
        trained_positions: config.max_positions,
        max_model_len: options.max_model_len,
        max_batch: options.max_batch,
        kv_cache_bytes: options.kv_cache_bytes,
        block_size: BLOCK_SIZE,
        block_bytes: shape.block_bytes(),
        free: free_bytes(device),
        share: if device == tch::Device::Cpu {
            CPU_SHARE
        } else {
            GPU_SHARE
        },
    }
    .size()?;
    let cache =
        KvCache::new(shape, num_blocks, device).map_err(load_error("allocating the cache"))?;
    let spec = ModelSpec {
        architecture: config.architecture.clone(),
        vocab_size: config.vocab_size,
        max_positions,
        block_size: BLOCK_SIZE,
        num_blocks: cache.num_blocks(),
        dtype: dtype_name(kind).to_owned(),
        device: device_name(device),
        hidden_size: config.hidden_size,
        quantization: "none".to_owned(),
        kernels: "aten".to_owned(),
        weight_bytes,
        kv_cache_bytes: num_blocks as u64 * shape.block_bytes(),
    };
    tracing::info!(
        model = %spec,
        weight_bytes,
        kv_cache_bytes = spec.kv_cache_bytes,
        max_positions,
        num_threads,
        seconds = begin.elapsed().as_secs_f64(),
        "model loaded"
    );
    Ok(TorchBackend {
        model,
        cache,
        adapters: Attached::new(device),
        stored: Arc::new(weights),
        spec,
        shape: Shape {
            config,
            kind,
            device,
        },
        num_threads,
        prepared: None,
        logits: Vec::new(),
        hidden: Vec::new(),
    })
}

/// A model on its device, and what it was made of.
pub(crate) struct Opened {
    // Invariant: fields are dropped in this order, so that no tensor outlives its mapped file.
    pub(crate) model: Decoder,
    pub(crate) weights: Weights,
    pub(crate) config: DecoderConfig,
    pub(crate) kind: Kind,
    pub(crate) device: tch::Device,
    pub(crate) num_threads: usize,
}

/// Loads the model in `dir` in the type that `choose` makes of the stored one.
pub(crate) fn open(
    dir: &Path,
    device: Device,
    threads: Option<usize>,
    choose: impl FnOnce(Kind, tch::Device) -> Kind,
) -> Result<Opened, LoadError> {
    let (config, _) = DecoderConfig::read(dir)?;
    let weights = Weights::take(&config, Checkpoint::open(dir)?)?;
    let device = device::resolve(device)?;
    let num_threads = threads.unwrap_or_else(default_threads).clamp(1, 1024);
    tch::set_num_threads(num_threads as i32);
    let _no_grad = tch::no_grad_guard();

    let stored = kind_of(weights.stored_type);
    let kind = choose(stored, device);
    let needed = needed_bytes(weights.bytes, stored, kind);
    let available = free_bytes(device);
    check_weights_fit(needed, available, kind, device)?;
    let model = Decoder::load(&config, &weights, kind, device)?;
    gpu_memory::took(device, available, needed);
    if device == tch::Device::Cpu && kind == stored {
        weights
            .files
            .iter()
            .try_for_each(|file| file.read_ahead())?;
    }
    Ok(Opened {
        model,
        weights,
        config,
        kind,
        device,
        num_threads,
    })
}

/// The type that `dtype` stands for with weights of type `stored` on `device`.
pub(crate) fn resolve(dtype: DType, stored: Kind, device: tch::Device) -> Kind {
    match dtype {
        DType::Float32 => Kind::Float,
        DType::Float16 => Kind::Half,
        DType::BFloat16 => Kind::BFloat16,
        DType::Auto => match (device, stored) {
            (tch::Device::Cpu, Kind::BFloat16) if cpu_has_bf16() => stored,
            (tch::Device::Cpu, _) => Kind::Float,
            _ => stored,
        },
    }
}

/// Share of the free memory that the cache takes by default. On the CPU the rest is for
/// activations, the page cache that holds the weights, and the process.
const CPU_SHARE: f64 = 0.5;
const GPU_SHARE: f64 = 0.85;

/// Bytes that are free on `device`, if that is known.
pub(crate) fn free_bytes(device: tch::Device) -> Option<u64> {
    match device {
        tch::Device::Cpu => available_bytes(),
        _ => gpu_memory::available_bytes(device),
    }
}

fn needed_bytes(bytes: u64, stored: Kind, kind: Kind) -> u64 {
    bytes / stored.elt_size_in_bytes() as u64 * kind.elt_size_in_bytes() as u64
}

/// Refuses weights that cannot fit, before the kernel ends the process for them.
fn check_weights_fit(
    needed: u64,
    available: Option<u64>,
    kind: Kind,
    device: tch::Device,
) -> Result<(), LoadError> {
    match available {
        Some(free) if needed > free => Err(LoadError::OutOfMemory(format!(
            "the weights need {needed} bytes as {}, but {free} are available on {}",
            dtype_name(kind),
            device_name(device)
        ))),
        _ => Ok(()),
    }
}

/// Heeds the CPU quota of the cgroup.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Whether aten's kernels have instructions for bfloat16 here; without them it is slower than
/// float32.
fn cpu_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("bf16")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

pub(crate) fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}
