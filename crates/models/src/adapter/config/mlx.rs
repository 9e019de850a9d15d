//! The configuration that MLX writes beside its adapters: the options of the training.
//! <https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/LORA.md>

use std::path::Path;

use serde_json::Value;

use super::{BaseName, Scale, Settings, Targets, options::Options};
use crate::adapter::AdapterError;

/// Options that say how the training went. Which layers were trained stands in the file of tensors
/// itself, since the defaults of `num_layers` and `keys` have changed over time.
const WITHOUT_EFFECT: &[&str] = &[
    "adapter_path",
    "batch_size",
    "clear_cache_threshold",
    "config",
    "data",
    "grad_accumulation_steps",
    "grad_checkpoint",
    "iters",
    "learning_rate",
    "lora_layers",
    "lr_schedule",
    "mask_prompt",
    "max_seq_length",
    "num_layers",
    "optimizer",
    "optimizer_config",
    "project_name",
    "report_to",
    "resume_adapter_file",
    "save_every",
    "seed",
    "steps_per_eval",
    "steps_per_report",
    "test",
    "test_batches",
    "train",
    "val_batches",
    "wandb",
];

pub(super) fn read(path: &Path, mut options: Options<'_>) -> Result<Settings, AdapterError> {
    let kind: Option<Value> = options.optional("fine_tune_type")?;
    let old = options.has("lora_layers");
    let dora = match kind {
        None => options.flag("use_dora")?,
        Some(Value::String(kind)) if kind == "lora" => false,
        Some(Value::String(kind)) if kind == "dora" => true,
        Some(kind) => {
            let why = "only lora and dora are served";
            return Err(options.refused("fine_tune_type", &kind, why));
        }
    };
    let mut parameters = options.nested("lora_parameters")?;
    let rank = parameters.optional("rank")?;
    let scale = parameters.optional("scale")?;
    let (Some(rank), Some(scale)) = (rank, scale) else {
        return Err(options.invalid("lora_parameters lacks rank or scale".to_owned()));
    };
    if rank == 0 {
        return Err(options.invalid("0 is no rank".to_owned()));
    }
    if let Some(alpha) = parameters.optional::<Value>("alpha")? {
        // Later versions write it and do not use it.
        if old {
            let why = "versions of MLX that wrote lora_layers differ in whether it counts";
            return Err(options.refused("lora_parameters.alpha", &alpha, why));
        }
    }
    parameters.ignore(&["dropout", "keys"]);
    parameters.finish()?;
    let name = options.optional("model")?;
    options.ignore(WITHOUT_EFFECT);
    options.finish()?;
    Ok(Settings {
        path: path.to_owned(),
        targets: Targets::AsInFile,
        rank,
        rank_patterns: Vec::new(),
        scale: Scale::Plain(scale),
        dora,
        base: BaseName {
            name,
            revision: None,
        },
    })
}
