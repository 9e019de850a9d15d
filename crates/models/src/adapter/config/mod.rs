//! An adapter's configuration, strictly: every option is honoured, known to change nothing in what
//! is served, or refused by name.

mod mlx;
mod options;
mod pattern;
mod peft;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use options::Options;
use pattern::{Found, LayersToTransform, Names, Pattern};

use super::{
    AdapterError,
    site::{Module, Place},
};
use crate::checkpoint::read_json;

/// What a configuration says about the tensors beside it.
#[derive(Debug)]
pub(super) struct Settings {
    path: PathBuf,
    targets: Targets,
    rank: usize,
    /// The first that matches a module counts.
    rank_patterns: Vec<(Pattern, usize)>,
    scale: Scale,
    /// Each module has a magnitude.
    pub(super) dora: bool,
    /// What the adapter was trained on, as far as it says.
    pub(super) base: BaseName,
}

/// What an adapter says it was trained on. Nobody checks it: such names are often those of
/// quantised copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseName {
    /// `base_model_name_or_path`.
    pub name: Option<String>,
    /// `revision`.
    pub revision: Option<String>,
}

/// Which modules the adapter changes.
#[derive(Debug)]
enum Targets {
    /// Those that the file has tensors for (MLX, whose options are those of a training).
    AsInFile,
    /// As PEFT reads them.
    Peft {
        /// `None` for every linear map but the head.
        names: Option<Names>,
        excluded: Option<Names>,
        layers: Option<LayersToTransform>,
    },
}

/// What the product of A and B is multiplied by.
#[derive(Debug)]
enum Scale {
    /// `alpha / rank`, or `alpha / sqrt(rank)` (<https://arxiv.org/abs/2312.03732>).
    Alpha {
        alpha: f64,
        patterns: Vec<(Pattern, f64)>,
        rank_stabilized: bool,
    },
    /// Itself.
    Plain(f64),
}

impl Settings {
    /// Reads the configuration at `path`, of PEFT or of MLX.
    pub(super) fn read(path: &Path) -> Result<Self, AdapterError> {
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(AdapterError::InvalidConfig {
                path: path.to_owned(),
                why: "it is not a regular file".to_owned(),
            });
        }
        let text = read_json(path).map_err(|error| match super::file_error(path, error) {
            AdapterError::Io { path, source, .. } if source.kind() == ErrorKind::InvalidData => {
                let why = "it is not text".to_owned();
                AdapterError::InvalidConfig { path, why }
            }
            AdapterError::Damaged { path, why } => AdapterError::InvalidConfig { path, why },
            other => other,
        })?;
        Self::parse(path, &text)
    }

    /// As [`Self::read`], from the text of the file.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, AdapterError> {
        let options = Options::parse(path, text)?;
        let is_mlx = ["lora_parameters", "fine_tune_type", "lora_layers"];
        if is_mlx.iter().any(|name| options.has(name)) {
            mlx::read(path, options)
        } else {
            peft::read(path, options)
        }
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the tensors are those of MLX.
    pub(super) fn is_mlx(&self) -> bool {
        matches!(self.targets, Targets::AsInFile)
    }

    /// Whether it calls for tensors of this module. `None`: that is up to the file.
    pub(super) fn targets(&self, module: Module) -> Result<Option<bool>, AdapterError> {
        let Targets::Peft {
            names,
            excluded,
            layers,
        } = &self.targets
        else {
            return Ok(None);
        };
        let name = module.to_string();
        let refuse = |option: &str, why| self.invalid(format!("{option}: {why} at {name:?}"));
        if let Some(excluded) = excluded {
            let found = excluded.find(&name);
            if found
                .map_err(|why| refuse("exclude_modules", why))?
                .is_some()
            {
                return Ok(Some(false));
            }
        }
        let Some(names) = names else {
            return Ok(Some(matches!(module.place, Place::Layer(..))));
        };
        let found = names.find(&name);
        let found = found.map_err(|why| refuse("target_modules", why))?;
        Ok(Some(match (found, layers) {
            (None, _) => false,
            // PEFT does not ask for the layer of what is named in full.
            (Some(Found::Itself), _) | (Some(Found::Ending), None) => true,
            (Some(Found::Ending), Some(layers)) => layers
                .contains(&name)
                .map_err(|why| refuse("layers_pattern", why))?,
        }))
    }

    /// The rank of this module.
    pub(super) fn rank(&self, module: Module) -> Result<usize, AdapterError> {
        let own = self.first("rank_pattern", &self.rank_patterns, module)?;
        Ok(own.unwrap_or(self.rank))
    }

    /// What the product of its A and B, of this rank, is multiplied by. Finite.
    pub(super) fn scaling(&self, module: Module, rank: usize) -> Result<f32, AdapterError> {
        let scaling = match &self.scale {
            Scale::Plain(scale) => *scale,
            Scale::Alpha {
                alpha,
                patterns,
                rank_stabilized,
            } => {
                let own = self.first("alpha_pattern", patterns, module)?;
                let rank = rank as f64;
                let divisor = if *rank_stabilized { rank.sqrt() } else { rank };
                own.unwrap_or(*alpha) / divisor
            }
        } as f32;
        if scaling.is_finite() {
            Ok(scaling)
        } else {
            Err(self.invalid(format!("the scale of {module} is {scaling}")))
        }
    }

    fn first<T: Copy>(
        &self,
        option: &str,
        patterns: &[(Pattern, T)],
        module: Module,
    ) -> Result<Option<T>, AdapterError> {
        let name = module.to_string();
        for (pattern, value) in patterns {
            let found = pattern.matches(&name);
            if found.map_err(|why| self.invalid(format!("{option}: {why} at {name:?}")))? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    fn invalid(&self, why: String) -> AdapterError {
        AdapterError::InvalidConfig {
            path: self.path.clone(),
            why,
        }
    }
}
