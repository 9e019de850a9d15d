//! An adapter's numbers as tensors.

use std::{collections::BTreeMap, ops::Range};

use hyprstream_models::adapter::{Linear as Map, Site};
use hyprstream_training::Part;
use tch::{Kind, TchError, Tensor};

use super::{TorchLearner, differentiable, lengths};
use crate::decoder::Decoder;

/// The numbers of an adapter on the device, for one call. Without any it changes nothing.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    parts: BTreeMap<Site, LeafPart>,
}

/// What changes one linear map.
#[derive(Debug)]
pub(super) struct LeafPart {
    /// `[rank, in]`; parts that share it have the same.
    pub(super) a: Leaf,
    /// `[out, rank]`.
    pub(super) b: Leaf,
    pub(super) scaling: f64,
    pub(super) dora: Option<Dora>,
    /// The first part that has this A, by which dropout goes.
    pub(super) first: Site,
    /// Whether that is this part.
    is_first: bool,
}

/// The magnitudes of a map's rows, and the lengths that they have.
#[derive(Debug)]
pub(super) struct Dora {
    /// `[out]`.
    magnitude: Leaf,
    /// `[out]`. A constant, as PEFT has it.
    lengths: Tensor,
}

/// Some of the numbers, from which a graph begins.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Where they lie among all.
    pub(super) range: Range<usize>,
    /// In f32.
    pub(super) tensor: Tensor,
}

impl Leaf {
    fn share(&self) -> Self {
        Self {
            range: self.range.clone(),
            tensor: self.tensor.shallow_clone(),
        }
    }
}

impl Leaves {
    /// Those of these `values`; `trained` if derivatives by them are wanted.
    pub(super) fn new(
        learner: &TorchLearner,
        values: &[f32],
        trained: bool,
    ) -> Result<Self, TchError> {
        let all = Tensor::f_from_slice(values)?.f_to_device(learner.device)?;
        let leaf = |range: &Range<usize>, shape: &[i64]| {
            let some = all.f_narrow(0, range.start as i64, range.len() as i64)?;
            let tensor = some.f_view(shape)?;
            Ok::<_, TchError>(Leaf {
                range: range.clone(),
                tensor: if trained {
                    differentiable(&tensor)?
                } else {
                    tensor
                },
            })
        };
        let mut parts: BTreeMap<Site, LeafPart> = BTreeMap::new();
        for part in &learner.parameters.parts {
            let rank = part.rank as i64;
            let sharing = parts.iter().find(|(_, other)| other.a.range == part.a);
            let (first, a) = match sharing {
                Some((_, other)) => (other.first, other.a.share()),
                None => (part.site, leaf(&part.a, &[rank, -1])?),
            };
            let b = leaf(&part.b, &[-1, rank])?;
            let magnitude = part.magnitude.as_ref().map(|range| leaf(range, &[-1]));
            let dora = magnitude.transpose()?.map(|magnitude| {
                let lengths = tch::no_grad(|| row_lengths(&learner.model, part, &a, &b))?;
                Ok::<_, TchError>(Dora { magnitude, lengths })
            });
            let leaves = LeafPart {
                a,
                b,
                scaling: f64::from(part.scaling),
                dora: dora.transpose()?,
                first,
                is_first: first == part.site,
            };
            parts.insert(part.site, leaves);
        }
        Ok(Self { parts })
    }

    pub(super) fn get(&self, site: Site) -> Option<&LeafPart> {
        self.parts.get(&site)
    }

    /// Index of the first layer that derivatives must pass; beyond all of them if none.
    pub(super) fn lowest_layer(&self) -> usize {
        if self.embedding_is_trained() {
            return 0;
        }
        let layers = self.parts.keys().filter_map(|site| match site {
            Site::Layer(layer, _) => Some(*layer),
            Site::Embedding | Site::Head => None,
        });
        layers.min().unwrap_or(usize::MAX)
    }

    pub(super) fn embedding_is_trained(&self) -> bool {
        self.parts.contains_key(&Site::Embedding)
    }

    /// What a layer's derivatives are wanted by, each once.
    pub(super) fn of_layer(&self, layer: usize) -> impl Iterator<Item = &Leaf> {
        let sites = Map::ALL.map(|map| Site::Layer(layer, map));
        sites.into_iter().flat_map(|site| self.of(site))
    }

    pub(super) fn of_embedding(&self) -> impl Iterator<Item = &Leaf> {
        self.of(Site::Embedding)
    }

    pub(super) fn of_head(&self) -> impl Iterator<Item = &Leaf> {
        self.of(Site::Head)
    }

    fn of(&self, site: Site) -> impl Iterator<Item = &Leaf> {
        self.get(site).into_iter().flat_map(|part| {
            let a = part.is_first.then_some(&part.a);
            let magnitude = part.dora.as_ref().map(|dora| &dora.magnitude);
            a.into_iter().chain([&part.b]).chain(magnitude)
        })
    }
}

impl LeafPart {
    /// `y`, what the weight alone gives, and what is added to it, `[rows, out]`, in f32. `low` is
    /// the product with A, `[rows, rank]`.
    pub(super) fn change(&self, y: &Tensor, low: &Tensor) -> Result<Tensor, TchError> {
        let added = low.f_linear(&self.b.tensor, None::<Tensor>)?;
        let sum = y
            .f_to_kind(Kind::Float)?
            .f_add(&added.f_mul_scalar(self.scaling)?)?;
        match &self.dora {
            None => Ok(sum),
            Some(dora) => sum.f_mul(&dora.magnitude.tensor.f_div(&dora.lengths)?),
        }
    }
}

/// The lengths of the rows of the weight that a part changes.
fn row_lengths(model: &Decoder, part: &Part, a: &Leaf, b: &Leaf) -> Result<Tensor, TchError> {
    let (a, b, scaling) = (&a.tensor, &b.tensor, f64::from(part.scaling));
    match part.site {
        Site::Embedding => lengths::of_columns(&model.embedding, a, b, scaling),
        Site::Head => lengths::of_rows(&model.head.weight, a, b, scaling),
        Site::Layer(layer, map) => {
            let weight = &model.layers[layer].linear(map).weight;
            lengths::of_rows(weight, a, b, scaling)
        }
    }
}
