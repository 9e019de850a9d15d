//! Packing an adapter, on any thread.

use std::io;

use hyprstream_engine::PackedAdapter;
use hyprstream_models::StoredType;

use super::{
    packed::{Factors, Map, Packed, Shape, TokenFactors, Wide},
    source::{AdapterLayer, AdapterWeights, LowRank},
};
use crate::{
    buffer::Arena,
    format::Format,
    kernels::{LANES, Ops},
    model::Part,
    pool::Pool,
    weights::{Matrix, PackError, PanelSource, Weights, panels_of},
};

/// Packs adapters for a [`crate::CpuBackend`], while that computes.
#[derive(Clone)]
pub struct AdapterPacker {
    shape: Shape,
    ops: Ops,
}

/// An adapter was not packed.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// It was made for another model.
    #[error("the adapter has {found} layers, but the model has {expected}")]
    Layers {
        /// Layers of the adapter.
        found: usize,
        /// Layers of the model.
        expected: usize,
    },
    /// A factor does not fit the model.
    #[error("{factor} of {map} (layer {layer}) has {found} numbers, but {expected} are needed")]
    Shape {
        /// Which layer.
        layer: usize,
        /// Which map of it.
        map: &'static str,
        /// `A` or `B`.
        factor: char,
        /// Numbers that it has.
        found: usize,
        /// Numbers that it must have.
        expected: usize,
    },
    /// A factor holds a NaN or an infinity, or a number that is one in the type of the model.
    #[error("the change of {map} (layer {layer}) is not finite in the type of the model")]
    NotFinite {
        /// Which layer.
        layer: usize,
        /// Which map of it.
        map: &'static str,
    },
    /// It changes no map.
    #[error("the adapter changes nothing")]
    Nothing,
    /// There is no memory.
    #[error("there is no memory for the adapter")]
    Memory(#[source] io::Error),
}

/// A change of a map, its factors as numbers one after the other.
struct Change {
    map: Map,
    rank: usize,
    /// Little-endian f32, `[rank, inputs]`.
    a: Vec<u8>,
    /// `[outputs, rank]`.
    b: Vec<u8>,
}

impl AdapterPacker {
    pub(crate) fn new(shape: Shape, ops: Ops) -> Self {
        Self { shape, ops }
    }

    /// Packs `adapter` for [`hyprstream_engine::Backend::attach`] of the backend that this is of.
    ///
    /// # Errors
    /// [`AdapterError`]: it does not fit the model, is not finite, or there is no memory.
    pub fn pack(&self, adapter: &AdapterWeights) -> Result<PackedAdapter, AdapterError> {
        let (found, expected) = (adapter.layers.len(), self.shape.layers);
        if found != expected {
            return Err(AdapterError::Layers { found, expected });
        }
        let mut packing = Packing {
            // Maps of its own, which go when it does.
            arena: Arena::default(),
            pool: Pool::new(1).map_err(AdapterError::Memory)?,
            ops: &self.ops,
            shape: &self.shape,
        };
        let mut layers = Vec::with_capacity(expected + 1);
        for (index, layer) in adapter.layers.iter().enumerate() {
            let mut parts = [const { None }; 4];
            for part in Part::ALL {
                let maps = self.shape.maps.iter().filter(|map| map.part == part);
                let changes = maps.filter_map(|map| Some((*map, layer.of(map.name)?)));
                parts[part as usize] = packing.factors(index, part, changes.collect())?;
            }
            layers.push(parts);
        }
        let head = Map {
            name: "head",
            part: Part::Hidden,
            outputs: self.shape.vocab,
            first: 0,
            stride: 1,
        };
        let change = adapter.head.iter().map(|change| (head, change));
        let head = packing.factors(expected, Part::Hidden, change.collect())?;
        layers.push([head, None, None, None]);
        let embedding = adapter.embedding.as_ref();
        let embedding = embedding.map(|change| self.embedding(change)).transpose()?;

        let all = || layers.iter().flatten().flatten();
        if all().next().is_none() && embedding.is_none() {
            return Err(AdapterError::Nothing);
        }
        let widths = all().map(|factors| factors.narrow.panels * LANES);
        let bytes = all().map(Factors::bytes).sum::<usize>()
            + embedding.as_ref().map_or(0, TokenFactors::bytes);
        let packed = Packed {
            shape: self.shape.clone(),
            width: widths.max().unwrap_or(0),
            layers,
            embedding,
        };
        Ok(PackedAdapter::new(packed, bytes as u64))
    }

    fn embedding(&self, change: &LowRank) -> Result<TokenFactors, AdapterError> {
        let (layer, map) = (0, "embedding");
        let LowRank { rank, a, b, scale } = change;
        let hidden = self.shape.inputs[Part::Hidden as usize];
        check(layer, map, change, (self.shape.vocab, hidden))?;
        let factors = TokenFactors {
            rank: *rank,
            narrow: transposed(a, self.shape.vocab),
            wide: transposed(b, *rank).iter().map(|b| b * scale).collect(),
        };
        let mut numbers = factors.narrow.iter().chain(&factors.wide);
        if numbers.all(|number| number.is_finite()) {
            Ok(factors)
        } else {
            Err(AdapterError::NotFinite { layer, map })
        }
    }
}

/// Refuses factors of other sizes than a map of so many inputs and outputs needs.
fn check(
    layer: usize,
    map: &'static str,
    change: &LowRank,
    (inputs, outputs): (usize, usize),
) -> Result<(), AdapterError> {
    let sizes = [
        ('A', change.a.len(), change.rank * inputs),
        ('B', change.b.len(), change.rank * outputs),
    ];
    let wrong = |&(_, found, expected): &(char, usize, usize)| found != expected || found == 0;
    match sizes.into_iter().find(wrong) {
        None => Ok(()),
        Some((factor, found, expected)) => Err(AdapterError::Shape {
            layer,
            map,
            factor,
            found,
            expected,
        }),
    }
}

/// The transpose of rows of `width` numbers.
fn transposed(numbers: &[f32], width: usize) -> Vec<f32> {
    let columns = (0..width).flat_map(|column| numbers.iter().skip(column).step_by(width));
    columns.copied().collect()
}

/// An adapter that is being packed.
struct Packing<'a> {
    arena: Arena,
    pool: Pool,
    ops: &'a Ops,
    shape: &'a Shape,
}

impl Packing<'_> {
    /// Checks a change and brings its scale into its factors.
    fn change(&self, layer: usize, map: Map, change: &LowRank) -> Result<Change, AdapterError> {
        let inputs = self.shape.inputs[map.part as usize];
        check(layer, map.name, change, (inputs, map.outputs))?;
        let LowRank { rank, a, b, scale } = change;
        let (rank, scale, name) = (*rank, *scale, map.name);
        // The scales of 8 bits are f16, which small numbers are no match for.
        let shift = if self.shape.narrow == Format::Int8 {
            let largest = a
                .iter()
                .fold(0.0_f32, |most, number| most.max(number.abs()));
            power_of_two(largest)
        } else {
            1.0
        };
        let factor = scale * shift;
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        let mut finite = scale.is_finite();
        for (from, by, to) in [(a, 1.0 / shift, &mut narrow), (b, factor, &mut wide)] {
            to.reserve(4 * from.len());
            for number in from {
                let number = number * by;
                finite &= number.is_finite();
                to.extend_from_slice(&number.to_le_bytes());
            }
        }
        if !finite {
            return Err(AdapterError::NotFinite { layer, map: name });
        }
        Ok(Change {
            map,
            rank,
            a: narrow,
            b: wide,
        })
    }

    /// Packs the changes of one input, if there are any.
    fn factors(
        &mut self,
        layer: usize,
        part: Part,
        changes: Vec<(Map, &LowRank)>,
    ) -> Result<Option<Factors>, AdapterError> {
        let inputs = self.shape.inputs[part as usize];
        let changes = changes.into_iter();
        let changes: Vec<_> = changes
            .map(|(map, change)| self.change(layer, map, change))
            .collect::<Result<_, _>>()?;
        let Some(first) = changes.first() else {
            return Ok(None);
        };
        let panels: Vec<_> = changes
            .iter()
            .flat_map(|change| panels_of(&matrix(&change.a, inputs)))
            .collect();
        let narrow = self.weights(&panels, self.shape.narrow, (layer, first.map.name))?;
        let (mut wide, mut from) = (Vec::with_capacity(changes.len()), 0);
        for Change { map, rank, b, .. } in &changes {
            let panels: Vec<_> = panels_of(&matrix(b, *rank)).collect();
            wide.push(Wide {
                weights: self.weights(&panels, self.shape.wide, (layer, map.name))?,
                from,
                first: map.first,
                stride: map.stride,
            });
            from += rank.next_multiple_of(LANES);
        }
        Ok(Some(Factors { narrow, wide }))
    }

    fn weights(
        &mut self,
        panels: &[PanelSource<'_>],
        format: Format,
        (layer, map): (usize, &'static str),
    ) -> Result<Weights, AdapterError> {
        let (arena, pool) = (&mut self.arena, &mut self.pool);
        let packed = Weights::pack(panels, format, None, arena, self.ops, pool);
        packed.map_err(|error| match error {
            PackError::Memory(source) => AdapterError::Memory(source),
            PackError::NotFinite | PackError::TooLarge => AdapterError::NotFinite { layer, map },
        })
    }
}

impl AdapterLayer {
    /// The change of the map of this name.
    fn of(&self, name: &str) -> Option<&LowRank> {
        match name {
            "query" => self.query.as_ref(),
            "key" => self.key.as_ref(),
            "value" => self.value.as_ref(),
            "output" => self.output.as_ref(),
            "gate" => self.gate.as_ref(),
            "up" => self.up.as_ref(),
            _ => self.down.as_ref(),
        }
    }
}

impl Factors {
    fn bytes(&self) -> usize {
        let wide = self.wide.iter().map(|wide| wide.weights.bytes());
        self.narrow.bytes() + wide.sum::<usize>()
    }
}

impl TokenFactors {
    fn bytes(&self) -> usize {
        4 * (self.narrow.len() + self.wide.len())
    }
}

fn matrix(bytes: &[u8], inputs: usize) -> Matrix<'_> {
    Matrix {
        bytes,
        stored: StoredType::F32,
        inputs,
    }
}

/// The power of two next to `value`, not above it; 1 for what has none.
fn power_of_two(value: f32) -> f32 {
    if value.is_normal() {
        f32::from_bits(value.to_bits() & 0x7f80_0000)
    } else {
        1.0
    }
}
