//! Why a model could not be loaded.

use std::path::PathBuf;

use hyprstream_engine::BackendError;
use tch::TchError;

/// Why [`crate::load`] gave no backend.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the model is not there.
    #[error("{} is missing", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file of the model could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` names an architecture that we do not have.
    #[error("the architecture {name:?} is not supported: supported is LlamaForCausalLM")]
    UnsupportedArchitecture {
        /// Its name.
        name: String,
    },
    /// `config.json` cannot be read, or sets something that we do not honour.
    #[error("config.json: {0}")]
    InvalidConfig(String),
    /// A file of weights is damaged, is not what it says, or does not fit the configuration.
    #[error("{}: {why}", path.display())]
    InvalidWeights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The model or its cache does not fit.
    #[error("{0}")]
    OutOfMemory(String),
    /// The device does not exist here, or its libraries do not.
    #[error("{0}")]
    UnavailableDevice(String),
    /// libtorch threw.
    #[error("libtorch failed while {doing}")]
    Torch {
        /// The failed act.
        doing: &'static str,
        /// What it said.
        source: TchError,
    },
}

impl LoadError {
    /// CamelCase reason, one of those in `contract::worker::LastWords`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingFile { .. } => "MissingFile",
            Self::UnsupportedArchitecture { .. } => "UnsupportedArchitecture",
            Self::InvalidConfig(_) => "InvalidConfig",
            Self::InvalidWeights { .. } => "InvalidWeights",
            Self::OutOfMemory(_) => "OutOfMemory",
            Self::UnavailableDevice(_) => "UnavailableDevice",
            Self::Torch { source, .. } if is_out_of_memory(source) => "OutOfMemory",
            Self::Read { .. } | Self::Torch { .. } => "InternalError",
        }
    }

    /// Whether another start on the same commit and options fails in the same way.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::MissingFile { .. }
                | Self::UnsupportedArchitecture { .. }
                | Self::InvalidConfig(_)
                | Self::InvalidWeights { .. }
        )
    }

    /// For `map_err` of a call into libtorch.
    pub(crate) fn torch(doing: &'static str) -> impl Fn(TchError) -> Self {
        move |source| Self::Torch { doing, source }
    }
}

fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    text.contains("out of memory") || text.contains("not enough memory")
}

/// The engine's view of an exception during a step.
pub(crate) fn step_error(error: &TchError) -> BackendError {
    // The text carries a C++ stack trace after the first line.
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().to_owned();
    // Errors of a CUDA kernel stick to the context; running out of memory does not.
    let sticks = text.contains("CUDA error") || text.contains("HIP error");
    if sticks && !is_out_of_memory(error) {
        BackendError::Fatal(first)
    } else {
        BackendError::Step(first)
    }
}
