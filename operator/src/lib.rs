//! The controllers of our kinds: [`model`] and [`adapter`].
//!
//! A kind has a folder of its own with the five steps of its reconciliation: `fetch` looks at what
//! there is, `validate` refuses what cannot work, `build` says what there should be, `apply` makes
//! it so, `status` tells. The first and the last two do IO, the others are pure. [`run`] registers
//! it.
//!
//! What kinds share stands beside them: [`controller`] watches objects and frames each
//! reconciliation, [`owner`] says for whom objects are made, [`mod@apply`] writes them, [`volume`]
//! shows commits to pods, [`reporting`] writes statuses and events. What takes long, resolving a
//! reference and mirroring a commit, happens in [`source`], a task per object whose findings a
//! reconciliation only reads; so a slow upstream never holds up another object.

pub mod adapter;
pub mod apply;
pub mod args;
pub mod authority;
pub mod cache;
pub mod cleanup;
pub mod complaints;
pub mod controller;
pub mod crds;
pub mod kind;
pub mod leader;
pub mod lost_nodes;
pub mod metrics;
pub mod model;
pub mod owner;
pub mod policy;
pub mod ready;
pub mod registry;
pub mod reporting;
pub mod run;
pub mod source;
pub mod sweep;
pub mod training;
pub mod volume;

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some print their source themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
