//! The worker: the only program that runs models.
//!
//! `serve` listens before the model is loaded, so that the kubelet and people can see what it
//! does; [`server`] is the HTTP side and knows no libtorch; [`backend`] is the only module that
//! does, and only with the feature `torch`.

pub mod adapters;
mod args;
pub mod backend;
pub mod bench;
mod clock;
pub mod environment;
mod last_words;
mod open;
pub mod serve;
pub mod server;
pub mod train;

pub use adapters::AdapterArgs;
pub use args::{
    ApiArgs, Args, Command, Kernels, LogArgs, ModelArgs, Quantization, ServeArgs, TlsArgs,
};
pub use bench::BenchArgs;
pub use train::TrainArgs;
