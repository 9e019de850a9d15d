//! Runs models on libtorch: the only crate that links it.
//!
//! [`load`] maps a Hugging Face folder and returns a [`TorchBackend`], which the engine drives
//! through [`hyprstream_engine::Backend`]. A step is one mixed batch: the tokens of all sequences
//! go through the linear layers together, attention runs sequence by sequence over blocks of the
//! cache. Adapters that [`AdapterPacker`] made ready are mixed in a batch, each sequence having a
//! stack of its own.
//!
//! [`load_learner`] loads the same folder to be trained with an adapter: what
//! [`hyprstream_training::Learner`] asks for.
//!
//! Building needs `LIBTORCH` (`cargo xtask libtorch` prints it). The libraries for CUDA and ROCm
//! are looked for when the program runs; see [`Device`].
//!
//! # Limitations
//! Weights are used as they lie on disk where device and type allow, and are not packed for the
//! CPU. A prompt without adapters is multiplied by the first factors of those that others in its
//! step have.

mod adapter;
mod attention;
mod backend;
mod cache;
mod decoder;
mod device;
mod error;
mod gpu_memory;
mod layers;
mod learn;
mod load;
mod plan;
mod rope;

pub use adapter::{AdapterError, AdapterPacker};
pub use backend::TorchBackend;
pub use device::has_gpu;
pub use hyprstream_models::{DType, InvalidDType, LoadError};
pub use hyprstream_models::{Device, InvalidDevice};
pub use learn::{LearnOptions, LearnerError, TorchLearner, load_learner};
pub use load::{LoadOptions, load};
