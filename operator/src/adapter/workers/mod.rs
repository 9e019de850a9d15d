//! What workers say of their adapters. [`Asker`] asks; what an answer means is pure.

mod ask;
mod word;

pub use ask::{AskError, Asker, Asking};
pub use word::{Report, Served, Word, Words, words};

/// A ready worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPod {
    /// Name of the pod.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// How often its containers were started again.
    pub restarts: i32,
    /// Its address, once it has one.
    pub address: Option<String>,
    /// Whether it speaks TLS.
    pub tls: bool,
}
