//! The command line's part about adapters.

use std::path::{Path, PathBuf};

use clap::ArgAction;
use hyprstream_contract::{adapters::MAX_ADAPTERS, model_ref::MAX_STACK, worker::env};
use hyprstream_engine::ModelSpec;
use hyprstream_models::available_bytes;

use super::{Limits, Options};
use crate::{args::at_least_one, server::Identity};

/// Share of the memory beside weights and cache that adapters take by default.
const MEMORY_SHARE: u64 = 4;
/// What they have at least by default, in bytes.
const LEAST_MEMORY: u64 = 64 << 20;

/// Which adapters a server has, and how many at once.
#[derive(Clone, Debug, clap::Args)]
pub struct AdapterArgs {
    /// Directory whose adapters are served, as its `adapters.json` lists them; it is followed.
    #[arg(long, env = env::ADAPTERS, value_name = "DIR")]
    pub adapters: Option<PathBuf>,
    /// Whether the adapters in the model's own folder `adapters` are served: true or false.
    #[arg(long, env = env::REPOSITORY_ADAPTERS, action = ArgAction::Set, default_value_t = true)]
    pub repository_adapters: bool,
    /// Directory below which requests to load an adapter may name one; without it none is loaded
    /// on request.
    #[arg(long, env = "HYPRSTREAM_ADAPTER_ROOT", value_name = "DIR")]
    pub adapter_root: Option<PathBuf>,
    /// Memory of adapters that are ready to compute with, in bytes; by default a quarter of what is
    /// free beside weights and cache. Others come back from their files when they are asked for.
    #[arg(long, env = env::ADAPTER_MEMORY_BYTES)]
    pub adapter_memory_bytes: Option<u64>,
    /// Most adapters that are ready to compute with.
    #[arg(long, env = env::MAX_ADAPTERS, default_value_t = MAX_ADAPTERS, value_parser = at_least_one)]
    pub max_adapters: usize,
    /// Largest rank of an adapter.
    #[arg(long, env = env::MAX_ADAPTER_RANK, default_value = "512", value_parser = at_least_one)]
    pub max_adapter_rank: usize,
    /// Most adapters that one request may name, up to 8.
    #[arg(long, env = "HYPRSTREAM_MAX_STACKED_ADAPTERS", default_value_t = MAX_STACK, value_parser = stack_size)]
    pub max_stacked_adapters: usize,
}

/// From one to what names of models can say.
fn stack_size(text: &str) -> Result<usize, String> {
    let size = at_least_one(text)?;
    if size > MAX_STACK {
        return Err(format!("{MAX_STACK} is the most"));
    }
    Ok(size)
}

impl AdapterArgs {
    /// What the store of adapters of this model is told. Called when the model is loaded: what is
    /// free then is shared out, on the GPU if adapters lie there ([`Packer::gpu_free_bytes`]).
    ///
    /// [`Packer::gpu_free_bytes`]: super::Packer::gpu_free_bytes
    pub fn options(
        &self,
        model_dir: &Path,
        identity: &Identity,
        spec: &ModelSpec,
        gpu_free_bytes: Option<u64>,
    ) -> Options {
        let by_default = || {
            let free = gpu_free_bytes.unwrap_or_else(|| {
                // The cache's pages are taken as they are written.
                let free = available_bytes().unwrap_or(0);
                free.saturating_sub(spec.kv_cache_bytes)
            });
            (free / MEMORY_SHARE).max(LEAST_MEMORY)
        };
        Options {
            model: identity.name.clone(),
            commit: identity.commit().map(str::to_owned),
            follow: self.adapters.clone(),
            repository: self.repository_adapters.then(|| model_dir.to_owned()),
            root: self.adapter_root.clone(),
            limits: Limits {
                memory_bytes: self.adapter_memory_bytes.unwrap_or_else(by_default),
                resident: self.max_adapters,
                rank: self.max_adapter_rank,
                stacked: self.max_stacked_adapters,
            },
            ..Options::default()
        }
    }
}
