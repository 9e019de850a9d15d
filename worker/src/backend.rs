//! Loading a model on a backend.

use std::sync::Arc;

use hyprstream_engine::{
    Backend, Engine, EngineConfig, EngineHandle, FilesError, GenerationDefaults, ModelFiles,
    Observer, StartError,
};

use crate::{
    ModelArgs, Quantization,
    adapters::{Adapters, Packer},
    open::{self, Opened},
};

/// A model that is ready to answer.
pub struct Loaded {
    /// Runs it.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub tokenizer: Arc<hyprstream_engine::Tokenizer>,
    /// How conversations become prompts.
    pub template: Option<hyprstream_engine::ChatTemplate>,
    /// What the model's makers advise.
    pub defaults: GenerationDefaults,
    /// What changes its answers where a request asks for it.
    pub adapters: Adapters,
}

/// A model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// This build cannot use what was asked for.
    #[error(
        "{asked} needs libtorch, which this program was built without: take the image worker-cuda or \
         worker-rocm, or build it with the feature \"torch\""
    )]
    WithoutTorch {
        /// The option and its value.
        asked: String,
    },
    /// An option has a value that the backend does not know.
    #[error("{0}")]
    InvalidOption(String),
    /// The weights or their configuration.
    #[error("{message}")]
    Backend {
        /// CamelCase, for a condition.
        reason: &'static str,
        /// In words.
        message: String,
        /// Whether another start fails in the same way.
        is_final: bool,
    },
    /// Tokenizer, template or defaults.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The engine's thread.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// A thread of the loading died.
    #[error("loading ended in a panic")]
    Panic,
}

impl LoadFailure {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Backend { reason, .. } => reason,
            Self::Files(error) => error.reason(),
            Self::InvalidOption(_) => "InvalidConfig",
            Self::WithoutTorch { .. } => "UnavailableDevice",
            Self::Engine(_) | Self::Panic => "InternalError",
        }
    }

    /// Whether another start on the same files and options fails in the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Backend { is_final, .. } => *is_final,
            Self::Files(error) => error.is_final(),
            Self::InvalidOption(_) | Self::WithoutTorch { .. } => true,
            Self::Engine(_) | Self::Panic => false,
        }
    }

    /// The error and its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
}

/// Loads the model that `args` names and starts an engine on it, which has no adapters yet; what is
/// returned beside it makes adapters ready for it.
///
/// # Errors
/// The model, an option or the machine does not allow it.
pub fn load(
    args: &ModelArgs,
    max_queue: usize,
    observer: Arc<dyn Observer>,
) -> Result<(Loaded, Arc<dyn Packer>), LoadFailure> {
    let (opened, files) = if args.quantization == Quantization::Int4 {
        // The scales of 4 bits depend on some text.
        let files = ModelFiles::load(&args.model)?;
        let sample = files.tokenizer.encode(hyprstream_cpu::SAMPLE_TEXT, true);
        let sample = sample.map_err(FilesError::from)?;
        (open::open(args, sample)?, files)
    } else {
        // Weights are packed while the tokenizer is parsed: both take a good part of the start.
        let (opened, files) = std::thread::scope(|scope| {
            let files = scope.spawn(|| ModelFiles::load(&args.model));
            let opened = open::open(args, Vec::new());
            (opened, files.join())
        });
        (opened?, files.map_err(|_| LoadFailure::Panic)??)
    };
    let Opened { backend, packer } = opened;
    let loaded = start(backend, files, args, max_queue, observer)?;
    Ok((loaded, packer))
}

/// Starts an engine on `backend` and `files`, without adapters.
///
/// # Errors
/// [`LoadFailure::Engine`].
pub fn start(
    backend: Box<dyn Backend>,
    files: ModelFiles,
    args: &ModelArgs,
    max_queue: usize,
    observer: Arc<dyn Observer>,
) -> Result<Loaded, LoadFailure> {
    let tokenizer = Arc::new(files.tokenizer);
    let config = EngineConfig {
        max_batch: args.max_batch,
        max_step_tokens: args.max_step_tokens,
        max_queue,
        max_model_len: args.max_model_len.unwrap_or(usize::MAX),
        eos: files.defaults.eos.clone(),
        prefix_cache: !args.no_prefix_cache,
    };
    let engine = Engine::start(backend, Arc::clone(&tokenizer), config, observer)?;
    Ok(Loaded {
        engine,
        tokenizer,
        template: files.template,
        defaults: files.defaults,
        adapters: Adapters::default(),
    })
}
