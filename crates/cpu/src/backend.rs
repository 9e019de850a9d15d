//! The engine's backend on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hyprstream_engine::{Backend, BackendError, ModelSpec, StepBatch, StepLogits};
use hyprstream_models::LoadError;

use crate::{
    cache::Cache,
    kernels::Ops,
    model::Model,
    plan::{Heads, Plan},
    pool::{Pool, Team},
    step::{Memory, Step},
};

/// A loaded model with its cache; see [`crate::load`].
pub struct CpuBackend {
    model: Model,
    heads: Vec<Heads>,
    cache: Cache,
    spec: ModelSpec,
    ops: Ops,
    pool: Pool,
    memory: Memory,
}

impl CpuBackend {
    pub(crate) fn new(
        model: Model,
        cache: Cache,
        spec: ModelSpec,
        ops: Ops,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        let (threads, width) = (pool.threads(), cache.shape.head_dim);
        let memory = Memory::new(&model, model.precision.layers, &ops, threads, width);
        let memory = memory.map_err(|error| {
            LoadError::OutOfMemory(format!("there is no memory for activations: {error}"))
        })?;
        Ok(Self {
            heads: Heads::of(&model.config),
            model,
            cache,
            spec,
            ops,
            pool,
            memory,
        })
    }
}

impl Backend for CpuBackend {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        let (config, threads) = (&self.model.config, self.pool.threads());
        let plan = Plan::new(batch, &self.spec, config, threads)?;
        let step = Step::new(
            &self.ops,
            &self.model,
            &self.heads,
            batch,
            &plan,
            &mut self.cache,
            &mut self.memory,
        )
        .map_err(|error| BackendError::Step(format!("no memory for the step: {error}")))?;
        let (pool, leave) = (&mut self.pool, self.ops.leave);
        let work = |team: &Team<'_>| {
            step.run(team);
            leave();
        };
        catch_unwind(AssertUnwindSafe(|| pool.run(work)))
            .map_err(|_| BackendError::Step("a kernel panicked".into()))?;
        let rows = plan.logits.len() * config.vocab_size;
        let hidden = plan.hidden.len() * config.hidden_size;
        StepLogits::with_hidden(
            &mut self.memory.logits[..rows],
            config.vocab_size,
            &mut self.memory.hidden[..hidden],
            config.hidden_size,
        )
    }
}
