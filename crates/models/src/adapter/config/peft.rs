//! PEFT's `adapter_config.json`, of version 0.21 and before.
//! <https://huggingface.co/docs/peft/package_reference/lora#peft.LoraConfig>

use std::{collections::BTreeSet, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    BaseName, Scale, Settings, Targets,
    options::Options,
    pattern::{LayersToTransform, Names, Pattern, Why},
};
use crate::adapter::AdapterError;

/// What PEFT takes where rank and alpha are not said.
const DEFAULT: usize = 8;
/// Largest rank that a configuration may speak of at all.
const MAX_RANK: usize = 1 << 20;

/// Options that say nothing about what a trained adapter computes.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "peft_version",
    "inference_mode",
    // Training only.
    "lora_dropout",
    "velora_config",
    // How tensors begin. What changes the model's own weights is refused by `init_lora_weights`,
    // without which these are not looked at.
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    // How the work is done.
    "megatron_core",
    "runtime_config",
    // Of `use_qalora`, which is refused.
    "qalora_group_size",
];

/// Options that are not honoured, and what to do.
const REFUSED: &[(&str, &str)] = &[
    (
        "modules_to_save",
        "modules that were trained as a whole are not served: name them in target_modules, or \
         merge the adapter into the model",
    ),
    (
        "trainable_token_indices",
        "rows of the embedding that were trained as a whole are not served",
    ),
    (
        "target_parameters",
        "parameters that are no linear layer (experts) are not served",
    ),
    ("lora_bias", "biases of B are not served"),
    (
        "fan_in_fan_out",
        "no model that is served has its weights the other way round",
    ),
    (
        "alora_invocation_tokens",
        "activated LoRA, which works from some token on, is not served",
    ),
    ("use_qalora", "QALoRA is not served"),
    ("use_bdlora", "BD-LoRA is not served"),
    ("arrow_config", "Arrow is not served"),
    ("kasa_config", "KaSA is not served"),
    ("monteclora_config", "MonteCLoRA is not served"),
    (
        "layer_replication",
        "layers that are repeated make another model: merge the adapter into it",
    ),
    (
        "ensure_weight_tying",
        "an adapter of the embedding that changes the head with it is not served",
    ),
    ("megatron_config", "Megatron's layers are not served"),
];

/// Values of `init_lora_weights` that leave the model's weights as they are.
const HARMLESS_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn many(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

pub(super) fn read(path: &Path, mut options: Options<'_>) -> Result<Settings, AdapterError> {
    kind(&mut options)?;
    beginning(&mut options)?;
    for (name, why) in REFUSED {
        options.must_be_unset(name, why)?;
    }
    must_be_one_of(&mut options, "bias", &["none"], "biases are not served")?;
    options.ignore(WITHOUT_EFFECT);
    let alpha = options.optional("lora_alpha")?.unwrap_or(DEFAULT as f64);
    let settings = Settings {
        path: path.to_owned(),
        targets: targets(&mut options)?,
        rank: options.optional("r")?.unwrap_or(DEFAULT),
        rank_patterns: patterns(&mut options, "rank_pattern")?,
        scale: Scale::Alpha {
            alpha,
            patterns: patterns(&mut options, "alpha_pattern")?,
            rank_stabilized: options.flag("use_rslora")?,
        },
        dora: options.flag("use_dora")?,
        base: BaseName {
            name: options.optional("base_model_name_or_path")?,
            revision: options.optional("revision")?,
        },
    };
    let ranks = settings.rank_patterns.iter().map(|(_, rank)| *rank);
    let bad = ranks
        .chain([settings.rank])
        .find(|rank| !(1..=MAX_RANK).contains(rank));
    if let Some(rank) = bad {
        return Err(options.invalid(format!("{rank} is no rank")));
    }
    options.finish()?;
    Ok(settings)
}

/// Refuses what is not LoRA, and models that do not generate text.
fn kind(options: &mut Options<'_>) -> Result<(), AdapterError> {
    let kind: Option<Value> = options.optional("peft_type")?;
    match kind {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(kind) => {
            return Err(options.refused("peft_type", &kind, "only LORA is served"));
        }
        None => return Err(options.invalid("peft_type is missing: it must be LORA".to_owned())),
    }
    must_be_one_of(
        options,
        "task_type",
        &["CAUSAL_LM", "FEATURE_EXTRACTION"],
        "only adapters of text decoders are served",
    )
}

/// Refuses an adapter that only fits weights which its training changed at the beginning.
fn beginning(options: &mut Options<'_>) -> Result<(), AdapterError> {
    let beginning: Option<Value> = options.optional("init_lora_weights")?;
    match beginning {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if HARMLESS_BEGINNINGS.contains(&name.as_str()) => Ok(()),
        Some(other) => Err(options.refused(
            "init_lora_weights",
            &other,
            "the model's weights were changed before the training: convert the adapter to LoRA by \
             saving it with path_initial_model_for_weight_conversion",
        )),
    }
}

fn must_be_one_of(
    options: &mut Options<'_>,
    name: &str,
    allowed: &[&str],
    why: &str,
) -> Result<(), AdapterError> {
    match options.optional::<Value>(name)? {
        None => Ok(()),
        Some(Value::String(value)) if allowed.contains(&value.as_str()) => Ok(()),
        Some(value) => Err(options.refused(name, &value, why)),
    }
}

fn targets(options: &mut Options<'_>) -> Result<Targets, AdapterError> {
    let missing = |options: &Options<'_>| {
        options.invalid("target_modules is missing: it says which layers are changed".to_owned())
    };
    let names: Option<OneOrMany<String>> = options.optional("target_modules")?;
    let (names, is_list) = match names {
        None => return Err(missing(options)),
        Some(OneOrMany::One(all)) if all.eq_ignore_ascii_case("all-linear") => (None, false),
        Some(OneOrMany::One(pattern)) => (
            Some(Names::Pattern(pattern_of(
                options,
                "target_modules",
                &pattern,
                Pattern::whole,
            )?)),
            false,
        ),
        Some(OneOrMany::Many(names)) if names.is_empty() => return Err(missing(options)),
        Some(OneOrMany::Many(names)) => (Some(Names::Listed(names.into_iter().collect())), true),
    };
    let excluded = match options.optional::<OneOrMany<String>>("exclude_modules")? {
        None => None,
        Some(OneOrMany::One(pattern)) if pattern.is_empty() => None,
        Some(OneOrMany::One(pattern)) => Some(Names::Pattern(pattern_of(
            options,
            "exclude_modules",
            &pattern,
            Pattern::whole,
        )?)),
        Some(OneOrMany::Many(names)) => Some(Names::Listed(names.into_iter().collect())),
    };
    let layers: Option<OneOrMany<usize>> = options.optional("layers_to_transform")?;
    let layers: BTreeSet<usize> = layers
        .map_or_else(Vec::new, OneOrMany::many)
        .into_iter()
        .collect();
    let patterns: Option<OneOrMany<String>> = options.optional("layers_pattern")?;
    let mut patterns = patterns.map_or_else(Vec::new, OneOrMany::many);
    patterns.retain(|pattern| !pattern.is_empty());
    let layers = if layers.is_empty() {
        if !patterns.is_empty() {
            return Err(
                options.invalid("layers_pattern is set, but layers_to_transform is not".to_owned())
            );
        }
        None
    } else if is_list {
        let layers = LayersToTransform::new(layers, &patterns);
        Some(layers.map_err(|why| options.invalid(format!("layers_pattern: {why}")))?)
    } else {
        return Err(options.invalid(
            "layers_to_transform is set, which needs target_modules to be a list".to_owned(),
        ));
    };
    Ok(Targets::Peft {
        names,
        excluded,
        layers,
    })
}

/// An object of patterns, in the order of the file.
fn patterns<T: for<'de> Deserialize<'de>>(
    options: &mut Options<'_>,
    name: &str,
) -> Result<Vec<(Pattern, T)>, AdapterError> {
    let values: Map<String, Value> = options.optional(name)?.unwrap_or_default();
    values
        .into_iter()
        .map(|(text, value)| {
            let pattern = pattern_of(options, name, &text, Pattern::ending)?;
            let value = serde_json::from_value(value)
                .map_err(|error| options.invalid(format!("{name}: {text:?}: {error}")))?;
            Ok((pattern, value))
        })
        .collect()
}

fn pattern_of(
    options: &Options<'_>,
    name: &str,
    text: &str,
    compile: impl Fn(&str) -> Result<Pattern, Why>,
) -> Result<Pattern, AdapterError> {
    compile(text).map_err(|why| {
        let cut: String = text.chars().take(80).collect();
        options.invalid(format!("{name}: the pattern {cut:?} cannot be used: {why}"))
    })
}
