//! What users are told of objects: statuses, events, and of objects that cannot be read.

pub mod events;
pub mod intake;
pub(crate) mod malformed;
