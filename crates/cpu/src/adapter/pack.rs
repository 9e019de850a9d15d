//! Packing an adapter, on any thread.

use std::{io, sync::Arc};

use hyprstream_engine::PackedAdapter;
use hyprstream_models::{
    StoredType, Weights as Stored,
    adapter::{Adapter, LowRank, Matrix as Factor, NoLength, Site},
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
    /// The model that adapters change.
    stored: Arc<Stored>,
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
    /// It gives a length to what has none.
    #[error(transparent)]
    NoLength(NoLength),
    /// There is no memory.
    #[error("there is no memory for the adapter")]
    Memory(#[source] io::Error),
}

impl AdapterPacker {
    pub(crate) fn new(shape: Shape, ops: &Ops, stored: Arc<Stored>) -> Self {
        Self {
            shape,
            ops: *ops,
            stored,
        }
    }

    /// Bytes that [`Self::pack`] makes of `adapter` at most, found without packing it.
    pub fn bytes_of(&self, adapter: &Adapter) -> u64 {
        let each = adapter.parts().map(|(site, part)| {
            let ((outputs, inputs), rank) = (part.size(), part.rank());
            let factors = if site == Site::Embedding {
                4 * rank * (outputs + inputs)
            } else {
                Weights::bytes_for(self.shape.narrow, rank, inputs)
                    + Weights::bytes_for(self.shape.wide, outputs, rank)
            };
            let gains = part.magnitude.as_ref();
            factors + gains.map_or(0, |_| 4 * outputs.next_multiple_of(LANES))
        });
        each.sum::<usize>() as u64
    }

    /// Packs `adapter` for [`hyprstream_engine::Backend::attach`] of the backend that this is of. With
    /// DoRA this reads the weights that it changes from the model's files.
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
            packer: self,
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
        let embedding = embedding.map(|change| self.token_factors(change));
        let embedding = embedding.transpose()?;

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
        }
        Ok(())
    }

    /// What multiplies each output beside the first factor: 1 without DoRA.
    fn gains(&self, site: Site, read: &LowRank) -> Result<Option<Vec<f32>>, AdapterError> {
        let gains = read.gains(site, &self.stored);
        if read.magnitude.is_some() && site != Site::Embedding {
            site.weight(&self.stored).release();
        }
        gains.map_err(AdapterError::NoLength)
    }

    /// The factors of the embedding.
    fn token_factors(&self, change: &LowRank) -> Result<TokenFactors, AdapterError> {
        let gains = self.gains(Site::Embedding, change)?;
        let wide = scaled(change, change.scaling, gains.as_deref());
        let factors = TokenFactors {
            rank: change.rank(),
            narrow: change.a.transposed().values().to_vec(),
            wide: Factor::new(change.b.rows(), wide)
                .transposed()
                .values()
                .to_vec(),
            gains: gains.map(|gains| added(gains, 1)),
        };
        let numbers = factors.narrow.iter().chain(&factors.wide);
        let mut numbers = numbers.chain(factors.gains.iter().flatten());
        if numbers.all(|number| number.is_finite()) {
            Ok(factors)
        } else {
            Err(AdapterError::NotFinite(Site::Embedding))
        }
    }
}

/// The second factor times `factor`, and each of its rows times its gain.
fn scaled(change: &LowRank, factor: f32, gains: Option<&[f32]>) -> Vec<f32> {
    let rows = change.b.values().chunks_exact(change.rank()).enumerate();
    let rows = rows.flat_map(|(output, row)| {
        let factor = factor * gains.map_or(1.0, |gains| gains[output]);
        row.iter().map(move |b| b * factor)
    });
    rows.collect()
}

/// What gains add to a product, as a share of it, up to a multiple of `columns`.
fn added(gains: Vec<f32>, columns: usize) -> Vec<f32> {
    let mut added: Vec<_> = gains.into_iter().map(|gain| gain - 1.0).collect();
    added.resize(added.len().next_multiple_of(columns), 0.0);
    added
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
    /// See [`Wide::gains`].
    gains: Option<Vec<f32>>,
    /// Where the outputs of the first factor begin.
    from: usize,
}

/// An adapter that is being packed.
struct Packing<'a> {
    arena: Arena,
    pool: Pool,
    packer: &'a AdapterPacker,
}

impl Packing<'_> {
    /// Packs the changes of one input, if there are any.
    fn factors(
        &mut self,
        part: Part,
        reads: Vec<(Site, Map, &LowRank)>,
    ) -> Result<Option<Factors>, AdapterError> {
        let shape = &self.packer.shape;
        let inputs = shape.inputs[part as usize];
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
        let narrow = self.weights(&panels, shape.narrow, first.site)?;
        let mut wide = Vec::with_capacity(changes.len());
        for change in changes {
            let panels: Vec<_> = panels_of(&matrix(&change.b, change.read.rank())).collect();
            wide.push(Wide {
                weights: self.weights(&panels, shape.wide, change.site)?,
                gains: change.gains,
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
        let gains = self.packer.gains(site, read)?;
        let a = read.a.values();
        // The scales of 8 bits are f16, which small numbers are no match for.
        let shift = if self.packer.shape.narrow == Format::Int8 {
            power_of_two(a.iter().fold(0.0, |most, number| number.abs().max(most)))
        } else {
            1.0
        };
        let a: Vec<_> = a.iter().map(|number| number / shift).collect();
        let b = scaled(read, read.scaling * shift, gains.as_deref());
        let gains = gains.map(|gains| added(gains, LANES));
        let mut numbers = a.iter().chain(&b).chain(gains.iter().flatten());
        if !read.scaling.is_finite() || !numbers.all(|number| number.is_finite()) {
            return Err(AdapterError::NotFinite(site));
        }
        let bytes = |numbers: Vec<f32>| numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(Change {
            site,
            map,
            read,
            a: bytes(a),
            b: bytes(b),
            gains,
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
        let packed = Weights::pack(panels, format, None, arena, &self.packer.ops, pool);
        packed.map_err(|error| match error {
            PackError::Memory(source) => AdapterError::Memory(source),
            PackError::NotFinite | PackError::TooLarge => AdapterError::NotFinite(site),
        })
    }
}

impl Factors {
    fn bytes(&self) -> usize {
        let wide = self.wide.iter().map(|wide| {
            let gains = wide.gains.as_ref();
            wide.weights.bytes() + gains.map_or(0, |gains| 4 * gains.len())
        });
        self.narrow.bytes() + wide.sum::<usize>()
    }
}

impl TokenFactors {
    fn bytes(&self) -> usize {
        let gains = self.gains.as_ref().map_or(0, Vec::len);
        4 * (self.narrow.len() + self.wide.len() + gains)
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
