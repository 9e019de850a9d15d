//! Why a model could not be loaded.

use std::path::PathBuf;

/// Why a folder gave no model, or a backend could not take it.
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
    #[error("the architecture {name:?} is not supported: supported are {supported}")]
    UnsupportedArchitecture {
        /// Its name.
        name: String,
        /// Names of those that are, for the reader.
        supported: String,
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
    /// The library that computes failed.
    #[error("the backend failed while {doing}")]
    Backend {
        /// The failed act.
        doing: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
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
            Self::Read { .. } | Self::Backend { .. } => "InternalError",
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
}
