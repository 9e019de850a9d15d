//! From a model's folder to a learner.

use std::{path::Path, time::Instant};

use hyprstream_models::{DType, DecoderConfig, Device, LoadError, adapter::Site};
use hyprstream_training::{Parameters, Part};
use tch::Kind;

use super::TorchLearner;
use crate::{
    device,
    gpu_memory::Loan,
    load::{dtype_name, open, resolve},
};

/// How a model is to be trained.
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// Where it runs.
    pub device: Device,
    /// In which type the frozen model computes; adapters are always of f32. 16 bits can only be
    /// bfloat16: derivatives are too small for the other. A model that is stored in float16 becomes
    /// float32 if nothing else is asked for.
    pub dtype: DType,
    /// Threads of the CPU. `None` is what the machine and the quota of the cgroup allow.
    pub threads: Option<usize>,
    /// Layers are computed a second time for their derivatives. Otherwise what is between all of
    /// them is kept, which saves that time and takes memory for each layer.
    pub recompute: bool,
    /// Logits that are there at once, at least those of one token. Each takes 4 bytes, its
    /// derivative as much again, and so does what lies between them.
    pub logits_at_once: usize,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            dtype: DType::Auto,
            threads: None,
            recompute: true,
            logits_at_once: 1 << 24,
        }
    }
}

/// Why there is no learner.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(LoadError),
    /// Derivatives would be 0 where they are small.
    #[error("a model cannot be trained in float16: ask for bfloat16 or float32")]
    Float16,
    /// The adapter does not fit the model.
    #[error("the adapter's part at {site} does not fit the model: {why}")]
    Part {
        /// What it changes.
        site: Site,
        /// What is wrong with it.
        why: String,
    },
}

/// Loads the model in `dir`, `config.json` and its safetensors, to be trained with an adapter whose
/// numbers lie as `parameters` says.
///
/// Weights that lie on disk in the type and for the device that they are used on are mapped, not
/// copied: the files must not change while the learner lives.
///
/// # Errors
/// [`LearnerError`].
pub fn load_learner(
    dir: &Path,
    parameters: Parameters,
    options: &LearnOptions,
) -> Result<TorchLearner, LearnerError> {
    if options.dtype == DType::Float16 {
        return Err(LearnerError::Float16);
    }
    let begin = Instant::now();
    let loan = device::resolve(options.device).map_err(LearnerError::Model)?;
    let loan = Loan::begin(loan);
    let opened = open(
        dir,
        options.device,
        options.threads,
        |stored, device| match resolve(options.dtype, stored, device) {
            Kind::Half => Kind::Float,
            kind => kind,
        },
    )
    .map_err(LearnerError::Model)?;
    for part in &parameters.parts {
        check(part, parameters.len, &opened.config).map_err(|why| LearnerError::Part {
            site: part.site,
            why,
        })?;
    }
    tracing::info!(
        architecture = opened.config.architecture,
        dtype = dtype_name(opened.kind),
        device = ?opened.device,
        trained = parameters.len,
        recompute = options.recompute,
        num_threads = opened.num_threads,
        seconds = begin.elapsed().as_secs_f64(),
        "model loaded for training"
    );
    Ok(TorchLearner {
        model: opened.model,
        stored: opened.weights,
        config: opened.config,
        parameters,
        device: opened.device,
        kind: opened.kind,
        recompute: options.recompute,
        logits_at_once: options.logits_at_once,
        num_threads: opened.num_threads,
        prepared: None,
        _loan: loan,
    })
}

/// Says why a part does not fit the model, or numbers that are `len` in all.
fn check(part: &Part, len: usize, config: &DecoderConfig) -> Result<(), String> {
    if let Site::Layer(layer, _) = part.site
        && layer >= config.num_layers()
    {
        return Err(format!("it has {} layers", config.num_layers()));
    }
    let (outputs, inputs) = part.site.size(config);
    if part.rank == 0 {
        return Err("its rank is 0".to_owned());
    }
    let ranges = [
        ("A", Some(&part.a), part.rank * inputs),
        ("B", Some(&part.b), outputs * part.rank),
        ("the magnitude", part.magnitude.as_ref(), outputs),
    ];
    for (name, range, needed) in ranges {
        let Some(range) = range else { continue };
        if range.len() != needed || range.end > len {
            return Err(format!(
                "{name} lies at {range:?} of {len} numbers, but {needed} are needed"
            ));
        }
    }
    if !part.scaling.is_finite() {
        return Err(format!("its scaling is {}", part.scaling));
    }
    Ok(())
}
