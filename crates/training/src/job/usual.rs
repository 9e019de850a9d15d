//! What a job does where its file says nothing, beside the defaults of its parts.

/// Rows of each A.
pub(super) const RANK: usize = 16;
/// What `B A` is multiplied by, times the rank.
pub(super) const ALPHA: f64 = 32.0;
/// How often every sample is seen.
pub(super) const EPOCHS: u32 = 3;
/// The highest learning rate of `sft`.
pub(super) const SFT_LEARNING_RATE: f64 = 2e-4;
/// That of `dpo`.
pub(super) const DPO_LEARNING_RATE: f64 = 1e-5;
/// Strength of the pull towards the reference, for `dpo`.
pub(super) const DPO_BETA: f64 = 0.1;
/// Most tokens that are computed at once, unless `maxLength` is more.
pub(super) const MICRO_BATCH_TOKENS: usize = 2048;
