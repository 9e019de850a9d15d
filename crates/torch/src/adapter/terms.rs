//! The factors of some adapters beside each other.

use std::collections::BTreeMap;

use hyprstream_models::adapter::Site;
use tch::{Device, TchError, Tensor};

use super::place::Place;

/// What one adapter multiplies by at one place.
#[derive(Debug)]
pub(super) struct Factors {
    /// The first factor, `[rank, in]`; of the embedding `[vocab, rank]`.
    pub(super) a: Tensor,
    /// The second one with all that multiplies it but the request's scale, `[rank, out]`.
    pub(super) b: Tensor,
    /// With DoRA: what is added to the product of the matrix, as a share of it, `[1, out]` in f32.
    pub(super) gains: Option<Tensor>,
}

/// Of each place the factors of those adapters that change it. Adapters are known by their index
/// among those that lie beside each other.
pub(super) type Parts = BTreeMap<Site, Vec<(usize, Factors)>>;

/// The factors of some adapters beside each other.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// Each once, so that layers of like adapters share the scales of a step.
    pub(super) layouts: Vec<Layout>,
    inputs: BTreeMap<Place, Input>,
}

/// Which adapter each of some columns belongs to.
#[derive(Debug)]
pub(super) struct Layout {
    owners: Vec<i64>,
    /// The same, `[columns]`, int64.
    pub(super) index: Tensor,
}

/// The changes of all maps of one input.
#[derive(Debug)]
pub(super) struct Input {
    /// The first factors, `[ranks, in]`: those of one map follow one another. Of the embedding
    /// `[vocab, ranks]`.
    pub(super) a: Tensor,
    /// Index of the layout of the ranks.
    pub(super) layout: usize,
    pub(super) outputs: Vec<Output>,
}

/// The change of one map.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) site: Site,
    /// The first of its ranks among those of the input.
    pub(super) from: i64,
    /// The second factors, `[its ranks, out]`.
    pub(super) b: Tensor,
    pub(super) gains: Option<Gains>,
}

/// Those of the adapters with DoRA.
#[derive(Debug)]
pub(super) struct Gains {
    /// Index of the layout of the rows.
    pub(super) layout: usize,
    /// `[adapters, out]`, in f32.
    pub(super) values: Tensor,
}

impl Output {
    /// How many ranks it has.
    pub(super) fn ranks(&self) -> i64 {
        self.b.size()[0]
    }
}

impl Terms {
    /// Puts `parts` beside each other on `device`, where they are. What is alone is not copied.
    pub(super) fn new(parts: &Parts, device: Device) -> Result<Self, TchError> {
        let mut terms = Self::default();
        let mut places = BTreeMap::<Place, Vec<_>>::new();
        for (site, factors) in parts {
            let at = places.entry(Place::from(*site)).or_default();
            at.push((*site, factors.as_slice()));
        }
        for (place, maps) in places {
            let input = terms.input(place, &maps, device)?;
            terms.inputs.insert(place, input);
        }
        Ok(terms)
    }

    /// Puts adapters beside each other, each of which is alone in its terms.
    pub(super) fn join(all: &[&Self], device: Device) -> Result<Self, TchError> {
        let mut parts = Parts::new();
        for (owner, terms) in all.iter().enumerate() {
            for (place, input) in &terms.inputs {
                for output in &input.outputs {
                    let (dim, ranks) = (place.rank_dim(), output.ranks());
                    let gains = output.gains.as_ref();
                    let factors = Factors {
                        a: input.a.f_narrow(dim, output.from, ranks)?,
                        b: output.b.shallow_clone(),
                        gains: gains.map(|gains| gains.values.shallow_clone()),
                    };
                    parts.entry(output.site).or_default().push((owner, factors));
                }
            }
        }
        Self::new(&parts, device)
    }

    /// What changes there, if anything does.
    pub(super) fn at(&self, place: Place) -> Option<&Input> {
        self.inputs.get(&place)
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        let layouts = self.layouts.iter().map(|layout| bytes_of(&layout.index));
        let inputs = self.inputs.values().map(|input| {
            let outputs = input.outputs.iter().map(|output| {
                let gains = output.gains.as_ref();
                bytes_of(&output.b) + gains.map_or(0, |gains| bytes_of(&gains.values))
            });
            bytes_of(&input.a) + outputs.sum::<u64>()
        });
        layouts.chain(inputs).sum()
    }

    fn input(
        &mut self,
        place: Place,
        maps: &[(Site, &[(usize, Factors)])],
        device: Device,
    ) -> Result<Input, TchError> {
        let (mut first, mut owners) = (Vec::new(), Vec::new());
        let mut outputs = Vec::with_capacity(maps.len());
        for (site, factors) in maps {
            let from = owners.len() as i64;
            let (mut second, mut gains, mut gained) = (Vec::new(), Vec::new(), Vec::new());
            for (owner, factors) in *factors {
                let (owner, rank) = (*owner as i64, factors.b.size()[0]);
                owners.extend((0..rank).map(|_| owner));
                first.push(&factors.a);
                second.push(&factors.b);
                if let Some(values) = &factors.gains {
                    gains.push(values);
                    gained.push(owner);
                }
            }
            let gains = if gains.is_empty() {
                None
            } else {
                Some(Gains {
                    layout: self.layout(gained, device)?,
                    values: beside(&gains, 0)?,
                })
            };
            outputs.push(Output {
                site: *site,
                from,
                b: beside(&second, 0)?,
                gains,
            });
        }
        Ok(Input {
            a: beside(&first, place.rank_dim())?,
            layout: self.layout(owners, device)?,
            outputs,
        })
    }

    /// Index of the layout of these columns.
    fn layout(&mut self, owners: Vec<i64>, device: Device) -> Result<usize, TchError> {
        let mut known = self.layouts.iter();
        if let Some(index) = known.position(|layout| layout.owners == owners) {
            return Ok(index);
        }
        let index = Tensor::f_from_slice(&owners)?.f_to_device(device)?;
        self.layouts.push(Layout { owners, index });
        Ok(self.layouts.len() - 1)
    }
}

/// Tensors beside each other along `dim`.
fn beside(tensors: &[&Tensor], dim: i64) -> Result<Tensor, TchError> {
    match tensors {
        [only] => Ok(only.shallow_clone()),
        all => Tensor::f_cat(all, dim),
    }
}

/// Bytes that a tensor takes on a device, which gives memory out in pieces of so many bytes
/// (`c10/core/impl`, `c10/cuda/CUDACachingAllocator.cpp`).
pub(super) fn allocated(bytes: usize) -> u64 {
    const PIECE: usize = 512;
    bytes.next_multiple_of(PIECE) as u64
}

fn bytes_of(tensor: &Tensor) -> u64 {
    allocated(tensor.numel() * tensor.kind().elt_size_in_bytes())
}
