//! What users are told of objects of any kind: statuses, events, and of objects that cannot be read.

pub mod conditions;
pub mod events;
pub mod intake;
mod malformed;
pub mod source;
mod statuses;

pub use statuses::{Statuses, Told};
