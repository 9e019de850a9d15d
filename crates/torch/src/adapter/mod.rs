//! Low-rank adapters in the step.
//!
//! An adapter changes linear maps: `y = x W^T + scale * (x A^T) B^T`. The factors of all adapters of
//! a step lie beside each other along the rank ([`Terms`]), and what lies between the factors is
//! multiplied by the scale that each token has for the adapter of each column, 0 where a token does
//! not have it ([`Changes`]). So a step costs one more product for each input of a layer and one for
//! each of its matrices, however many adapters it has, and tokens without any keep what they had.
//!
//! What DoRA multiplies by is found when an adapter is packed: it is part of the second factor, and
//! multiplies the product of the matrix as well.

mod attached;
mod changes;
mod pack;
mod place;
mod terms;

pub(crate) use attached::Attached;
pub(crate) use changes::{Change, Changes};
pub use pack::{AdapterError, AdapterPacker};
pub(crate) use pack::{Packed, Shape};
pub(crate) use place::Part;
