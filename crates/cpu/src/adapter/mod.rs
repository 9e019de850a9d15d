//! Low-rank adapters, packed for the kernels.
//!
//! An adapter changes linear maps: `y = x W^T + scale * (x A^T) B^T`. The first factors of the maps
//! of one input are packed side by side, so that a step multiplies by all of them at once; each
//! second factor is packed like the matrix whose outputs it is added to. What DoRA multiplies by is
//! found when an adapter is packed: it is part of the second factor, and multiplies the product of
//! the matrix as well.

mod pack;
mod packed;

pub use pack::{AdapterError, AdapterPacker};
pub(crate) use packed::{Factors, Packed, Shape, Wide, formats};
