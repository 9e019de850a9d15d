//! Architectures, a file each.

mod llama;

pub(crate) use llama::Llama;
