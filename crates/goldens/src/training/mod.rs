//! What PEFT, torch and TRL compute in training, and the ways to ask a [`Learner`] for the same.
//!
//! ```no_run
//! # fn load(_: &std::path::Path, _: &hyprstream_training::Parameters)
//! #     -> Box<dyn hyprstream_training::Learner> { unimplemented!() }
//! use hyprstream_goldens::training::{Preferences, TRAINED, Trained};
//! for model in TRAINED {
//!     for case in Trained::read(model) {
//!         case.check(&mut *load(case.dir(), case.parameters()));
//!     }
//! }
//! let pairs = Preferences::read();
//! pairs.check(&mut *load(pairs.dir(), pairs.parameters()));
//! ```
//!
//! PEFT takes the length of the changed weight that DoRA divides by as a constant: its derivative is
//! not part of the gradients (<https://arxiv.org/abs/2402.09353>, section 4.3).

mod adamw;
mod case;
mod layout;
mod long;
mod preferences;
mod records;
mod saved;

pub use adamw::AdamW;
pub use case::Trained;
pub use layout::{Worst, laid_out, worst_gradient};
pub use long::Long;
pub use preferences::Preferences;
pub use records::{MaskedChat, Masks, Optimised, Optimiser, Schedule};
pub use saved::{EVERYTHING, PLAIN, Saved};

/// Names of the tiny models that have been trained: those that have adapters.
pub const TRAINED: [&str; 8] = crate::ADAPTED;

/// Largest relative difference of a gradient in f32: of each A, B and magnitude the length of the
/// difference, divided by its length.
pub const GRADIENT_TOLERANCE: f64 = 1e-5;

/// Largest relative difference of the loss of each of ten steps in f32.
pub const LOSS_TOLERANCE: f64 = 1e-5;

/// Largest relative difference of the loss of each of 200 steps in f32; PEFT's own between f32 and
/// f64 is below a tenth of it.
pub const LONG_TOLERANCE: f64 = 1e-3;

/// Largest difference of the logarithm of a probability between what trained an adapter and what has
/// read it from its files, both in f32.
pub const SAVED_TOLERANCE: f64 = 1e-4;
