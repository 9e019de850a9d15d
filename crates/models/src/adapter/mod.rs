//! LoRA adapters: PEFT's pair of files in and out.
//!
//! ```no_run
//! # use std::path::Path;
//! # use hyprstream_models::{Checkpoint, DecoderConfig, Weights};
//! # use hyprstream_models::adapter::{Adapter, AdapterFiles, AdapterLimits, Linear, Site};
//! # fn read(model: &Path, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
//! let (config, _) = DecoderConfig::read(model)?;
//! let base = Weights::take(&config, Checkpoint::open(model)?)?;
//! let files = AdapterFiles::find(path)?;
//! let adapter = Adapter::read(&files, &config, &base, AdapterLimits::default())?;
//! println!("{} of rank {}", adapter.digest(), adapter.rank());
//! if let Some(query) = adapter.get(Site::Layer(0, Linear::Query)) {
//!     assert_eq!(query.a.columns(), config.hidden_size);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! An adapter adds to a linear map `y = W x + b` of the model (<https://arxiv.org/abs/2106.09685>):
//!
//! ```text
//! y += scale * scaling * B A x                                  LoRA
//! y += scale * ((g - 1) * W x + g * scaling * B A x)            DoRA, g = m / |W + scaling B A|
//! ```
//!
//! where `scale` is the request's, 1 unless it says otherwise, the norm is that of each row, and
//! `m` is the trained magnitude (<https://arxiv.org/abs/2402.09353>). Contributions of several
//! adapters are summed, whatever their order. PEFT does the same, but for DoRA in a stack, where it
//! lets an adapter rescale what those before it added, and for a scale on DoRA, which it puts
//! into the norm: a scale of 0 would not be the base there.
//!
//! What is read, and what a file may look like:
//! - Names of modules as in the text decoder, as in the text part of models that see
//!   (`model.language_model.layers...`), or without a head (`layers...`), with or without
//!   `base_model.model.` before them and the adapter's name in them (`lora_A.default.weight`).
//! - Fused projections (`qkv_proj`, `gate_up_proj`) and separate ones, whichever the model has.
//! - MLX's files (`lora_a`, `lora_b`, the other way round, a scale that is not divided by the rank).
//! - Copies of the model's own weights, which PEFT saves beside adapters of the embedding, as long
//!   as they are those of this model.
//!
//! Nothing else is passed over: see [`AdapterError`].
//!
//! # Limitations
//! torchtune, when it exports for PEFT, reorders the rows of B of queries and keys as its own
//! rotary embedding needs it, for all families alike. For Llama and Mistral that is right. For
//! families whose weights it does not reorder (Qwen, Gemma) such an export is wrong, and nothing in
//! the file tells it from a right one: it is served as it is. Its own format is refused.

mod config;
mod copies;
mod delta;
mod digest;
mod error;
mod files;
mod gains;
mod key;
mod low_rank;
mod read;
mod site;
mod sorted;
#[cfg(test)]
mod tests;
mod write;

use std::{collections::BTreeMap, path::Path};

pub use config::BaseName;
pub use digest::AdapterDigest;
pub use error::AdapterError;
pub use files::{AdapterFiles, ListedAdapter};
pub use gains::NoLength;
pub use low_rank::{LowRank, Matrix};
pub use site::{Linear, Site};

use crate::{DecoderConfig, LoadError, Weights};

/// What an adapter may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Largest rank of a module, as its file has it.
    pub max_rank: usize,
    /// Largest file of tensors in bytes.
    pub max_bytes: u64,
}

impl Default for AdapterLimits {
    /// Rank 512 and 4 GiB.
    fn default() -> Self {
        Self {
            max_rank: 512,
            max_bytes: 4 << 30,
        }
    }
}

/// An adapter that fits a model: what it adds to which of the model's linear maps.
///
/// All of it lies in memory of its own; its files may change or go.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Not empty.
    parts: BTreeMap<Site, LowRank>,
    base: BaseName,
    digest: AdapterDigest,
}

impl Adapter {
    /// Reads the adapter in `files` for the model of this configuration and these weights. Of the
    /// weights only those are looked at whose copies the file holds.
    ///
    /// # Errors
    /// [`AdapterError`]: nothing of the files is passed over. [`AdapterError::reason`] is for a
    /// condition, its text for the user.
    pub fn read(
        files: &AdapterFiles,
        config: &DecoderConfig,
        base: &Weights,
        limits: AdapterLimits,
    ) -> Result<Self, AdapterError> {
        read::read(files, config, base, limits)
    }

    /// An adapter of these parts for the model of this configuration.
    ///
    /// # Panics
    /// When there are none, or one has another size than its place in the model.
    pub fn new(config: &DecoderConfig, parts: BTreeMap<Site, LowRank>, base: BaseName) -> Self {
        assert!(!parts.is_empty(), "an adapter changes something");
        for (site, part) in &parts {
            assert_eq!(
                part.size(),
                site.size(config),
                "outputs and inputs of {site}"
            );
        }
        Self {
            digest: AdapterDigest::of(&parts),
            parts,
            base,
        }
    }

    /// An adapter of this rank on all linear maps of all layers, of numbers that `next` gives, for
    /// measurements: what it costs follows from the sizes, and numbers of nowhere are neither found
    /// equal nor sparse. Each part has matrices of its own and the scaling 1.
    ///
    /// # Panics
    /// When the rank is 0.
    pub fn on_all_linear(
        config: &DecoderConfig,
        rank: usize,
        mut next: impl FnMut() -> f32,
    ) -> Self {
        let mut matrix = |rows: usize, columns: usize| {
            Matrix::new(rows, (0..rows * columns).map(|_| next()).collect())
        };
        let mut parts = BTreeMap::new();
        for layer in 0..config.num_layers() {
            for linear in Linear::ALL {
                let (outputs, inputs) = linear.size(config);
                let part = LowRank {
                    a: matrix(rank, inputs),
                    b: matrix(outputs, rank),
                    scaling: 1.0,
                    magnitude: None,
                };
                parts.insert(Site::Layer(layer, linear), part);
            }
        }
        Self::new(config, parts, BaseName::default())
    }

    /// What it adds at this place.
    pub fn get(&self, site: Site) -> Option<&LowRank> {
        self.parts.get(&site)
    }

    /// All of its parts, layer after layer.
    pub fn parts(&self) -> impl Iterator<Item = (Site, &LowRank)> {
        self.parts.iter().map(|(site, part)| (*site, part))
    }

    /// Its largest rank.
    pub fn rank(&self) -> usize {
        let ranks = self.parts.values().map(LowRank::rank);
        ranks.max().expect("it has parts")
    }

    /// Its identity: equal for adapters that compute the same, whatever their files look like.
    pub fn digest(&self) -> AdapterDigest {
        self.digest
    }

    /// What it says it was trained on.
    pub fn base(&self) -> &BaseName {
        &self.base
    }

    /// Bytes that its matrices take in memory as f32, those that parts share once for each.
    pub fn bytes(&self) -> u64 {
        let numbers = self.parts.values().map(|part| {
            let magnitude = part.magnitude.as_ref().map_or(0, |values| values.len());
            part.a.values().len() + part.b.values().len() + magnitude
        });
        numbers.sum::<usize>() as u64 * 4
    }

    /// Writes the adapter for PEFT into `files`, in f32, under the names that the modules of the
    /// model have in transformers. Both files are written aside, synced and renamed, the
    /// configuration last. What PEFT reads from them computes the same, and [`Self::read`] gives
    /// the same digest, unless parts of a fused module had matrices A of their own, which become
    /// one of their common rank.
    ///
    /// # Errors
    /// [`AdapterError::Io`], or [`AdapterError::Unwritable`] when some parts have a magnitude and
    /// others, of fused modules absent ones too, do not.
    pub fn write(&self, files: &AdapterFiles, config: &DecoderConfig) -> Result<(), AdapterError> {
        write::write(self, files, config)
    }
}

/// What a file that could not be opened or parsed means for an adapter.
fn file_error(path: &Path, error: LoadError) -> AdapterError {
    let path = path.to_owned();
    match error {
        LoadError::MissingFile { path } => AdapterError::MissingFile { path },
        LoadError::Read { path, source } => AdapterError::Io {
            doing: "read",
            path,
            source,
        },
        LoadError::InvalidWeights { why, .. } => AdapterError::Damaged { path, why },
        other => AdapterError::Damaged {
            path,
            why: other.to_string(),
        },
    }
}
