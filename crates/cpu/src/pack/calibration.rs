//! What the inputs of a layer's matrices are like for some text.
//!
//! In 4 bits every weight loses something, and what a weight loses counts as much as the square of
//! its input. So scales are fitted with the mean squares of the inputs as weights, as llama.cpp
//! does with an importance matrix. A few hundred tokens of any text tell enough of them.

use std::io;

use hyprstream_engine::{LogitsWanted, ModelSpec, SequenceStep, StepBatch};
use hyprstream_models::LoadError;

use crate::{
    buffer::{Buffer, Shared},
    cache::{BLOCK_SIZE, Cache, CacheShape},
    format::Format,
    kernels::Ops,
    model::{Layer, Model, Part, Precision},
    plan::{Heads, Plan},
    pool::{Pool, Team},
    step::{Memory, Step, Work},
};

/// A text to calibrate with, of several kinds: prose, dialogue, code, data, several languages.
pub const SAMPLE_TEXT: &str = include_str!("sample.txt");

/// Most tokens that are run.
const MOST_TOKENS: usize = 512;

/// A run of some text through the layers, one after the other, in the type that the model
/// computes in.
pub(super) struct Calibration {
    batch: StepBatch,
    plan: Plan,
    heads: Vec<Heads>,
    cache: Cache,
    memory: Memory,
    precision: Precision,
}

/// How much each input of a layer's matrices counts, by [`Part`].
pub(super) struct Importance([Buffer<f32>; 4]);

impl Importance {
    /// Of the inputs of one part.
    pub(super) fn of(&self, part: Part) -> &[f32] {
        &self.0[part as usize]
    }
}

impl Calibration {
    /// Lays out a run of `sample` through `model`, whose layers are not packed yet.
    pub(super) fn new(
        model: &Model,
        sample: &[u32],
        ops: &Ops,
        pool: &Pool,
    ) -> Result<Self, LoadError> {
        let config = &model.config;
        let half = model.precision.half_cache;
        let format = if half { Format::Bf16 } else { Format::F32 };
        let tokens = &sample[..sample.len().min(MOST_TOKENS).min(config.max_positions)];
        let shape = CacheShape::of(config, half);
        let num_blocks = tokens.len().div_ceil(BLOCK_SIZE);
        let spec = ModelSpec {
            vocab_size: config.vocab_size,
            max_positions: tokens.len(),
            block_size: BLOCK_SIZE,
            num_blocks,
            ..ModelSpec::default()
        };
        let batch = StepBatch {
            sequences: vec![SequenceStep {
                tokens: tokens.to_vec(),
                position: 0,
                blocks: (0..num_blocks as u32).collect(),
                logits: LogitsWanted::None,
                ..SequenceStep::default()
            }],
        };
        let plan = Plan::new(&batch, &spec, config, pool.threads())
            .map_err(|error| LoadError::InvalidConfig(format!("the sample of text: {error}")))?;
        Ok(Self {
            batch,
            plan,
            heads: Heads::of(config),
            cache: Cache::new(shape, num_blocks).map_err(no_memory)?,
            memory: Memory::new(model, format, ops, pool.threads(), shape.head_dim)
                .map_err(no_memory)?,
            precision: Precision {
                layers: format,
                keys_values: format,
                head: format,
                half_cache: half,
            },
        })
    }

    /// How the layers are to be packed for [`Self::layer`].
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Runs the next layer, which is `layer` and has the index `index`.
    pub(super) fn layer(
        &mut self,
        model: &Model,
        index: usize,
        layer: &Layer,
        ops: &Ops,
        pool: &mut Pool,
    ) -> Result<Importance, LoadError> {
        let new = |linear: usize| Buffer::new(linear).map_err(no_memory);
        let mut sums = [
            new(layer.qkv.inputs)?,
            new(layer.output.inputs)?,
            new(layer.gate_up.inputs)?,
            new(layer.down.inputs)?,
        ];
        let moments = sums.each_mut().map(|sums| Shared::new(sums));
        let step = Step::new(
            ops,
            model,
            &self.heads,
            Work {
                batch: &self.batch,
                plan: &self.plan,
                adapters: &[],
            },
            &mut self.cache,
            &mut self.memory,
        )
        .map_err(no_memory)?
        .measuring(moments);
        pool.run(|team: &Team<'_>| {
            if index == 0 {
                step.embed(team);
                team.barrier();
            }
            step.layer(team, index, layer);
            (ops.leave)();
        });
        Ok(Importance(sums))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn no_memory(error: io::Error) -> LoadError {
    LoadError::OutOfMemory(format!("there is no memory to calibrate 4 bits: {error}"))
}
