//! What the controllers of all kinds have in common.
//!
//! [`watch`] watches the objects of a kind, and [`Controllers`] calls its [`Reconcile`] for each that changed,
//! or that something was triggered for. Around every reconciliation stands the same frame: a span
//! that names the object, so that each line of the log does; objects that are being deleted or
//! cannot be read; counts; and when to look again.

mod backoff;
mod controllers;
mod reconcile;
mod stock;
#[cfg(test)]
mod tests;

pub use controllers::{Controllers, Objects};
pub use reconcile::{Outcome, Reconcile, Reconciled};
pub use stock::{Stock, Watching, watch};
