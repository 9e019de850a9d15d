//! What computes a training: the CPU's own learner, or libtorch's.

use std::path::Path;

use hyprstream_cpu::{CpuLearner, LearnLoadError};
use hyprstream_models::{DType, Device, LoadError};
use hyprstream_training::{Learner, Parameters};

use crate::{
    Kernels,
    backend::LoadFailure,
    open::{Place, refused, without_torch},
};

/// What is to compute, as the options ask for it.
#[derive(Clone, Debug)]
pub(crate) struct LearnerChoice {
    place: Place,
    dtype: DType,
    /// In which type the CPU's learner multiplies.
    products: DType,
    kernels: Kernels,
    threads: Option<usize>,
}

/// A learner, and what it takes.
pub(crate) struct Loaded {
    /// It.
    pub(crate) learner: Box<dyn Learner>,
    /// Bytes of the frozen weights.
    pub(crate) weight_bytes: u64,
}

/// Why there is no learner.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LearnerError {
    /// An option that cannot be had here.
    #[error(transparent)]
    Option(#[from] LoadFailure),
    /// The model cannot be loaded.
    #[error("the model cannot be trained here")]
    Model(#[source] LoadError),
    /// What this learner does not have: the form of the adapter, or the type of the weights.
    #[error("this job cannot be trained here")]
    Job(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LearnerChoice {
    /// What these options stand for on this machine, by the rules of serving: a GPU's if there is
    /// one, else the CPU's own; libtorch on the CPU only where its kernels are asked for by name.
    ///
    /// # Errors
    /// [`LearnerError::Option`].
    pub(crate) fn new(
        device: Device,
        [dtype, products]: [DType; 2],
        kernels: Kernels,
        threads: Option<usize>,
    ) -> Result<Self, LearnerError> {
        let place = Place::of(device, kernels)?;
        match place {
            Place::Torch(device) if cfg!(not(feature = "torch")) => {
                return Err(without_torch(device).into());
            }
            Place::Torch(_) if products != DType::Auto => {
                return Err(refused("--products", &products).into());
            }
            Place::Cpu | Place::Torch(_) => {}
        }
        Ok(Self {
            place,
            dtype,
            products,
            kernels,
            threads,
        })
    }

    /// Loads the model in `dir` to be trained with an adapter laid out as `parameters`.
    ///
    /// # Errors
    /// [`LearnerError`].
    pub(crate) fn load(&self, dir: &Path, parameters: Parameters) -> Result<Loaded, LearnerError> {
        match self.place {
            Place::Cpu => self.load_cpu(dir, parameters),
            Place::Torch(device) => torch::load(self, device, dir, parameters),
        }
    }

    fn load_cpu(&self, dir: &Path, parameters: Parameters) -> Result<Loaded, LearnerError> {
        let options = hyprstream_cpu::LearnOptions {
            dtype: self.dtype,
            products: self.products,
            kernels: self.kernels.on_cpu(),
            threads: self.threads,
            ..hyprstream_cpu::LearnOptions::default()
        };
        let learner = CpuLearner::load(dir, parameters, &options);
        let learner = learner.map_err(|error| match error {
            LearnLoadError::Model(error) => LearnerError::Model(error),
            other => LearnerError::Job(other.into()),
        })?;
        Ok(Loaded {
            weight_bytes: learner.weight_bytes(),
            learner: Box::new(learner),
        })
    }
}

#[cfg(feature = "torch")]
mod torch {
    use hyprstream_torch::{LearnOptions, LearnerError as TorchError, load_learner};

    use super::{Device, LearnerChoice, LearnerError, Loaded, Parameters, Path};

    pub(super) fn load(
        choice: &LearnerChoice,
        device: Device,
        dir: &Path,
        parameters: Parameters,
    ) -> Result<Loaded, LearnerError> {
        let options = LearnOptions {
            device,
            dtype: choice.dtype,
            threads: choice.threads,
            ..LearnOptions::default()
        };
        let learner = load_learner(dir, parameters, &options);
        let learner = learner.map_err(|error| match error {
            TorchError::Model(error) => LearnerError::Model(error),
            other => LearnerError::Job(other.into()),
        })?;
        Ok(Loaded {
            weight_bytes: learner.weight_bytes(),
            learner: Box::new(learner),
        })
    }
}

#[cfg(not(feature = "torch"))]
mod torch {
    use super::{Device, LearnerChoice, LearnerError, Loaded, Parameters, Path, without_torch};

    /// What nothing comes to: [`LearnerChoice::new`] refuses libtorch before.
    pub(super) fn load(
        _: &LearnerChoice,
        device: Device,
        _: &Path,
        _: Parameters,
    ) -> Result<Loaded, LearnerError> {
        Err(without_torch(device).into())
    }
}
