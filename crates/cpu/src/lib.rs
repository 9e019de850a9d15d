//! Runs models on the CPU, without libtorch: the backend that the worker uses there.
//!
//! [`load`] packs the weights of a Hugging Face folder for the kernels of this processor and
//! returns a [`CpuBackend`], which the engine drives through [`hyprstream_engine::Backend`]. A
//! step is one mixed batch, computed by all threads together ([`pool`]); attention reads the
//! cache's blocks where they lie. Kernels are chosen when the model is loaded ([`Kernels`]), and
//! each set can be asked for.
//!
//! From below: what a model is ([`model`]); the phases of a step ([`step`]), which know the model
//! and its [`plan`]; packing a model ([`pack`]), which runs steps to see what inputs are like; the
//! backend. None knows one above it.
//!
//! Results do not depend on what else is in the batch, nor on how a prompt was cut into pieces:
//! not up to rounding, but bit for bit.
//!
//! An adapter is packed beside the engine's thread ([`AdapterPacker`]); a step takes any number of
//! them, stacked and scaled for each sequence.
//!
//! [`CpuLearner`] trains adapters over the same packed weights, by steps of its own.
//!
//! # Limitations
//! f16 weights are computed in bf16, or in f32 when asked for.

mod adapter;
mod backend;
mod buffer;
mod cache;
mod format;
mod kernels;
mod learn;
mod load;
mod model;
mod pack;
mod plan;
mod pool;
mod product;
mod step;
mod weights;

pub use adapter::{AdapterError, AdapterPacker};
pub use backend::CpuBackend;
pub use kernels::{InvalidKernels, Kernels};
pub use learn::{CpuLearner, LearnLoadError, LearnOptions};
pub use load::{InvalidQuantization, LoadOptions, Quantization, load};
pub use pack::SAMPLE_TEXT;
