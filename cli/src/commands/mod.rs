//! The commands, one file for each family.

pub(crate) mod clone;
mod context;
pub(crate) mod history;
pub(crate) mod serve;
pub(crate) mod sync;
pub(crate) mod work;
pub(crate) mod worktree;
