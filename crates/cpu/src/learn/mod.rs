//! Learns adapters on the CPU: losses of a batch and their derivatives by an adapter's numbers.
//!
//! The base is frozen, so that of its matrices only products with rows are needed, and with the rows'
//! derivatives; both read the one packing that there is ([`product`]). A batch is packed segments,
//! without a cache: attention stays within each ([`attend`]). Of as many layers as there is memory for,
//! activations are kept; those of the others are computed again from the layer's input, which gives the
//! same bits. Logits exist for a few rows at a time ([`head`]).
//!
//! Everything but the weights is in 32 bits, and every sum is one chain in an order that depends on
//! nothing but the batch: results do not depend on the number of threads. Sets of kernels differ by
//! rounding.

mod attend;
mod back;
mod crew;
mod grid;
mod group;
mod head;
mod memory;
mod product;
mod rows;
mod step;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use hyprstream_models::{
    Checkpoint, DType, DecoderConfig, LoadError, Weights as StoredWeights,
    adapter::{Linear, Site},
};
use hyprstream_training::{Batch, Dropout, LearnError, Learner, Parameters, Part, Policy, Score};

use crate::{
    Kernels, LoadOptions,
    buffer::Shared,
    kernels::Ops,
    load::{check_shapes, check_weights_fit, choose_kernels, default_threads, precision},
    model::Model,
    pack::pack,
    pool::Pool,
};
use crew::Crew;
use group::{Group, Panels};
use memory::{Memory, Widths};
use rows::Rows;
use step::{Angles, Gradient, Step};

/// How a learner is to be loaded.
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// How the frozen weights are kept. [`DType::Float16`] is refused.
    pub dtype: DType,
    /// Which kernels to use; `None` for the best that this processor has.
    pub kernels: Option<Kernels>,
    /// Threads. `None` is what the machine and the quota of the cgroup allow.
    pub threads: Option<usize>,
    /// Bytes of activations that are kept for the way back. Layers for which there is no room compute
    /// theirs twice, with the same result to the bit, one after the other in the room of one layer
    /// more. Beside them the inputs of all layers are kept.
    pub kept_bytes: u64,
}

impl Default for LearnOptions {
    /// 1.5 GiB of activations.
    fn default() -> Self {
        Self {
            dtype: DType::Auto,
            kernels: None,
            threads: None,
            kept_bytes: 3 << 29,
        }
    }
}

/// Why there is no learner.
#[derive(Debug, thiserror::Error)]
pub enum LearnLoadError {
    /// The model could not be loaded.
    #[error("the model cannot be loaded")]
    Model(#[source] LoadError),
    /// The model has no such place.
    #[error("the adapter changes {0}, but the model has no such layer")]
    Absent(Site),
    /// A place that is not trained here.
    #[error(
        "the adapter changes {0}: but for linear maps of layers, only libtorch trains it; leave it out \
         of the targets, or train on a GPU"
    )]
    Place(Site),
    /// DoRA.
    #[error(
        "the adapter has magnitudes at {0}: only libtorch trains DoRA; use plain LoRA, or train on a \
         GPU"
    )]
    Magnitude(Site),
    /// Two parts for one place.
    #[error("the adapter changes {0} twice")]
    Twice(Site),
    /// No parts.
    #[error("the adapter changes nothing")]
    Empty,
    /// Numbers of a factor that are not where they should be.
    #[error("the factor {factor} of {site} has {found} numbers, and not {expected} within {len}")]
    Size {
        /// Which place.
        site: Site,
        /// `A` or `B`.
        factor: char,
        /// Numbers of it.
        found: usize,
        /// Numbers that it needs.
        expected: usize,
        /// Numbers of the whole adapter.
        len: usize,
    },
    /// Factors that overlap though nothing fused them.
    #[error("the factor {factor} of {site} shares numbers with another")]
    Shared {
        /// Which place.
        site: Site,
        /// `A` or `B`.
        factor: char,
    },
    /// A scaling that is not finite.
    #[error("the scaling of {0} is not finite")]
    Scaling(Site),
}

/// A frozen model on the CPU, and an adapter's places in it.
pub struct CpuLearner {
    model: Model,
    parameters: Parameters,
    groups: Vec<[Group; 4]>,
    widths: Widths,
    crew: Crew,
    memory: Memory,
    angles: Angles,
    panels: Panels,
    kept_bytes: u64,
}

impl CpuLearner {
    /// Loads the model in `dir` for adapters laid out as `parameters`. The embedding stays in its mapped
    /// file, which must not change meanwhile.
    ///
    /// # Errors
    /// [`LearnLoadError`].
    pub fn load(
        dir: &Path,
        parameters: Parameters,
        options: &LearnOptions,
    ) -> Result<Self, LearnLoadError> {
        let model = LearnLoadError::Model;
        let kernels = match choose_kernels(options.kernels).map_err(model)? {
            // What AMX multiplies by tiles is in 16 bits, and all here is in 32.
            Kernels::Amx => Kernels::Avx512,
            kernels => kernels,
        };
        let (config, saved_as) = DecoderConfig::read(dir).map_err(model)?;
        check(&parameters, &config)?;
        let checkpoint = Checkpoint::open(dir).map_err(model)?;
        let stored = StoredWeights::take(&config, checkpoint).map_err(model)?;
        let load = LoadOptions {
            dtype: options.dtype,
            ..LoadOptions::default()
        };
        let stored_type = saved_as.unwrap_or(stored.stored_type);
        let precision = precision(&load, stored_type).map_err(model)?;
        check_shapes(&config, load.quantization).map_err(model)?;
        check_weights_fit(&stored, precision).map_err(model)?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let mut pool = Pool::new(threads.clamp(1, 1024)).map_err(|source| {
            model(LoadError::Backend {
                doing: "starting its threads",
                source: source.into(),
            })
        })?;
        let ops = Ops::of(kernels);
        let packed = pack(config, &stored, precision, &[], &ops, &mut pool).map_err(model)?;
        Self::new(packed, parameters, &ops, pool, options.kept_bytes).map_err(|error| {
            model(LoadError::OutOfMemory(format!(
                "there is no memory for activations: {error}"
            )))
        })
    }

    fn new(
        model: Model,
        parameters: Parameters,
        ops: &Ops,
        pool: Pool,
        kept_bytes: u64,
    ) -> io::Result<Self> {
        let groups = group::groups(&parameters, &model.config, model.columns);
        let widths = Widths::of(&model, &groups);
        Ok(Self {
            memory: Memory::new(widths, model.config.vocab_size)?,
            crew: Crew::new(ops, pool)?,
            angles: Angles::default(),
            panels: Panels::default(),
            model,
            parameters,
            groups,
            widths,
            kept_bytes,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &DecoderConfig {
        &self.model.config
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.model.weight_bytes
    }

    fn run(
        &mut self,
        batch: &Batch,
        values: Option<&[f32]>,
        dropout: Dropout,
        gradient: Option<&mut [f32]>,
    ) -> Result<Vec<Score>, LearnError> {
        let rows = Rows::of(batch, &self.model.config)?;
        for (what, len) in [
            ("values", values.map(<[f32]>::len)),
            ("numbers of a gradient", gradient.as_ref().map(|g| g.len())),
        ] {
            let expected = self.parameters.len;
            if let Some(len) = len.filter(|len| *len != expected) {
                return Err(LearnError::Batch(format!(
                    "there are {len} {what}, and the adapter has {expected}"
                )));
            }
        }
        if !(0.0..1.0).contains(&dropout.probability) {
            return Err(LearnError::Batch(format!(
                "a dropout of {} is not in 0..1",
                dropout.probability
            )));
        }
        let work = || self.compute(&rows, values, dropout, gradient);
        let scores = catch_unwind(AssertUnwindSafe(work))
            .map_err(|_| LearnError::Fatal("a kernel panicked".into()))?;
        scores.map_err(|error| LearnError::OutOfMemory {
            tokens: rows.len(),
            message: error.to_string(),
        })
    }

    fn compute(
        &mut self,
        rows: &Rows,
        values: Option<&[f32]>,
        dropout: Dropout,
        gradient: Option<&mut [f32]>,
    ) -> io::Result<Vec<Score>> {
        let layers = self.model.config.num_layers();
        let vocab = self.model.config.vocab_size;
        let drops = dropout.probability > 0.0;
        let back = gradient.is_some();
        let at = self.memory.at(
            rows.len(),
            head::rows_at_once(vocab).min(rows.targets.len()),
            layers,
            back.then_some(self.kept_bytes),
            drops,
        )?;
        self.angles.at_least(rows.longest, &self.model);
        let (inputs, kept, own) = (at.x.clone(), at.kept.clone(), at.own);
        let mut step = Step {
            model: &self.model,
            crew: &mut self.crew,
            groups: &self.groups,
            widths: self.widths,
            rows,
            angles: &self.angles,
            at,
            values,
            dropout,
            panels: &mut self.panels,
        };
        // The last layers keep theirs: the way back begins with them.
        let keeps = |index: usize| (index + own).checked_sub(layers);
        let set = |index: usize| kept[keeps(index).unwrap_or(kept.len() - 1)];
        let input = |index: usize| inputs[if back { index } else { index % 2 }];
        step.embed()?;
        for index in 0..layers {
            step.layer(index, input(index), set(index), Some(input(index + 1)))?;
        }
        let scores = step.finish(input(layers), back)?;
        let Some(gradient) = gradient else {
            return Ok(scores);
        };
        if rows.targets.is_empty() {
            return Ok(scores);
        }
        let gradient = Gradient(Shared::new(gradient));
        for index in (0..layers).rev() {
            if keeps(index).is_none() {
                step.layer(index, input(index), set(index), None)?;
            }
            step.layer_back(index, input(index), set(index), gradient)?;
        }
        Ok(scores)
    }
}

impl Learner for CpuLearner {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn name(&self) -> String {
        format!("cpu {}", self.model.precision.dtype())
    }

    fn accumulate(
        &mut self,
        batch: &Batch,
        values: &[f32],
        dropout: Dropout,
        gradient: &mut [f32],
    ) -> Result<Vec<Score>, LearnError> {
        self.run(batch, Some(values), dropout, Some(gradient))
    }

    fn score(&mut self, batch: &Batch, policy: Policy<'_>) -> Result<Vec<Score>, LearnError> {
        let values = match policy {
            Policy::Base => None,
            Policy::Adapter(values) => Some(values),
        };
        self.run(batch, values, Dropout::NONE, None)
    }
}

/// Refuses parameters that are not for this model, or that cannot be trained here.
fn check(parameters: &Parameters, config: &DecoderConfig) -> Result<(), LearnLoadError> {
    if parameters.parts.is_empty() {
        return Err(LearnLoadError::Empty);
    }
    let input = |site: Site| match site {
        Site::Layer(index, Linear::Query | Linear::Key | Linear::Value) => (index, 0),
        Site::Layer(index, Linear::Output) => (index, 1),
        Site::Layer(index, Linear::Gate | Linear::Up) => (index, 2),
        Site::Layer(index, Linear::Down) => (index, 3),
        Site::Embedding | Site::Head => (usize::MAX, 0),
    };
    for part in &parameters.parts {
        let site = part.site;
        let Site::Layer(index, _) = site else {
            return Err(LearnLoadError::Place(site));
        };
        if index >= config.num_layers() {
            return Err(LearnLoadError::Absent(site));
        }
        if part.magnitude.is_some() {
            return Err(LearnLoadError::Magnitude(site));
        }
        if !part.scaling.is_finite() {
            return Err(LearnLoadError::Scaling(site));
        }
        let (outputs, inputs) = site.size(config);
        for (factor, range, width) in [('A', &part.a, inputs), ('B', &part.b, outputs)] {
            let expected = part.rank.max(1) * width;
            if range.len() != expected || range.end > parameters.len {
                return Err(LearnLoadError::Size {
                    site,
                    factor,
                    found: range.len(),
                    expected,
                    len: parameters.len,
                });
            }
        }
    }
    let mut ranges: Vec<_> = parameters
        .parts
        .iter()
        .flat_map(|part| [(&part.a, 'A', part), (&part.b, 'B', part)])
        .collect();
    ranges.sort_by_key(|(range, factor, part)| (range.start, *factor, part.site));
    for pair in ranges.windows(2) {
        let ((one, a, first), (two, b, second)) = (pair[0], pair[1]);
        let fused = a == 'A'
            && b == 'A'
            && one == two
            && first.rank == second.rank
            && input(first.site) == input(second.site);
        if two.start < one.end && !fused {
            return Err(LearnLoadError::Shared {
                site: second.site,
                factor: b,
            });
        }
    }
    let mut sites: Vec<_> = parameters
        .parts
        .iter()
        .map(|part: &Part| part.site)
        .collect();
    sites.sort();
    match sites.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LearnLoadError::Twice(pair[0])),
        None => Ok(()),
    }
}
