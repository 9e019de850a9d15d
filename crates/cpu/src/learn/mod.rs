//! Learns adapters on the CPU: losses of a batch and their derivatives by an adapter's numbers.
//!
//! The base is frozen, so that of its matrices only products with rows are needed, and with the rows'
//! derivatives; both read the one packing that there is ([`product`]). A batch is packed segments,
//! without a cache: attention stays within each ([`attend`]). Of as many layers as there is memory for,
//! activations are kept; those of the others are computed again from the layer's input, which gives the
//! same bits. Logits exist for a few rows at a time ([`head`]).
//!
//! Everything but the weights is in 32 bits, and what meets weights of 16 bits is rounded to those
//! before the product, unless the learner was asked not to ([`LearnOptions::products`]). Every sum is
//! one chain in an order that depends on nothing but the batch: results do not depend on the number of
//! threads. Sets of kernels differ by the rounding of sums.

mod attend;
mod back;
mod check;
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
    Checkpoint, DType, DecoderConfig, LoadError, Weights as StoredWeights, available_bytes,
};
use hyprstream_training::{Batch, Dropout, LearnError, Learner, Parameters, Policy, Score};

use crate::{
    Kernels, LoadOptions,
    buffer::Shared,
    format::Format,
    kernels::Ops,
    load::{check_shapes, check_weights_fit, choose_kernels, default_threads, precision},
    model::Model,
    pack::pack,
    pool::Pool,
};
pub use check::LearnLoadError;
use check::{check, rounds};
use crew::Crew;
use group::{Group, Panels};
use memory::{Memory, Need, Widths};
use rows::Rows;
use step::{Angles, Gradient, Step};

/// Left to what else the process does, such as the threads' space for attention.
const OTHERS_BYTES: u64 = 64 << 20;
/// Left for each number of the adapter: the gradient and the optimiser's two averages, which are
/// untouched memory before the first step, its factors as the kernels take them, and what a checkpoint
/// takes while it is written.
const BYTES_PER_PARAMETER: u64 = 4 + 8 + 8 + 36;

/// How a learner is to be loaded.
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// How the frozen weights are kept. [`DType::Float16`] is refused.
    pub dtype: DType,
    /// In which type what meets the frozen weights is rounded before the product, both ways. Sums and
    /// all else are in 32 bits. [`DType::Auto`] is the type of the weights, on every processor: one
    /// without products of bf16 rounds too. [`DType::Float32`] rounds nothing.
    /// [`DType::BFloat16`] beside weights in 32 bits, and [`DType::Float16`], are refused.
    pub products: DType,
    /// Which kernels to use; `None` for the best that this processor has.
    pub kernels: Option<Kernels>,
    /// Threads. `None` is what the machine and the quota of the cgroup allow.
    pub threads: Option<usize>,
    /// Bytes of activations that are kept for the way back. Layers for which there is no room compute
    /// theirs twice, with the same result to the bit, one after the other in the room of one layer
    /// more. Beside them the inputs of all layers are kept. Less is kept where memory is short.
    pub kept_bytes: u64,
    /// Bytes that all activations together may take. `None` is what the machine and the limit of the
    /// cgroup leave, looked up before each batch. A batch that needs more is refused before anything of
    /// it is computed, since the kernel ends processes whose memory it has promised and does not have.
    pub memory_bytes: Option<u64>,
}

impl Default for LearnOptions {
    /// 1.5 GiB of activations.
    fn default() -> Self {
        Self {
            dtype: DType::Auto,
            products: DType::Auto,
            kernels: None,
            threads: None,
            kept_bytes: 3 << 29,
            memory_bytes: None,
        }
    }
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
    memory_bytes: Option<u64>,
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
        let kernels = choose_kernels(options.kernels).map_err(model)?;
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
        let rounds = rounds(options.products, precision)?;
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
        let crew = Crew::new(&ops, rounds, pool);
        let learner = crew.and_then(|crew| Self::new(packed, parameters, crew, options));
        learner.map_err(|error| {
            model(LoadError::OutOfMemory(format!(
                "there is no memory for activations: {error}"
            )))
        })
    }

    fn new(
        model: Model,
        parameters: Parameters,
        crew: Crew,
        options: &LearnOptions,
    ) -> io::Result<Self> {
        let groups = group::groups(&parameters, &model.config, model.columns);
        let widths = Widths::of(&model, &groups);
        Ok(Self {
            memory: Memory::new(widths, model.config.vocab_size)?,
            crew,
            angles: Angles::default(),
            panels: Panels::default(),
            model,
            parameters,
            groups,
            widths,
            kept_bytes: options.kept_bytes,
            memory_bytes: options.memory_bytes,
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

    /// Bytes that the activations of so many rows may take beside those that they have.
    fn free_bytes(&self, rows: usize) -> u64 {
        match self.memory_bytes {
            Some(all) => all.saturating_sub(self.memory.bytes()),
            None => available_bytes().map_or(u64::MAX, |free| {
                let adapter = BYTES_PER_PARAMETER * self.parameters.len as u64;
                // Rows that are rounded for a product, the widest of them.
                let rounded = 4 * rows as u64 * self.widths.up as u64;
                free.saturating_sub(OTHERS_BYTES + adapter + rounded)
            }),
        }
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
        let need = Need {
            rows: rows.len(),
            head: head::rows_at_once(vocab).min(rows.targets.len()),
            layers,
            back,
            drops,
        };
        let free = self.free_bytes(rows.len());
        let own = self.memory.fit(need, self.kept_bytes, free)?;
        let at = self.memory.at(need, own)?;
        self.angles.at_least(rows.longest, &self.model);
        let (inputs, kept) = (at.x.clone(), at.kept.clone());
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

    /// The type of the weights is that of the products too, unless they were asked to round nothing.
    fn name(&self) -> String {
        let dtype = self.model.precision.dtype();
        let exact = self.model.precision.layers == Format::Bf16 && !self.crew.rounds;
        let products = if exact { ", exact products" } else { "" };
        format!("cpu {dtype}{products}")
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
