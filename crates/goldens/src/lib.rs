//! What every backend must compute: goldens made by Hugging Face transformers, and the ways to run
//! them through any [`Backend`].
//!
//! A development dependency of backends: it links none, and its functions panic with what
//! disagrees, as tests do. `data/` holds the goldens, `make.py` makes them.
//!
//! ```no_run
//! # fn load(_: &std::path::Path) -> Box<dyn hyprstream_engine::Backend> { unimplemented!() }
//! use hyprstream_goldens::{TINY, Tiny};
//! for name in TINY {
//!     let tiny = Tiny::read(name);
//!     tiny.check(&mut *load(tiny.dir()));
//! }
//! ```
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "this crate is for tests only"
)]

mod adapters;
mod perplexity;
mod real;
mod run;
mod text;
mod tiny;
pub mod training;

use std::path::{Path, PathBuf};

pub use adapters::{ADAPTED, ADAPTER_TOLERANCE, Adapters, Written};
pub use perplexity::Perplexity;
pub use real::{Case, Real, RealModel};
pub use run::{Way, greedy, hidden, logits, logits_with};
pub use text::Corpus;
pub use tiny::{TINY, Tiny, worst};

/// Largest difference of a logit in f32.
pub const TOLERANCE: f32 = 1e-3;

/// The goldens' folder.
fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
