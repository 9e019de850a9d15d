//! Packing an adapter, on any thread.

use std::io;

use hyprstream_engine::PackedAdapter;
use hyprstream_models::{
    StoredType,
    adapter::{Adapter, LowRank, Matrix as Factor, Site},
};

use super::packed::{Factors, Map, Packed, Shape, TokenFactors, Wide};
use crate::{
    buffer::Arena,
    format::Format,
    kernels::{LANES, Ops},
    model::Part,
    pool::Pool,
    weights::{Matrix, PackError, PanelSource, Weights, panels_of},
};

/// Packs adapters for a [`crate::CpuBackend`], on any thread, while that computes.
#[derive(Clone)]
pub struct AdapterPacker {
    shape: Shape,
    ops: Ops,
}

/// An adapter was not packed.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// It was made for a model with more layers.
    #[error("the adapter changes {0}, which the model does not have")]
    Absent(Site),
    /// It was made for a model of other sizes.
    #[error(
        "{factor} of {site} has {} rows of {}, but {} of {} are needed",
        found.0, found.1, expected.0, expected.1
    )]
    Shape {
        /// What it changes.
        site: Site,
        /// `A` or `B`.
        factor: char,
        /// Rows and columns that it has.
        found: (usize, usize),
        /// Rows and columns that it must have.
        expected: (usize, usize),
    },
    /// A factor holds a NaN or an infinity, or a number that is one in the type of the model.
    #[error("the change of {0} is not finite in the type of the model")]
    NotFinite(Site),
    /// It was trained with DoRA.
    #[error("{0} has a magnitude (use_dora), which this backend does not compute yet")]
    Magnitude(Site),
    /// There is no memory.
    #[error("there is no memory for the adapter")]
    Memory(#[source] io::Error),
}

impl AdapterPacker {
    pub(crate) fn new(shape: Shape, ops: Ops) -> Self {
        Self { shape, ops }
    }

    /// Bytes that [`Self::pack`] makes of `adapter` at most, found without packing it.
    pub fn bytes_of(&self, adapter: &Adapter) -> u64 {
        let each = adapter.parts().map(|(site, part)| {
            let ((outputs, inputs), rank) = (part.size(), part.rank());
            if site == Site::Embedding {
                4 * rank * (outputs + inputs)
            } else {
                Weights::bytes_for(self.shape.narrow, rank, inputs)
                    + Weights::bytes_for(self.shape.wide, outputs, rank)
            }
        });
        each.sum::<usize>() as u64
    }

    /// Packs `adapter` for [`hyprstream_engine::Backend::attach`] of the backend that this is of.
    ///
    /// # Errors
    /// [`AdapterError`]: it does not fit the model, is not finite, or there is no memory.
    pub fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, AdapterError> {
        self.check(adapter)?;
        let room = self.bytes_of(adapter) as usize;
        let mut packing = Packing {
            // A map of its own, which goes when it does.
            arena: Arena::with_room(room).map_err(AdapterError::Memory)?,
            pool: Pool::new(1).map_err(AdapterError::Memory)?,
            ops: &self.ops,
            shape: &self.shape,
        };
        let mut layers = Vec::with_capacity(self.shape.layers + 1);
        for index in 0..self.shape.layers {
            let mut parts = [const { None }; 4];
            for part in Part::ALL {
                let maps = self.shape.maps.iter().filter(|(_, map)| map.part == part);
                let changes = maps.filter_map(|(linear, map)| {
                    let site = Site::Layer(index, *linear);
                    Some((site, *map, adapter.get(site)?))
                });
                parts[part as usize] = packing.factors(part, changes.collect())?;
            }
            layers.push(parts);
        }
        let change = adapter.get(Site::Head);
        let change = change.map(|change| (Site::Head, self.shape.head(), change));
        let head = packing.factors(Part::Hidden, change.into_iter().collect())?;
        layers.push([head, None, None, None]);
        let embedding = adapter.get(Site::Embedding);
        let embedding = embedding.map(token_factors).transpose()?;

        let all = || layers.iter().flatten().flatten();
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

    /// Refuses an adapter of another model.
    fn check(&self, adapter: &Adapter) -> Result<(), AdapterError> {
        for (site, part) in adapter.parts() {
            let size = self.shape.size(site);
            let (outputs, inputs) = size.ok_or(AdapterError::Absent(site))?;
            let size = |factor: &Factor| (factor.rows(), factor.columns());
            let rank = part.rank();
            let factors = [
                ('A', size(&part.a), (rank, inputs)),
                ('B', size(&part.b), (outputs, rank)),
            ];
            let wrong = factors.iter().find(|(_, found, right)| found != right);
            if let Some(&(factor, found, expected)) = wrong {
                return Err(AdapterError::Shape {
                    site,
                    factor,
                    found,
                    expected,
                });
            }
            if part.magnitude.is_some() {
                return Err(AdapterError::Magnitude(site));
            }
        }
        Ok(())
    }
}

/// The factors of the embedding.
fn token_factors(change: &LowRank) -> Result<TokenFactors, AdapterError> {
    let wide = change.b.transposed();
    let wide = wide.values().iter().map(|b| b * change.scaling);
    let factors = TokenFactors {
        rank: change.rank(),
        narrow: change.a.transposed().values().to_vec(),
        wide: wide.collect(),
    };
    let mut numbers = factors.narrow.iter().chain(&factors.wide);
    if numbers.all(|number| number.is_finite()) {
        Ok(factors)
    } else {
        Err(AdapterError::NotFinite(Site::Embedding))
    }
}

/// A change of a map that is being packed.
struct Change<'a> {
    site: Site,
    map: Map,
    read: &'a LowRank,
    /// The first factor, little-endian f32, `[rank, inputs]`; empty where an earlier change has it.
    a: Vec<u8>,
    /// The second one with all that multiplies it, `[outputs, rank]`.
    b: Vec<u8>,
    /// Where the outputs of the first factor begin.
    from: usize,
}

/// An adapter that is being packed.
struct Packing<'a> {
    arena: Arena,
    pool: Pool,
    ops: &'a Ops,
    shape: &'a Shape,
}

impl Packing<'_> {
    /// Packs the changes of one input, if there are any.
    fn factors(
        &mut self,
        part: Part,
        reads: Vec<(Site, Map, &LowRank)>,
    ) -> Result<Option<Factors>, AdapterError> {
        let inputs = self.shape.inputs[part as usize];
        let (mut changes, mut width) = (Vec::<Change<'_>>::new(), 0);
        for (site, map, read) in reads {
            let shared = changes.iter().find(|other| other.read.a.is(&read.a));
            let from = shared.map_or(width, |other| other.from);
            let change = self.change(site, map, read, from)?;
            if shared.is_none() {
                width += read.rank().next_multiple_of(LANES);
                changes.push(change);
            } else {
                let a = Vec::new();
                changes.push(Change { a, ..change });
            }
        }
        let Some(first) = changes.first() else {
            return Ok(None);
        };
        let panels: Vec<_> = changes
            .iter()
            .flat_map(|change| panels_of(&matrix(&change.a, inputs)))
            .collect();
        let narrow = self.weights(&panels, self.shape.narrow, first.site)?;
        let mut wide = Vec::with_capacity(changes.len());
        for change in &changes {
            let panels: Vec<_> = panels_of(&matrix(&change.b, change.read.rank())).collect();
            wide.push(Wide {
                weights: self.weights(&panels, self.shape.wide, change.site)?,
                from: change.from,
                first: change.map.first,
                stride: change.map.stride,
            });
        }
        Ok(Some(Factors { narrow, wide }))
    }

    /// Brings what multiplies a change into its factors.
    fn change<'a>(
        &self,
        site: Site,
        map: Map,
        read: &'a LowRank,
        from: usize,
    ) -> Result<Change<'a>, AdapterError> {
        let (a, b) = (read.a.values(), read.b.values());
        // The scales of 8 bits are f16, which small numbers are no match for.
        let shift = if self.shape.narrow == Format::Int8 {
            power_of_two(a.iter().fold(0.0, |most, number| number.abs().max(most)))
        } else {
            1.0
        };
        let mut finite = read.scaling.is_finite();
        let mut numbers = |of: &[f32], factor: f32| -> Vec<u8> {
            let scaled = of.iter().map(|number| number * factor);
            let each = scaled.inspect(|number| finite &= number.is_finite());
            each.flat_map(f32::to_le_bytes).collect()
        };
        let (a, b) = (numbers(a, 1.0 / shift), numbers(b, read.scaling * shift));
        if !finite {
            return Err(AdapterError::NotFinite(site));
        }
        Ok(Change {
            site,
            map,
            read,
            a,
            b,
            from,
        })
    }

    fn weights(
        &mut self,
        panels: &[PanelSource<'_>],
        format: Format,
        site: Site,
    ) -> Result<Weights, AdapterError> {
        let (arena, pool) = (&mut self.arena, &mut self.pool);
        let packed = Weights::pack(panels, format, None, arena, self.ops, pool);
        packed.map_err(|error| match error {
            PackError::Memory(source) => AdapterError::Memory(source),
            PackError::NotFinite | PackError::TooLarge => AdapterError::NotFinite(site),
        })
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
