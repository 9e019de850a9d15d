//! What a model folder says: its configuration as one description of a decoder, and its weights.
//!
//! A family (`families/`) turns a `config.json` into a [`DecoderConfig`]; backends run any
//! [`DecoderConfig`] and know no family. [`Checkpoint`] maps the safetensors, and [`Weights`] are
//! the tensors that a [`DecoderConfig`] calls for, each where it belongs:
//!
//! ```no_run
//! # use hyprstream_models::{Checkpoint, DecoderConfig, LoadError, Weights};
//! # fn load(dir: &std::path::Path) -> Result<(), LoadError> {
//! let (config, _saved_as) = DecoderConfig::read(dir)?;
//! let weights = Weights::take(&config, Checkpoint::open(dir)?)?;
//! let rows = weights.layers[0].query.weight.bytes();
//! # Ok(())
//! # }
//! ```
//!
//! [`adapter`] reads and writes what is trained upon them.
//!
//! The crate links no backend and computes nothing but the frequencies of rotary embeddings, and
//! what an adapter would change in a weight.
//!
//! # Limitations
//! Text decoders whose layers are all alike but for their attention. No mixture of experts, no
//! quantised checkpoints, no rotary embedding that changes with the length of the sequence
//! (`dynamic`, `longrope`). What is not honoured is refused by name.

pub mod adapter;

mod cache_size;
mod checkpoint;
mod config;
mod decoder;
mod device;
mod dtype;
mod error;
mod families;
mod memory;
mod weights;

pub use cache_size::{CacheSize, CacheSizing};
pub use checkpoint::{Checkpoint, MappedFile, StoredTensor};
pub use decoder::{Activation, AttentionKind, DecoderConfig, Rope, WeightNames};
pub use device::{Device, InvalidDevice};
pub use dtype::{DType, InvalidDType, StoredType};
pub use error::LoadError;
pub use memory::available_bytes;
pub use weights::{LayerWeights, LinearWeights, Weights};
