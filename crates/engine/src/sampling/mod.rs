//! Choosing the next token from a row of logits.

mod nucleus;
mod params;
mod penalties;
mod rng;
mod sampler;
mod vector;

pub use params::{InvalidParams, SamplingParams};
pub(crate) use sampler::{
    Allowed, Logprobs, SampleError, Sampled, Sampler, Scratch, Tell, logprobs_of,
};

#[cfg(test)]
mod tests;
