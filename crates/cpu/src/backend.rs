//! The engine's backend on the CPU.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hyprstream_engine::{
    AdapterId, Backend, BackendError, ModelSpec, PackedAdapter, StepBatch, StepLogits,
};
use hyprstream_models::{LoadError, Weights};

use crate::{
    adapter::{AdapterPacker, Packed, Shape},
    cache::Cache,
    kernels::{Kernels, Ops},
    model::Model,
    plan::{Heads, Plan},
    pool::{Pool, Team},
    step::{Memory, Step, Work},
};

/// A loaded model with its cache; see [`crate::load`].
pub struct CpuBackend {
    model: Model,
    /// As the files have it.
    stored: Arc<Weights>,
    heads: Vec<Heads>,
    cache: Cache,
    spec: ModelSpec,
    ops: Ops,
    pool: Pool,
    memory: Memory,
    /// What adapters must be packed for.
    shape: Shape,
    adapters: BTreeMap<AdapterId, Packed>,
}

impl CpuBackend {
    pub(crate) fn new(
        model: Model,
        stored: Arc<Weights>,
        cache: Cache,
        spec: ModelSpec,
        kernels: Kernels,
        pool: Pool,
    ) -> Result<Self, LoadError> {
        let ops = Ops::of(kernels);
        let (threads, width) = (pool.threads(), cache.shape.head_dim);
        let memory = Memory::new(&model, model.precision.layers, &ops, threads, width);
        let memory = memory.map_err(|error| {
            LoadError::OutOfMemory(format!("there is no memory for activations: {error}"))
        })?;
        Ok(Self {
            heads: Heads::of(&model.config),
            shape: Shape::of(&model, kernels),
            model,
            stored,
            cache,
            spec,
            ops,
            pool,
            memory,
            adapters: BTreeMap::new(),
        })
    }

    /// What packs adapters for this model, on any thread.
    pub fn adapter_packer(&self) -> AdapterPacker {
        AdapterPacker::new(self.shape.clone(), &self.ops, Arc::clone(&self.stored))
    }
}

impl Backend for CpuBackend {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        let (config, threads) = (&self.model.config, self.pool.threads());
        let plan = Plan::new(batch, &self.spec, config, threads)?;
        let adapters = plan.adapters.iter().map(|id| {
            let adapter = self.adapters.get(id);
            adapter.ok_or_else(|| BackendError::Step("an adapter is not attached".into()))
        });
        let adapters: Vec<_> = adapters.collect::<Result<_, _>>()?;
        let step = Step::new(
            &self.ops,
            &self.model,
            &self.heads,
            Work {
                batch,
                plan: &plan,
                adapters: &adapters,
            },
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

    fn attach(&mut self, id: AdapterId, adapter: PackedAdapter) -> Result<(), BackendError> {
        let packed: Packed = adapter.take()?;
        if packed.shape != self.shape {
            let why = "the adapter was packed for another model";
            return Err(BackendError::Step(why.into()));
        }
        self.adapters.insert(id, packed);
        Ok(())
    }

    fn detach(&mut self, id: AdapterId) {
        self.adapters.remove(&id);
    }
}
