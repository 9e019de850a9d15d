//! The places of a decoder that an adapter can change, and how files call them.

use std::fmt;

use crate::{DecoderConfig, WeightNames};

/// A linear map of a layer, in the order of [`super::LayerAdapter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Linear {
    /// `[heads * head_dim, hidden]`.
    Query,
    /// `[kv_heads * head_dim, hidden]`.
    Key,
    /// `[kv_heads * head_dim, hidden]`.
    Value,
    /// `[hidden, heads * head_dim]`.
    Output,
    /// `[intermediate, hidden]`.
    Gate,
    /// `[intermediate, hidden]`.
    Up,
    /// `[hidden, intermediate]`.
    Down,
}

impl Linear {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Outputs and inputs in the model of this configuration.
    pub fn size(self, config: &DecoderConfig) -> (usize, usize) {
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Query => (queries, hidden),
            Self::Key | Self::Value => (keys, hidden),
            Self::Output => (hidden, queries),
            Self::Gate | Self::Up => (inner, hidden),
            Self::Down => (hidden, inner),
        }
    }
}

/// One place that an adapter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// A linear map of the layer of this index.
    Layer(usize, Linear),
    /// The table of embeddings, as the map from tokens to the hidden state: `[hidden, vocab]`.
    Embedding,
    /// The head, `[vocab, hidden]`.
    Head,
}

impl Site {
    /// Outputs and inputs in the model of this configuration.
    pub fn size(self, config: &DecoderConfig) -> (usize, usize) {
        match self {
            Self::Layer(_, linear) => linear.size(config),
            Self::Embedding => (config.hidden_size, config.vocab_size),
            Self::Head => (config.vocab_size, config.hidden_size),
        }
    }
}

/// As transformers calls it where nothing is fused.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(index, linear) => {
                let (suffix, _) = PROJECTIONS
                    .iter()
                    .find(|(_, parts)| parts == &[*linear])
                    .expect("each has a name of its own");
                write!(f, "model.layers.{index}.{suffix}")
            }
            Self::Embedding => f.write_str("model.embed_tokens"),
            Self::Head => f.write_str(HEAD),
        }
    }
}

/// Name of a module within its layer, and the linear maps that it holds, whose outputs follow one
/// another.
pub(super) type Projection = (&'static str, &'static [Linear]);

/// All modules of a layer, by whichever name.
const PROJECTIONS: [Projection; 9] = [
    ("self_attn.q_proj", &[Linear::Query]),
    ("self_attn.k_proj", &[Linear::Key]),
    ("self_attn.v_proj", &[Linear::Value]),
    ("self_attn.o_proj", &[Linear::Output]),
    ("mlp.gate_proj", &[Linear::Gate]),
    ("mlp.up_proj", &[Linear::Up]),
    ("mlp.down_proj", &[Linear::Down]),
    (
        "self_attn.qkv_proj",
        &[Linear::Query, Linear::Key, Linear::Value],
    ),
    ("mlp.gate_up_proj", &[Linear::Gate, Linear::Up]),
];

/// The modules of a layer by the names that the model's own files have.
pub(super) fn projections(names: WeightNames) -> &'static [Projection] {
    const FUSED: [Projection; 4] = [
        PROJECTIONS[7],
        PROJECTIONS[3],
        PROJECTIONS[8],
        PROJECTIONS[6],
    ];
    match names {
        WeightNames::Separate => &PROJECTIONS[..7],
        WeightNames::Fused => &FUSED,
    }
}

const EMBEDDING: &str = "embed_tokens";
pub(super) const HEAD: &str = "lm_head";

/// What stands before `layers` and `embed_tokens` in the names of a model's modules, and before
/// the head's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Root {
    body: &'static str,
    head: &'static str,
}

impl Root {
    /// As transformers has them in a text decoder.
    pub(super) const PLAIN: Self = Self {
        body: "model.",
        head: "",
    };

    /// Longest first, so that what follows is a layer. Beside [`Self::PLAIN`]: text parts of models
    /// that see, of transformers 5 and 4, and decoders without a head.
    pub(super) const ALL: [Self; 5] = [
        Self {
            body: "model.language_model.",
            head: "",
        },
        Self {
            body: "language_model.model.",
            head: "language_model.",
        },
        Self {
            body: "language_model.",
            head: "",
        },
        Self::PLAIN,
        Self { body: "", head: "" },
    ];

    /// The name below the root, if it is below this one.
    pub(super) fn strip(self, name: &str) -> Option<&str> {
        name.strip_prefix(self.body)
    }

    /// Every module of the model by the names that it has below this root.
    pub(super) fn modules(self, config: &DecoderConfig) -> impl Iterator<Item = Module> {
        let projections = projections(config.names);
        let layers = (0..config.num_layers()).flat_map(move |index| {
            projections
                .iter()
                .map(move |projection| Place::Layer(index, *projection))
        });
        layers
            .chain([Place::Embedding, Place::Head])
            .map(move |place| Module { root: self, place })
    }
}

/// A module as a file calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) root: Root,
    pub(super) place: Place,
}

/// Where a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Layer(usize, Projection),
    Embedding,
    Head,
}

impl Module {
    /// The module of this name, in any layer, whether the model has it or not.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Root::ALL.into_iter().find_map(|root| {
            let place = if name.strip_prefix(root.head) == Some(HEAD) {
                Place::Head
            } else {
                place(root.strip(name)?)?
            };
            Some(Self { root, place })
        })
    }

    /// Whether the model has it. What is fused in the model may be separate here and the other
    /// way round.
    pub(super) fn exists(self, config: &DecoderConfig) -> bool {
        match self.place {
            Place::Layer(index, _) => index < config.num_layers(),
            Place::Embedding | Place::Head => true,
        }
    }

    /// The places that it stands for; their outputs follow one another.
    pub(super) fn sites(self) -> Vec<Site> {
        match self.place {
            Place::Layer(index, (_, parts)) => {
                let part = |part: &Linear| Site::Layer(index, *part);
                parts.iter().map(part).collect()
            }
            Place::Embedding => vec![Site::Embedding],
            Place::Head => vec![Site::Head],
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Root { body, head } = self.root;
        match self.place {
            Place::Layer(index, (suffix, _)) => write!(f, "{body}layers.{index}.{suffix}"),
            Place::Embedding => write!(f, "{body}{EMBEDDING}"),
            Place::Head => write!(f, "{head}{HEAD}"),
        }
    }
}

fn place(name: &str) -> Option<Place> {
    if name == EMBEDDING {
        return Some(Place::Embedding);
    }
    let (index, suffix) = layer(name)?;
    let projection = PROJECTIONS.iter().find(|(known, _)| *known == suffix)?;
    Some(Place::Layer(index, *projection))
}

/// Index of a layer and the name within it.
fn layer(name: &str) -> Option<(usize, &str)> {
    let (index, suffix) = name.strip_prefix("layers.")?.split_once('.')?;
    let number: usize = index.parse().ok()?;
    // As Python writes it: no sign, no leading zeros.
    (number.to_string() == index).then_some((number, suffix))
}

/// Names of modules that exist, each the nearest to one of the first few of `names`.
pub(super) fn nearest(names: &[String], config: &DecoderConfig) -> Vec<String> {
    const FEW: usize = 3;
    let mut found: Vec<String> = Vec::new();
    for name in names.iter().take(FEW) {
        let root = *Root::ALL
            .iter()
            .find(|root| {
                root.strip(name)
                    .is_some_and(|rest| rest.starts_with("layers."))
            })
            .unwrap_or(&Root::PLAIN);
        let asked = root.strip(name).and_then(layer).map_or(0, |(i, _)| i);
        let index = asked.min(config.num_layers() - 1);
        let near = root
            .modules(config)
            .filter(|module| !matches!(module.place, Place::Layer(i, _) if i != index))
            .map(|module| module.to_string())
            .min_by_key(|module| strsim::levenshtein(module, name));
        found.extend(near.filter(|near| !found.contains(near)));
    }
    found
}
