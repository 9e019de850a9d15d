//! What a TrainingJob does where its spec says nothing, and the schema has no default.
//!
//! The operator writes them into the file that a pod reads, so that another release of the trainer
//! changes nothing of a job that runs; the gateway multiplies rates by what clients ask for. The
//! trainer has the same for files that people write, which a test of the operator holds to these.

/// Rows of each A.
pub const RANK: u32 = 16;
/// What `B A` is multiplied by, times the rank.
pub const ALPHA: f64 = 32.0;
/// Part of the input of each A that falls out in a step.
pub const DROPOUT: f64 = 0.0;
/// How often every sample is seen.
pub const EPOCHS: u32 = 3;
/// The highest learning rate of what learns to write.
pub const SFT_LEARNING_RATE: f64 = 2e-4;
/// That of what learns to prefer.
pub const DPO_LEARNING_RATE: f64 = 1e-5;
/// Strength of the pull towards the reference, for what learns to prefer.
pub const DPO_BETA: f64 = 0.1;
/// Most tokens that are computed at once, unless one sample has more.
pub const MICRO_BATCH_TOKENS: u32 = 2048;
