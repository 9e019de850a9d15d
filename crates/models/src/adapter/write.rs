//! From the parts of an adapter to PEFT's two files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write as _},
    path::Path,
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};

use super::{
    Adapter, AdapterError, AdapterFiles, LowRank, Matrix, Site,
    key::Part,
    site::{Module, Place, Root},
};
use crate::DecoderConfig;

pub(super) fn write(
    adapter: &Adapter,
    files: &AdapterFiles,
    config: &DecoderConfig,
) -> Result<(), AdapterError> {
    let mut modules = Vec::new();
    for module in Root::PLAIN.modules(config) {
        if let Some(part) = whole(adapter, module, config)? {
            modules.push((module, part));
        }
    }
    let dora = |(_, part): &&(Module, LowRank)| part.magnitude.is_some();
    let without = modules.iter().find(|module| !dora(module));
    if let (Some((module, _)), true) = (without, modules.iter().any(|module| dora(&module))) {
        return Err(partly_dora(*module));
    }
    let tensors = tensors(&modules).map_err(|why| AdapterError::Unwritable {
        module: files.tensors.display().to_string(),
        why,
    })?;
    let settings = settings(&modules, config, adapter);
    let settings = serde_json::to_vec_pretty(&settings).expect("it is of texts and numbers");
    replace(&files.tensors, &tensors)?;
    replace(&files.config, &settings)
}

/// What the adapter adds to a module, `None` if nothing.
fn whole(
    adapter: &Adapter,
    module: Module,
    config: &DecoderConfig,
) -> Result<Option<LowRank>, AdapterError> {
    let sites = module.sites();
    let parts: Vec<_> = sites.iter().map(|site| adapter.get(*site)).collect();
    let there: Vec<&LowRank> = parts.iter().copied().flatten().collect();
    let Some(first) = there.first() else {
        return Ok(None);
    };
    if sites.len() == 1 {
        return Ok(Some((*first).clone()));
    }
    let magnitudes = parts
        .iter()
        .map(|part| part.and_then(|part| part.magnitude.as_deref()))
        .collect::<Option<Vec<_>>>();
    let magnitude = magnitudes.map(|values| values.concat().into());
    if magnitude.is_none() && there.iter().any(|part| part.magnitude.is_some()) {
        return Err(partly_dora(module));
    }
    let alike = |part: &&LowRank| part.a == first.a && same(part.scaling, first.scaling);
    let (a, b, scaling) = if there.len() == parts.len() && there.iter().all(alike) {
        let rows: Vec<f32> = there
            .iter()
            .flat_map(|part| part.b.values().to_vec())
            .collect();
        let rows_of_all = there.iter().map(|part| part.b.rows()).sum();
        (
            first.a.clone(),
            Matrix::new(rows_of_all, rows),
            first.scaling,
        )
    } else {
        beside_each_other(&sites, &parts, config)
    };
    Ok(Some(LowRank {
        a,
        b,
        scaling,
        magnitude,
    }))
}

/// PEFT knows DoRA for all modules or none.
fn partly_dora(module: Module) -> AdapterError {
    AdapterError::Unwritable {
        module: module.to_string(),
        why: "it, or a part of it, has no magnitude (DoRA), which others have".to_owned(),
    }
}

/// Parts with matrices A of their own: these below each other, and B with 0 where a part has
/// nothing to do with the rows of another.
fn beside_each_other(
    sites: &[Site],
    parts: &[Option<&LowRank>],
    config: &DecoderConfig,
) -> (Matrix, Matrix, f32) {
    let there = parts.iter().copied().flatten();
    let rank: usize = there.clone().map(LowRank::rank).sum();
    let a: Vec<f32> = there
        .clone()
        .flat_map(|part| part.a.values().to_vec())
        .collect();
    let common = there
        .map(|part| part.scaling)
        .find(|scaling| *scaling != 0.0);
    let common = common.unwrap_or_default();
    let mut b = Vec::new();
    let (mut outputs, mut from) = (0, 0);
    for (site, part) in sites.iter().zip(parts) {
        let (rows, _) = site.size(config);
        outputs += rows;
        let Some(part) = part else {
            b.resize(outputs * rank, 0.0);
            continue;
        };
        let factor = if same(part.scaling, common) {
            1.0
        } else {
            part.scaling / common
        };
        for row in 0..rows {
            let mut all = vec![0.0; rank];
            let own = all[from..].iter_mut().zip(part.b.row(row));
            own.for_each(|(to, value)| *to = factor * value);
            b.extend(all);
        }
        from += part.rank();
    }
    (Matrix::new(rank, a), Matrix::new(outputs, b), common)
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

/// The bytes of the file of tensors.
fn tensors(modules: &[(Module, LowRank)]) -> Result<Vec<u8>, String> {
    let mut stored = BTreeMap::new();
    for (module, part) in modules {
        let (a, b) = if module.place == Place::Embedding {
            (Part::EmbeddingA, Part::EmbeddingB)
        } else {
            (Part::A, Part::B)
        };
        let mut store = |name: Part, shape: Vec<usize>, values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = format!("base_model.model.{module}.{}", name.name());
            stored.insert(name, (shape, bytes));
        };
        for (name, matrix) in [(a, &part.a), (b, &part.b)] {
            store(name, vec![matrix.rows(), matrix.columns()], matrix.values());
        }
        if let Some(magnitude) = &part.magnitude {
            store(Part::Magnitude, vec![magnitude.len()], magnitude);
        }
    }
    let views = stored
        .iter()
        .map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name, view)).map_err(|e| e.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(format)).map_err(|error| error.to_string())
}

/// The options of `adapter_config.json`.
fn settings(modules: &[(Module, LowRank)], config: &DecoderConfig, adapter: &Adapter) -> Value {
    let (_, first) = &modules[0];
    let alpha = |part: &LowRank| f64::from(part.scaling) * part.rank() as f64;
    let mut ranks = Map::new();
    let mut alphas = Map::new();
    for (module, part) in modules {
        if part.rank() != first.rank() {
            ranks.insert(module.to_string(), part.rank().into());
        }
        if alpha(part).to_bits() != alpha(first).to_bits() {
            alphas.insert(module.to_string(), number(alpha(part)));
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base().name,
        "revision": adapter.base().revision,
        "inference_mode": true,
        "target_modules": targets(modules, config),
        "r": first.rank(),
        "rank_pattern": ranks,
        "lora_alpha": number(alpha(first)),
        "alpha_pattern": alphas,
        "use_rslora": false,
        "use_dora": modules.iter().any(|(_, part)| part.magnitude.is_some()),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
    })
}

/// The ends of names that mean the same module of every layer, and whole names of others.
fn targets(modules: &[(Module, LowRank)], config: &DecoderConfig) -> Vec<String> {
    let mut layers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut targets = Vec::new();
    for (module, _) in modules {
        match module.place {
            Place::Layer(_, (suffix, _)) => {
                layers.entry(suffix).or_default().push(module.to_string());
            }
            Place::Embedding | Place::Head => targets.push(module.to_string()),
        }
    }
    for (suffix, names) in layers {
        if names.len() == config.num_layers() {
            targets.push(suffix.rsplit('.').next().unwrap_or(suffix).to_owned());
        } else {
            targets.extend(names);
        }
    }
    targets
}

/// A whole number as one, as people write an alpha.
fn number(value: f64) -> Value {
    let whole = value as i64;
    if (whole as f64).to_bits() == value.to_bits() {
        whole.into()
    } else {
        value.into()
    }
}

/// Writes a file aside, syncs it and gives it its name, so that it is never there in half.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let done = || -> io::Result<()> {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = folder.join(format!(".{name}.{}", std::process::id()));
        let written = fs::File::create(&aside).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&aside, path)
        });
        if written.is_err() {
            // What could not be written is of no use; the error says what happened.
            drop(fs::remove_file(&aside));
        }
        written?;
        fs::File::open(folder)?.sync_all()
    };
    done().map_err(|source| AdapterError::Io {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}
