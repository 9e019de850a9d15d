//! The engine's backend on libtorch.

use std::{any::Any, panic, sync::Arc, thread};

use hyprstream_engine::{
    AdapterId, Backend, BackendError, ModelSpec, PackedAdapter, StepBatch, StepLogits,
};
use hyprstream_models::Weights;
use tch::{Kind, TchError, Tensor};

use crate::{
    adapter::{AdapterPacker, Attached, Packed, Shape},
    cache::KvCache,
    decoder::Decoder,
    error::step_error,
    plan::Plan,
};

/// A loaded model with its cache; see [`crate::load`].
#[derive(Debug)]
pub struct TorchBackend {
    // Invariant: fields are dropped in this order, so that no tensor outlives its mapped file.
    pub(crate) model: Decoder,
    pub(crate) cache: KvCache,
    pub(crate) adapters: Attached,
    /// As the files have it.
    pub(crate) stored: Arc<Weights>,
    pub(crate) spec: ModelSpec,
    /// What adapters must be packed for.
    pub(crate) shape: Shape,
    pub(crate) num_threads: usize,
    /// The thread for which libtorch's number of threads has been set.
    pub(crate) prepared: Option<thread::ThreadId>,
    /// The last step's logits.
    pub(crate) logits: Vec<f32>,
    /// The last step's hidden states.
    pub(crate) hidden: Vec<f32>,
}

impl Backend for TorchBackend {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        let plan = Plan::new(batch, &self.spec, self.model.windows(), self.shape.device)?;
        // A few functions of tch panic where libtorch throws; that is this step's failure too.
        panic::catch_unwind(panic::AssertUnwindSafe(|| self.run(batch, &plan)))
            .unwrap_or_else(|panic| Err(BackendError::Step(message(&*panic))))?;
        StepLogits::with_hidden(
            &mut self.logits,
            self.spec.vocab_size,
            &mut self.hidden,
            self.spec.hidden_size,
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
        self.adapters.remove(id);
    }
}

impl TorchBackend {
    /// What packs adapters for this model, on any thread.
    pub fn adapter_packer(&self) -> AdapterPacker {
        AdapterPacker::new(self.shape.clone(), Arc::clone(&self.stored))
    }

    fn run(&mut self, batch: &StepBatch, plan: &Plan) -> Result<(), BackendError> {
        self.prepare_thread();
        let _no_grad = tch::no_grad_guard();
        let changes = self.adapters.changes(batch)?;
        let outputs = self
            .model
            .forward(plan, &mut self.cache, changes.as_ref())
            .map_err(|error| step_error(&error))?;
        copy(outputs.logits, &mut self.logits)
            .and_then(|()| copy(outputs.hidden, &mut self.hidden))
            .map_err(|error| step_error(&error))
    }

    /// OpenMP keeps the number of threads per calling thread.
    fn prepare_thread(&mut self) {
        let current = thread::current().id();
        if self.prepared != Some(current) {
            tch::set_num_threads(self.num_threads as i32);
            self.prepared = Some(current);
        }
    }
}

/// Copies a result of the device to `out`, which takes its size.
fn copy(result: Option<Tensor>, out: &mut Vec<f32>) -> Result<(), TchError> {
    out.clear();
    if let Some(result) = result {
        let count = result.numel();
        out.resize(count, 0.0);
        result.f_to_kind(Kind::Float)?.f_copy_data(out, count)?;
    }
    Ok(())
}

/// The first line of what a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    text.lines().next().unwrap_or_default().to_owned()
}
