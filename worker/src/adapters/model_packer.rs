//! Packing for the backends that there are.

use std::path::Path;

use hyprstream_engine::PackedAdapter;
use hyprstream_models::{
    Checkpoint, DecoderConfig, LoadError, Weights,
    adapter::{Adapter, AdapterFiles},
};

use super::packer::{PackError, PackLimits, Packed, Packer, chain};

/// What a backend offers to pack adapters with.
pub trait BackendPacker: Send + Sync {
    /// Bytes that [`Self::pack`] makes of `adapter` at most.
    fn bytes_of(&self, adapter: &Adapter) -> u64;

    /// Packs `adapter` for the backend.
    ///
    /// # Errors
    /// [`PackError`]: it does not fit the model, is not finite, or there is no memory.
    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError>;

    /// As [`Packer::gpu_free_bytes`].
    fn gpu_free_bytes(&self) -> Option<u64> {
        None
    }
}

/// Reads adapters of one model, and packs them for the backend of `P`.
pub struct ModelPacker<P> {
    config: DecoderConfig,
    /// Mapped: nothing of them is read but what an adapter holds a copy of.
    base: Weights,
    packer: P,
}

impl<P: BackendPacker> ModelPacker<P> {
    /// For the model in `dir`, which the backend of `packer` runs.
    ///
    /// # Errors
    /// [`LoadError`], as for the model itself.
    pub fn open(dir: &Path, packer: P) -> Result<Self, LoadError> {
        let (config, _) = DecoderConfig::read(dir)?;
        let base = Weights::take(&config, Checkpoint::open(dir)?)?;
        Ok(Self {
            config,
            base,
            packer,
        })
    }
}

impl<P: BackendPacker> Packer for ModelPacker<P> {
    fn read(&self, files: &AdapterFiles, limits: PackLimits) -> Result<Packed, PackError> {
        let adapter = Adapter::read(files, &self.config, &self.base, limits.files)?;
        // Before the memory is taken.
        let bytes = self.packer.bytes_of(&adapter);
        if bytes > limits.bytes {
            return Err(PackError::too_large(bytes, limits.bytes));
        }
        Ok(Packed {
            content: self.pack(&adapter)?,
            digest: adapter.digest(),
            rank: adapter.rank(),
            revision: adapter.base().revision.clone(),
        })
    }

    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError> {
        self.packer.pack(adapter)
    }

    fn gpu_free_bytes(&self) -> Option<u64> {
        self.packer.gpu_free_bytes()
    }
}

impl BackendPacker for hyprstream_cpu::AdapterPacker {
    fn bytes_of(&self, adapter: &Adapter) -> u64 {
        self.bytes_of(adapter)
    }

    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError> {
        use hyprstream_cpu::AdapterError as Error;

        self.pack(adapter).map_err(|error| {
            let (reason, is_final) = match &error {
                Error::Absent(_) | Error::Shape { .. } => ("ShapeMismatch", true),
                Error::NotFinite(_) => ("NotFinite", true),
                Error::NoLength(_) => ("NoLength", true),
                Error::Memory(_) => ("OutOfMemory", false),
            };
            PackError::new(reason, chain(&error), is_final)
        })
    }
}

#[cfg(feature = "torch")]
impl BackendPacker for hyprstream_torch::AdapterPacker {
    fn bytes_of(&self, adapter: &Adapter) -> u64 {
        self.bytes_of(adapter)
    }

    fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, PackError> {
        use hyprstream_torch::AdapterError as Error;

        self.pack(adapter).map_err(|error| {
            let (reason, is_final) = match &error {
                Error::Absent(_) | Error::Shape { .. } => ("ShapeMismatch", true),
                Error::NotFinite(_) => ("NotFinite", true),
                Error::NoLength(_) => ("NoLength", true),
                Error::Memory(_) => ("OutOfMemory", false),
                Error::Libtorch(_) => ("InternalError", false),
            };
            PackError::new(reason, chain(&error), is_final)
        })
    }

    fn gpu_free_bytes(&self) -> Option<u64> {
        self.gpu_free_bytes()
    }
}
