//! Packing an adapter, on any thread.

use std::sync::Arc;

use hyprstream_engine::PackedAdapter;
use hyprstream_models::{
    DecoderConfig, Weights,
    adapter::{Adapter, LowRank, Matrix, NoLength, Site},
};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    place::Place,
    terms::{Factors, Parts, Terms, allocated},
};
use crate::{decoder::kind_of, error::is_out_of_memory, load::free_bytes};

/// Everything about a model that packed adapters depend on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) config: DecoderConfig,
    /// In which the factors are multiplied.
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

/// A packed adapter.
#[derive(Debug)]
pub(crate) struct Packed {
    /// What it was packed for.
    pub(crate) shape: Shape,
    pub(super) terms: Terms,
}

/// Packs adapters for a [`crate::TorchBackend`], on any thread, while that computes.
#[derive(Clone, Debug)]
pub struct AdapterPacker {
    shape: Shape,
    /// The model that adapters change.
    stored: Arc<Weights>,
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
    /// There is no memory on the device.
    #[error("there is no memory for the adapter")]
    Memory(#[source] TchError),
    /// libtorch failed otherwise.
    #[error("libtorch cannot take the adapter")]
    Libtorch(#[source] TchError),
}

impl AdapterError {
    fn of(error: TchError) -> Self {
        if is_out_of_memory(&error) {
            Self::Memory(error)
        } else {
            Self::Libtorch(error)
        }
    }
}

impl AdapterPacker {
    pub(crate) fn new(shape: Shape, stored: Arc<Weights>) -> Self {
        Self { shape, stored }
    }

    /// Bytes that are free where adapters lie, when that is the memory of a GPU and it says so.
    pub fn gpu_free_bytes(&self) -> Option<u64> {
        match self.shape.device {
            Device::Cpu => None,
            device => free_bytes(device),
        }
    }

    /// Bytes that `adapter` takes at most, found without packing it: as packed, and once more beside
    /// others, while a step has several.
    pub fn bytes_of(&self, adapter: &Adapter) -> u64 {
        let width = self.shape.kind.elt_size_in_bytes();
        let each = adapter.parts().map(|(_, part)| {
            let ((outputs, inputs), rank) = (part.size(), part.rank());
            let gains = part.magnitude.as_ref();
            // At most as many layouts as ranks of maps and rows of gains.
            let gains = gains.map_or(0, |_| allocated(4 * outputs) + allocated(8));
            let factors = allocated(width * rank * inputs) + allocated(width * rank * outputs);
            factors + gains + allocated(8 * rank)
        });
        2 * each.sum::<u64>()
    }

    /// Packs `adapter` for [`hyprstream_engine::Backend::attach`] of the backend that this is of. With
    /// DoRA this reads the weights that it changes from the model's files.
    ///
    /// # Errors
    /// [`AdapterError`]: it does not fit the model, is not finite, or there is no memory.
    pub fn pack(&self, adapter: &Adapter) -> Result<PackedAdapter, AdapterError> {
        self.check(adapter)?;
        let _no_grad = tch::no_grad_guard();
        let parts = adapter.parts().map(|(site, part)| {
            let factors = self.factors(site, part)?;
            Ok((site, vec![(0, factors)]))
        });
        let parts = parts.collect::<Result<Parts, _>>()?;
        let terms = Terms::new(&parts, self.shape.device).map_err(AdapterError::of)?;
        // What several adapters are beside each other is a copy of each.
        let bytes = 2 * terms.bytes();
        let packed = Packed {
            shape: self.shape.clone(),
            terms,
        };
        Ok(PackedAdapter::new(packed, bytes))
    }

    /// Refuses an adapter of another model.
    fn check(&self, adapter: &Adapter) -> Result<(), AdapterError> {
        let config = &self.shape.config;
        for (site, part) in adapter.parts() {
            if matches!(site, Site::Layer(index, _) if index >= config.num_layers()) {
                return Err(AdapterError::Absent(site));
            }
            let (outputs, inputs) = site.size(config);
            let size = |factor: &Matrix| (factor.rows(), factor.columns());
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

    fn factors(&self, site: Site, part: &LowRank) -> Result<Factors, AdapterError> {
        let gains = part.gains(site, &self.stored);
        self.release(site, part);
        let gains = gains.map_err(AdapterError::NoLength)?;
        if !part.scaling.is_finite() {
            return Err(AdapterError::NotFinite(site));
        }
        let scaled = scaled(part, gains.as_deref());
        let rank = part.rank();
        let a = self.tensor(site, part.a.values(), rank, self.shape.kind)?;
        let b = self.tensor(site, &scaled, part.b.rows(), self.shape.kind)?;
        let gains = gains.map(|gains| {
            let added: Vec<_> = gains.into_iter().map(|gain| gain - 1.0).collect();
            self.tensor(site, &added, 1, Kind::Float)
        });
        let turned = |tensor: Tensor| tensor.f_transpose(0, 1)?.f_contiguous();
        let a = match Place::from(site) {
            Place::Embedding => turned(a).map_err(AdapterError::of)?,
            _ => a,
        };
        Ok(Factors {
            a,
            b: turned(b).map_err(AdapterError::of)?,
            gains: gains.transpose()?,
        })
    }

    /// So many rows of these numbers, on the device.
    fn tensor(
        &self,
        site: Site,
        values: &[f32],
        rows: usize,
        kind: Kind,
    ) -> Result<Tensor, AdapterError> {
        let load = || {
            let there = Tensor::f_from_slice(values)?
                .f_view([rows as i64, -1])?
                .f_to_device(self.shape.device)?
                .f_to_kind(kind)?;
            let finite = there.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
            Ok((there, finite))
        };
        match load().map_err(AdapterError::of)? {
            (there, true) => Ok(there),
            _ => Err(AdapterError::NotFinite(site)),
        }
    }

    /// Gives up the pages of the weight that gains were computed of, unless the model computes
    /// with them.
    fn release(&self, site: Site, part: &LowRank) {
        if part.magnitude.is_none() {
            return;
        }
        let weight = site.weight(&self.stored);
        let (device, kind) = (self.shape.device, self.shape.kind);
        if device != Device::Cpu || kind_of(weight.dtype()) != kind {
            weight.release();
        }
    }
}

/// The second factor with all that multiplies it but the request's scale.
fn scaled(change: &LowRank, gains: Option<&[f32]>) -> Vec<f32> {
    let rows = change.b.values().chunks_exact(change.rank()).enumerate();
    let rows = rows.flat_map(|(output, row)| {
        let factor = change.scaling * gains.map_or(1.0, |gains| gains[output]);
        row.iter().map(move |b| b * factor)
    });
    rows.collect()
}
