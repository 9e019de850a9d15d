//! The numbers of an adapter: where they lie, what they are at first, and the adapter they make.

use std::{collections::BTreeMap, ops::Range};

use hyprstream_models::{
    DecoderConfig, WeightNames,
    adapter::{Adapter, BaseName, Linear, LowRank, Matrix, Site},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    learner::{Parameters, Part},
    random::{Purpose, Sequence},
};

/// Which maps of a model are changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// All linear maps of all layers, so neither embedding nor head.
    #[default]
    AllLinear,
    /// Modules of every layer by their own names (`q_proj`), `embed_tokens`, `lm_head`.
    Named(Vec<String>),
}

const ALL_LINEAR: &str = "all-linear";

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => ALL_LINEAR.serialize(serializer),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "targets are all-linear or a list of names of modules"
        )]
        enum Form {
            Word(String),
            Names(Vec<String>),
        }
        match Form::deserialize(deserializer)? {
            Form::Names(names) => Ok(Self::Named(names)),
            Form::Word(word) if word == ALL_LINEAR => Ok(Self::AllLinear),
            Form::Word(word) => Err(serde::de::Error::custom(format!(
                "targets: {word} is not understood: write all-linear or a list, as [{word}]"
            ))),
        }
    }
}

/// The form of a new adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rows of each A. Not 0.
    pub rank: usize,
    /// What `B A` is multiplied by, times the rank or its root.
    pub alpha: f64,
    /// Divide alpha by the root of the rank (<https://arxiv.org/abs/2312.03732>).
    pub rank_stabilized: bool,
    /// Train the lengths of rows too.
    pub dora: bool,
    /// What is changed.
    pub targets: Targets,
}

/// An adapter that a model cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The model has no such module.
    #[error("adapter.targets: the model has no {name}: it has {}", known.join(", "))]
    UnknownTarget {
        /// As the job calls it.
        name: String,
        /// Those that it has.
        known: Vec<&'static str>,
    },
    /// Nothing is to be changed.
    #[error("adapter.targets: the list is empty: name a module, or write all-linear")]
    NoTarget,
    /// One weight would be changed twice, each without regard to the other.
    #[error(
        "adapter.targets: embedding and head of this model are one weight, and adapters on both \
         drift apart: remove embed_tokens or lm_head"
    )]
    TiedTwice,
    /// So does an adapter to go on from.
    #[error(
        "adapter.from: it changes embed_tokens and lm_head, which are one weight in this model, so \
         that they drift apart: go on from one that changes one of them"
    )]
    TiedFrom,
    /// More rows than the smaller side of a map.
    #[error("adapter.rank: {rank} is more than {site} has room for: set it to {most} or less")]
    Rank {
        /// As the job has it.
        rank: usize,
        /// The map.
        site: Site,
        /// Its smaller side.
        most: usize,
    },
}

/// A module of a layer and the maps whose outputs follow one another in it.
type Module = (&'static str, &'static [Linear]);

const SEPARATE: [Module; 7] = [
    ("q_proj", &[Linear::Query]),
    ("k_proj", &[Linear::Key]),
    ("v_proj", &[Linear::Value]),
    ("o_proj", &[Linear::Output]),
    ("gate_proj", &[Linear::Gate]),
    ("up_proj", &[Linear::Up]),
    ("down_proj", &[Linear::Down]),
];
const FUSED: [Module; 4] = [
    ("qkv_proj", &[Linear::Query, Linear::Key, Linear::Value]),
    ("o_proj", &[Linear::Output]),
    ("gate_up_proj", &[Linear::Gate, Linear::Up]),
    ("down_proj", &[Linear::Down]),
];
const EMBEDDING: &str = "embed_tokens";
const HEAD: &str = "lm_head";

/// The layout of a new adapter of this form for the model of this configuration.
///
/// # Errors
/// [`LayoutError`].
pub fn parameters(config: &DecoderConfig, lora: &Lora) -> Result<Parameters, LayoutError> {
    let modules: &[Module] = match config.names {
        WeightNames::Separate => &SEPARATE,
        WeightNames::Fused => &FUSED,
    };
    let chosen = |name: &str| match &lora.targets {
        Targets::AllLinear => name != EMBEDDING && name != HEAD,
        Targets::Named(names) => names.iter().any(|named| named == name),
    };
    if let Targets::Named(names) = &lora.targets {
        let known = modules.iter().map(|(name, _)| *name);
        let known: Vec<&'static str> = known.chain([EMBEDDING, HEAD]).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            let name = name.clone();
            return Err(LayoutError::UnknownTarget { name, known });
        }
        if names.is_empty() {
            return Err(LayoutError::NoTarget);
        }
    }
    if config.tied_head && chosen(EMBEDDING) && chosen(HEAD) {
        return Err(LayoutError::TiedTwice);
    }
    let mut groups: Vec<Vec<Site>> = Vec::new();
    for layer in 0..config.num_layers() {
        for (_, linears) in modules.iter().filter(|(name, _)| chosen(name)) {
            groups.push(linears.iter().map(|l| Site::Layer(layer, *l)).collect());
        }
    }
    groups.extend(chosen(EMBEDDING).then(|| vec![Site::Embedding]));
    groups.extend(chosen(HEAD).then(|| vec![Site::Head]));
    lay_out(config, lora, &groups)
}

fn lay_out(
    config: &DecoderConfig,
    lora: &Lora,
    groups: &[Vec<Site>],
) -> Result<Parameters, LayoutError> {
    let rank = lora.rank;
    let divisor = if lora.rank_stabilized {
        (rank as f64).sqrt()
    } else {
        rank as f64
    };
    let scaling = (lora.alpha / divisor) as f32;
    let mut len = 0;
    let mut take = |numbers: usize| {
        len += numbers;
        len - numbers..len
    };
    let mut parts = Vec::new();
    for sites in groups {
        let mut shared: Option<Range<usize>> = None;
        for site in sites {
            let (outputs, inputs) = site.size(config);
            let most = outputs.min(inputs);
            if rank > most {
                let site = *site;
                return Err(LayoutError::Rank { rank, site, most });
            }
            let a = shared.get_or_insert_with(|| take(rank * inputs)).clone();
            parts.push(Part {
                site: *site,
                rank,
                scaling,
                a,
                b: take(outputs * rank),
                magnitude: lora.dora.then(|| take(outputs)),
            });
        }
    }
    Ok(Parameters { parts, len })
}

/// The values of a new adapter, which changes nothing yet: as PEFT, A evenly spread over
/// `[-1/sqrt(in), 1/sqrt(in))` (Kaiming's with a = sqrt 5) and B zero; for embeddings A zero and B of
/// the standard normal distribution; magnitudes as `lengths` gives them for each site, `[out]`.
pub fn first_values(
    parameters: &Parameters,
    seed: u64,
    mut lengths: impl FnMut(Site) -> Vec<f32>,
) -> Vec<f32> {
    let mut values = vec![0.0; parameters.len];
    for (index, part) in parameters.parts.iter().enumerate() {
        let sequence = Sequence::new(seed, Purpose::Initial, index as u32);
        let earlier = &parameters.parts[..index];
        if part.site == Site::Embedding {
            let b = &mut values[part.b.clone()];
            b.iter_mut()
                .zip(sequence.normal(part.b.len()))
                .for_each(|(to, value)| *to = value);
        } else if !earlier.iter().any(|other| other.a == part.a) {
            let inputs = part.a.len() / part.rank;
            let bound = 1.0 / (inputs as f64).sqrt();
            let a = &mut values[part.a.clone()];
            a.iter_mut()
                .zip(sequence.uniform(bound, part.a.len()))
                .for_each(|(to, value)| *to = value);
        }
        if let Some(range) = &part.magnitude {
            values[range.clone()].copy_from_slice(&lengths(part.site));
        }
    }
    values
}

/// The adapter that these values are.
///
/// # Panics
/// When the layout is not one of a model of this configuration.
pub fn adapter(
    parameters: &Parameters,
    values: &[f32],
    config: &DecoderConfig,
    base: BaseName,
) -> Adapter {
    let mut shared: Vec<(Range<usize>, Matrix)> = Vec::new();
    let mut parts = BTreeMap::new();
    for part in &parameters.parts {
        let of = part.of(values);
        let known = shared.iter().find(|(range, _)| *range == part.a);
        let a = known.map_or_else(|| Matrix::new(part.rank, of.a.to_vec()), |(_, a)| a.clone());
        shared.push((part.a.clone(), a.clone()));
        // Only parts of the same module share, and those follow one another.
        if shared.len() > 3 {
            shared.remove(0);
        }
        let low_rank = LowRank {
            a,
            b: Matrix::new(of.b.len() / part.rank, of.b.to_vec()),
            scaling: part.scaling,
            magnitude: of.magnitude.map(Into::into),
        };
        parts.insert(part.site, low_rank);
    }
    Adapter::new(config, parts, base)
}

/// Layout and values of an adapter that is there already.
///
/// # Errors
/// [`LayoutError::TiedFrom`].
pub fn of_adapter(
    adapter: &Adapter,
    config: &DecoderConfig,
) -> Result<(Parameters, Vec<f32>), LayoutError> {
    let changes = |site| adapter.get(site).is_some();
    if config.tied_head && changes(Site::Embedding) && changes(Site::Head) {
        return Err(LayoutError::TiedFrom);
    }
    let mut values = Vec::new();
    let mut take = |numbers: &[f32]| {
        values.extend_from_slice(numbers);
        values.len() - numbers.len()..values.len()
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut matrices: Vec<(&Matrix, Range<usize>)> = Vec::new();
    for (site, low_rank) in adapter.parts() {
        let known = matrices.iter().find(|(a, _)| a.is(&low_rank.a));
        let a = match known {
            Some((_, range)) => range.clone(),
            None => take(low_rank.a.values()),
        };
        matrices.push((&low_rank.a, a.clone()));
        parts.push(Part {
            site,
            rank: low_rank.rank(),
            scaling: low_rank.scaling,
            a,
            b: take(low_rank.b.values()),
            magnitude: low_rank.magnitude.as_deref().map(&mut take),
        });
    }
    let len = values.len();
    Ok((Parameters { parts, len }, values))
}
