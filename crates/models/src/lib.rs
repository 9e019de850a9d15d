//! What a model folder says: its configuration as one description of a decoder, and its weights.
//!
//! A family (`families/`) turns a `config.json` into a [`DecoderConfig`]; backends run any
//! [`DecoderConfig`] and know no family. The crate links no backend and computes nothing but the
//! frequencies of rotary embeddings.

mod decoder;

pub use decoder::{Activation, AttentionKind, DecoderConfig, Rope, WeightNames};
