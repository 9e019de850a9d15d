//! From two files to the parts of an adapter.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{
    Adapter, AdapterError, AdapterFiles, AdapterLimits, LowRank, Matrix, Site,
    config::Settings,
    copies::Copy,
    file_error,
    key::Part,
    site::{Module, Place, Root, nearest},
    sorted::{Sorted, Tensors, damaged, open, refused_tensor},
};
use crate::{DecoderConfig, LoadError, StoredTensor, Weights};

pub(super) fn read(
    files: &AdapterFiles,
    config: &DecoderConfig,
    base: &Weights,
    limits: AdapterLimits,
) -> Result<Adapter, AdapterError> {
    let settings = Settings::read(&files.config)?;
    let path = &files.tensors;
    let file = Arc::new(open(path, limits.max_bytes)?);
    let reader = Reader {
        path,
        config,
        settings: &settings,
        limits,
    };
    let sorted = Sorted::of(path, &file)?;
    let modules = reader.modules(&sorted)?;
    reader.check_copies(&sorted, base)?;
    if modules.is_empty() {
        return Err(AdapterError::TouchesNothing {
            path: path.to_owned(),
        });
    }
    reader.check_targets(&modules)?;
    let mut parts = BTreeMap::new();
    for (module, tensors) in &modules {
        reader.take(*module, tensors, &mut parts)?;
    }
    reader.check_complete(&modules, &parts)?;
    Ok(Adapter::new(config, parts, settings.base.clone()))
}

struct Reader<'a> {
    path: &'a Path,
    config: &'a DecoderConfig,
    settings: &'a Settings,
    limits: AdapterLimits,
}

impl Reader<'_> {
    /// The modules of the model that have tensors.
    fn modules<'t>(&self, sorted: &'t Sorted) -> Result<Vec<(Module, &'t Tensors)>, AdapterError> {
        let mut modules = Vec::new();
        let mut left_over = sorted.left_over.clone();
        let mut roots = BTreeSet::new();
        for (name, tensors) in &sorted.modules {
            let module = Module::parse(name).filter(|module| module.exists(self.config));
            let Some(module) = module else {
                let tensors = tensors.values();
                left_over.extend(tensors.map(|t| (t.name().to_owned(), name.clone())));
                continue;
            };
            if module.place != Place::Head {
                roots.insert(module.root);
            }
            modules.push((module, tensors));
        }
        if !left_over.is_empty() {
            return Err(self.left_over(left_over));
        }
        if roots.len() > 1 {
            return Err(damaged(
                self.path,
                format!(
                    "its modules are called in several ways: {:?} and {:?}",
                    modules[0].0.to_string(),
                    modules[modules.len() - 1].0.to_string()
                ),
            ));
        }
        Ok(modules)
    }

    fn check_copies(&self, sorted: &Sorted, base: &Weights) -> Result<(), AdapterError> {
        let mut left_over = Vec::new();
        for (tensor, module, bias) in &sorted.copies {
            let why = match Copy::of(tensor, module, *bias, base) {
                Copy::Same => continue,
                Copy::Unknown => {
                    left_over.push((tensor.name().to_owned(), module.clone()));
                    continue;
                }
                Copy::Changed => {
                    "it was trained as a whole, or the adapter was made for another model"
                }
                Copy::Resized => {
                    "it has another shape, as when tokens were added to the vocabulary"
                }
            };
            return Err(AdapterError::ChangedBase {
                path: self.path.to_owned(),
                tensor: tensor.name().to_owned(),
                why,
            });
        }
        if left_over.is_empty() {
            Ok(())
        } else {
            Err(self.left_over(left_over))
        }
    }

    fn check_targets(&self, modules: &[(Module, &Tensors)]) -> Result<(), AdapterError> {
        let mut untargeted = Vec::new();
        for (module, _) in modules {
            if self.settings.targets(*module)? == Some(false) {
                untargeted.push(module.to_string());
            }
        }
        if untargeted.is_empty() {
            return Ok(());
        }
        Err(AdapterError::Untargeted {
            path: self.path.to_owned(),
            config: self.settings.path().to_owned(),
            modules: untargeted,
        })
    }

    /// Refuses a file that lacks a module of the model which its configuration targets. PEFT would
    /// fill it with what a training begins with.
    fn check_complete(
        &self,
        modules: &[(Module, &Tensors)],
        parts: &BTreeMap<Site, LowRank>,
    ) -> Result<(), AdapterError> {
        let places = modules.iter().filter(|(m, _)| m.place != Place::Head);
        let root = places.map(|(module, _)| module.root).next();
        let mut missing = Vec::new();
        for module in root.unwrap_or(Root::PLAIN).modules(self.config) {
            let covered = module.sites().iter().all(|site| parts.contains_key(site));
            if !covered && self.settings.targets(module)? == Some(true) {
                missing.push(module.to_string());
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(self.incomplete(missing))
        }
    }

    /// Takes the parts of one module.
    fn take(
        &self,
        module: Module,
        tensors: &Tensors,
        parts: &mut BTreeMap<Site, LowRank>,
    ) -> Result<(), AdapterError> {
        let rank = self.rank(module)?;
        let sites = module.sites();
        let sizes = sites.iter().map(|site| site.size(self.config));
        let outputs = sizes.clone().map(|(outputs, _)| outputs).sum();
        let inputs = sizes.map(|(_, inputs)| inputs).max().unwrap_or_default();
        let names = PartNames::of(module, self.settings);
        self.check_names(module, tensors, names)?;

        let is_mlx = self.settings.is_mlx();
        let matrix = |part, rows, columns| {
            let tensor = &tensors[&part];
            let (rows, columns) = if is_mlx {
                (columns, rows)
            } else {
                (rows, columns)
            };
            self.check(tensor, &[rows, columns], module, rank)?;
            Ok(Matrix::load(tensor, is_mlx))
        };
        let a = matrix(names.a, rank, inputs)?;
        let b = matrix(names.b, outputs, rank)?;
        let magnitude = names.magnitude.map(|part| &tensors[&part]);
        if let Some(magnitude) = magnitude {
            self.check(magnitude, &[outputs], module, rank)?;
        }
        let scaling = self.settings.scaling(module, rank)?;
        let mut from = 0;
        for site in sites {
            let rows = from..from + site.size(self.config).0;
            from = rows.end;
            let part = LowRank {
                a: a.clone(),
                b: b.some_rows(rows.clone()),
                scaling,
                magnitude: magnitude.map(|tensor| tensor.rows(rows).to_f32().into()),
            };
            if is_mlx && site == Site::Embedding && self.config.tied_head {
                self.insert(Site::Head, self.tied(&part)?, parts)?;
            }
            self.insert(site, part, parts)?;
        }
        Ok(())
    }

    fn insert(
        &self,
        site: Site,
        part: LowRank,
        parts: &mut BTreeMap<Site, LowRank>,
    ) -> Result<(), AdapterError> {
        match parts.insert(site, part) {
            None => Ok(()),
            Some(_) => Err(damaged(self.path, format!("it changes {site} twice"))),
        }
    }

    /// What MLX's adapter of the embedding is to the head that is the same table
    /// (`LoRAEmbedding.as_linear`).
    fn tied(&self, embedding: &LowRank) -> Result<LowRank, AdapterError> {
        if embedding.magnitude.is_some() {
            return Err(refused_tensor(self.path, "DoRA of MLX", "embed_tokens"));
        }
        Ok(LowRank {
            a: embedding.b.transposed(),
            b: embedding.a.transposed(),
            scaling: embedding.scaling,
            magnitude: None,
        })
    }

    fn rank(&self, module: Module) -> Result<usize, AdapterError> {
        let rank = self.settings.rank(module)?;
        let limit = self.limits.max_rank;
        if rank > limit {
            return Err(AdapterError::RankTooLarge {
                path: self.settings.path().to_owned(),
                module: module.to_string(),
                rank,
                limit,
            });
        }
        Ok(rank)
    }

    /// Refuses a module that lacks one of its tensors or has others.
    fn check_names(
        &self,
        module: Module,
        tensors: &Tensors,
        names: PartNames,
    ) -> Result<(), AdapterError> {
        let expected = [Some(names.a), Some(names.b), names.magnitude];
        let mut expected = expected.into_iter().flatten();
        let others: Vec<_> = tensors
            .iter()
            .filter(|(part, _)| !expected.clone().any(|expected| expected == **part))
            .collect();
        if let Some((part, tensor)) = others.first() {
            let name = tensor.name();
            return Err(AdapterError::InvalidConfig {
                path: self.settings.path().to_owned(),
                why: match part {
                    Part::Magnitude | Part::MlxMagnitude => {
                        format!("it does not speak of DoRA, but there is a magnitude {name:?}")
                    }
                    _ => format!("it has no place for {name:?} beside it"),
                },
            });
        }
        match expected.find(|part| !tensors.contains_key(part)) {
            None => Ok(()),
            Some(part) => Err(self.incomplete(vec![format!("{module}.{}", part.name())])),
        }
    }

    /// Refuses a tensor of another shape, or with a number that is none.
    fn check(
        &self,
        tensor: &StoredTensor,
        expected: &[usize],
        module: Module,
        rank: usize,
    ) -> Result<(), AdapterError> {
        if tensor.shape() != expected {
            return Err(AdapterError::ShapeMismatch {
                path: self.path.to_owned(),
                tensor: tensor.name().to_owned(),
                found: tensor.shape().to_vec(),
                expected: expected.to_vec(),
                why: format!("its configuration gives {module} the rank {rank}"),
            });
        }
        tensor.check_finite().map_err(|error| match error {
            LoadError::InvalidWeights { why, .. } => AdapterError::NotFinite {
                path: self.path.to_owned(),
                why,
            },
            other => file_error(self.path, other),
        })
    }

    fn incomplete(&self, missing: Vec<String>) -> AdapterError {
        AdapterError::Incomplete {
            path: self.path.to_owned(),
            missing,
        }
    }

    /// Names the tensors that belong nowhere, and what there is instead.
    fn left_over(&self, left_over: Vec<(String, String)>) -> AdapterError {
        let (tensors, mut modules): (Vec<_>, Vec<_>) = left_over.into_iter().unzip();
        modules.dedup();
        AdapterError::UnknownTarget {
            path: self.path.to_owned(),
            left_over: tensors,
            closest: nearest(&modules, self.config),
        }
    }
}

/// The tensors that a module must have.
#[derive(Clone, Copy)]
struct PartNames {
    a: Part,
    b: Part,
    magnitude: Option<Part>,
}

impl PartNames {
    fn of(module: Module, settings: &Settings) -> Self {
        let (a, b, magnitude) = if settings.is_mlx() {
            (Part::MlxA, Part::MlxB, Part::MlxMagnitude)
        } else if module.place == Place::Embedding {
            (Part::EmbeddingA, Part::EmbeddingB, Part::Magnitude)
        } else {
            (Part::A, Part::B, Part::Magnitude)
        };
        Self {
            a,
            b,
            magnitude: settings.dora.then_some(magnitude),
        }
    }
}
