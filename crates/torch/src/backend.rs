//! The engine's backend on libtorch.

use std::{any::Any, panic, sync::Arc, thread};

use hyprstream_engine::{Backend, BackendError, ModelSpec, StepBatch, StepLogits};
use hyprstream_models::MappedFile;
use tch::{Device, Kind, TchError, Tensor};

use crate::{cache::KvCache, decoder::Decoder, error::step_error, plan::Plan};

/// A loaded model with its cache; see [`crate::load`].
#[derive(Debug)]
pub struct TorchBackend {
    // Invariant: fields are dropped in this order, so that no tensor outlives its mapped file.
    pub(crate) model: Decoder,
    pub(crate) cache: KvCache,
    #[expect(dead_code, reason = "the weights lie in them")]
    pub(crate) files: Vec<Arc<MappedFile>>,
    pub(crate) spec: ModelSpec,
    pub(crate) device: Device,
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
        let plan = Plan::new(batch, &self.spec, self.model.windows(), self.device)?;
        // A few functions of tch panic where libtorch throws; that is this step's failure too.
        panic::catch_unwind(panic::AssertUnwindSafe(|| self.run(&plan)))
            .unwrap_or_else(|panic| Err(BackendError::Step(message(&*panic))))?;
        StepLogits::with_hidden(
            &mut self.logits,
            self.spec.vocab_size,
            &mut self.hidden,
            self.spec.hidden_size,
        )
    }
}

impl TorchBackend {
    fn run(&mut self, plan: &Plan) -> Result<(), BackendError> {
        self.prepare_thread();
        let _no_grad = tch::no_grad_guard();
        self.compute(plan).map_err(|error| step_error(&error))
    }

    fn compute(&mut self, plan: &Plan) -> Result<(), TchError> {
        let outputs = self.model.forward(plan, &mut self.cache)?;
        copy(outputs.logits, &mut self.logits)?;
        copy(outputs.hidden, &mut self.hidden)
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

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    text.lines().next().unwrap_or_default().to_owned()
}
