//! Loading a Hugging Face folder.

use std::{fmt, path::Path, str::FromStr, time::Instant};

use hyprstream_engine::ModelSpec;
use hyprstream_models::{
    CacheSize, CacheSizing, Checkpoint, DType, DecoderConfig, LoadError, StoredType, Weights,
    available_bytes,
};

use crate::{
    CpuBackend, Kernels,
    cache::{BLOCK_SIZE, Cache, CacheShape},
    format::{Format, GROUP},
    kernels::{MAX_HEAD, Ops},
    model::Precision,
    pack::pack,
    pool::Pool,
};

/// How a model is to be loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// In which type it computes. [`DType::Float16`] is refused.
    pub dtype: DType,
    /// Whether the weights are kept in fewer bits.
    pub quantization: Quantization,
    /// Which kernels to use; `None` for the best that this processor has.
    pub kernels: Option<Kernels>,
    /// Longest sequence in tokens. `None` is what the model was made for, or less if the cache
    /// cannot hold it.
    pub max_model_len: Option<usize>,
    /// Most sequences in a step; only bounds the default size of the cache.
    pub max_batch: usize,
    /// Bytes of the key and value cache. `None` is a share of the memory that is free within the
    /// limit of the cgroup, but not more than `max_batch` longest sequences need.
    pub kv_cache_bytes: Option<u64>,
    /// Threads. `None` is what the machine and the quota of the cgroup allow.
    pub threads: Option<usize>,
    /// Tokens of some text, such as [`crate::SAMPLE_TEXT`]: the scales of weights in 4 bits favour
    /// the inputs that it makes large, which is worth a good part of what is lost otherwise. Only
    /// the first 512 count. Without them, all inputs count alike.
    pub sample: Vec<u32>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DType::Auto,
            quantization: Quantization::None,
            kernels: None,
            max_model_len: None,
            max_batch: 32,
            kv_cache_bytes: None,
            threads: None,
            sample: Vec::new(),
        }
    }
}

/// How the weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// In the type that the model computes in.
    #[default]
    None,
    /// 8 bits, and a scale for each 32 weights: 8.5 bits a weight.
    Int8,
    /// 4 bits, and a scale and a minimum for each 32 weights: 5 bits a weight. The head and what
    /// gives the keys and values of attention, on which quality depends most, have 8 bits.
    Int4,
}

/// The text names no quantisation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantization: none, int8 or int4 is needed")]
pub struct InvalidQuantization(String);

impl FromStr for Quantization {
    type Err = InvalidQuantization;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(InvalidQuantization(text.chars().take(80).collect())),
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

/// Loads the model in `dir`: `config.json` and its safetensors.
///
/// The matrices are packed into memory of their own and the pages of the files given back. The files
/// stay mapped and must not change while the backend lives: a step reads the embedding, and packing
/// an adapter with DoRA the weights that it changes. The tokenizer is not looked at.
///
/// # Errors
/// [`LoadError`]; [`LoadError::reason`] is for a condition, its text for the user of the Model.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<CpuBackend, LoadError> {
    let begin = Instant::now();
    let kernels = choose_kernels(options.kernels)?;
    let (config, saved_as) = DecoderConfig::read(dir)?;
    let stored = Weights::take(&config, Checkpoint::open(dir)?)?;
    let stored_type = saved_as.unwrap_or(stored.stored_type);
    let precision = precision(options, stored_type)?;
    check_shapes(&config, options.quantization)?;

    let threads = options
        .threads
        .unwrap_or_else(default_threads)
        .clamp(1, 1024);
    let mut pool = Pool::new(threads).map_err(|source| LoadError::Backend {
        doing: "starting its threads",
        source: source.into(),
    })?;
    check_weights_fit(&stored, precision)?;
    let ops = Ops::of(kernels);
    let model = pack(config, &stored, precision, &options.sample, &ops, &mut pool)?;

    let config = &model.config;
    let shape = CacheShape::of(config, precision.half_cache);
    let CacheSize {
        num_blocks,
        max_positions,
    } = CacheSizing {
        trained_positions: config.max_positions,
        max_model_len: options.max_model_len,
        max_batch: options.max_batch,
        kv_cache_bytes: options.kv_cache_bytes,
        block_size: BLOCK_SIZE,
        block_bytes: shape.block_bytes() as u64,
        free: available_bytes(),
        share: CACHE_SHARE,
    }
    .size()?;
    let cache = Cache::new(shape, num_blocks)
        .map_err(|error| LoadError::OutOfMemory(format!("the cache cannot be mapped: {error}")))?;
    let spec = ModelSpec {
        architecture: config.architecture.clone(),
        vocab_size: config.vocab_size,
        max_positions,
        block_size: BLOCK_SIZE,
        num_blocks,
        dtype: precision.dtype().to_owned(),
        device: "cpu".to_owned(),
        hidden_size: config.hidden_size,
        quantization: options.quantization.to_string(),
        kernels: kernels.to_string(),
        weight_bytes: model.weight_bytes,
        kv_cache_bytes: (num_blocks * shape.block_bytes()) as u64,
    };
    tracing::info!(
        model = %spec,
        weight_bytes = spec.weight_bytes,
        kv_cache_bytes = spec.kv_cache_bytes,
        max_positions,
        %kernels,
        threads,
        seconds = begin.elapsed().as_secs_f64(),
        "model loaded"
    );
    CpuBackend::new(model, stored.into(), cache, spec, kernels, pool)
}

pub(crate) fn choose_kernels(asked: Option<Kernels>) -> Result<Kernels, LoadError> {
    match asked {
        None => Ok(Kernels::best()),
        Some(kernels) if kernels.available() => Ok(kernels),
        Some(kernels) => Err(LoadError::UnavailableDevice(format!(
            "the kernels {kernels} were asked for, but this processor lacks their instructions; \
             the best it has are {}",
            Kernels::best()
        ))),
    }
}

pub(crate) fn precision(options: &LoadOptions, stored: StoredType) -> Result<Precision, LoadError> {
    if options.dtype == DType::Auto && stored != StoredType::BF16 {
        tracing::info!(
            saved_as = %stored,
            "the model computes in bfloat16, in half the memory and time of float32: ask for dtype \
             float32 if that is not exact enough"
        );
    }
    let base = match options.dtype {
        DType::Float16 => {
            return Err(LoadError::InvalidConfig(
                "the CPU backend does not compute in float16: use auto, bfloat16 or float32".into(),
            ));
        }
        DType::Auto | DType::BFloat16 => Format::Bf16,
        DType::Float32 => Format::F32,
    };
    let (layers, others) = match options.quantization {
        Quantization::None => (base, base),
        Quantization::Int8 => (Format::Int8, Format::Int8),
        Quantization::Int4 => (Format::Int4, Format::Int8),
    };
    Ok(Precision {
        layers,
        keys_values: others,
        head: others,
        half_cache: base == Format::Bf16,
    })
}

pub(crate) fn check_shapes(
    config: &DecoderConfig,
    quantization: Quantization,
) -> Result<(), LoadError> {
    if config.head_dim > MAX_HEAD {
        return Err(LoadError::InvalidConfig(format!(
            "head_dim is {}, but the CPU backend takes at most {MAX_HEAD}",
            config.head_dim
        )));
    }
    let inputs = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        (
            "num_attention_heads * head_dim",
            config.num_heads * config.head_dim,
        ),
    ];
    let odd = inputs.iter().find(|(_, n)| !n.is_multiple_of(GROUP));
    match odd {
        Some((name, n)) if quantization != Quantization::None => Err(LoadError::InvalidConfig(
            format!("{name} is {n}, but quantization {quantization} needs multiples of {GROUP}"),
        )),
        _ => Ok(()),
    }
}

/// Share of the free memory that the cache takes by default. The rest is for activations, the
/// page cache and the process.
const CACHE_SHARE: f64 = 0.5;

/// Refuses weights that cannot fit, before the kernel ends the process for them.
pub(crate) fn check_weights_fit(stored: &Weights, precision: Precision) -> Result<(), LoadError> {
    let numbers = stored.bytes / stored.stored_type.size_bytes() as u64;
    let bits = match precision.layers {
        Format::F32 => 32,
        Format::Bf16 => 16,
        Format::Int8 => 9,
        Format::Int4 => 5,
    };
    let needed = numbers * bits / 8;
    match available_bytes() {
        Some(free) if needed > free => Err(LoadError::OutOfMemory(format!(
            "the packed weights need {needed} bytes, but {free} are available"
        ))),
        _ => Ok(()),
    }
}

/// Heeds the CPU quota of the cgroup.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
