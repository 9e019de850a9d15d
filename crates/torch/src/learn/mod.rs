//! Losses and gradients of adapters: [`TorchLearner`].
//!
//! What it shares with serving are the weights, the norms, the rotary embedding and attention
//! itself. The way through a layer is its own: there is no cache, segments follow one another in one
//! matrix, nothing is changed in place that a derivative needs, and one adapter of f32 is added in
//! the form that it is trained in, where serving has several, packed, in the model's type.
//!
//! Layers are computed twice: first without derivatives, which leaves only what each layer was
//! given, then from the last on with them. So the memory is that of one layer, and of one chunk of
//! logits, however deep the model is.
//!
//! # Limitations
//! On a CPU without instructions for bfloat16, libtorch was seen to form products in it on its
//! slowest path (`bf16_dot_with_fp32_arith`), where float32 is several times faster; that is what
//! [`DType::Auto`](hyprstream_models::DType::Auto) takes there.

mod dropout;
mod forward;
mod head;
mod leaves;
mod lengths;
mod load;
mod packed;

use std::{panic, thread};

use hyprstream_models::{DecoderConfig, Weights};
use hyprstream_training::{Batch, Dropout, LearnError, Learner, Parameters, Policy, Score};
use tch::{Device, Kind, TchError, Tensor};

pub use load::{LearnOptions, LearnerError, load_learner};

use self::{forward::Pass, head::Head, leaves::Leaves, packed::Packed};
use crate::{
    backend::message, decoder::Decoder, error::learn_error, gpu_memory::Loan, load::dtype_name,
};

/// A frozen model that can be trained with an adapter; see [`load_learner`].
#[derive(Debug)]
pub struct TorchLearner {
    // Invariant: fields are dropped in this order, so that no tensor outlives its mapped file.
    model: Decoder,
    stored: Weights,
    config: DecoderConfig,
    parameters: Parameters,
    device: Device,
    kind: Kind,
    recompute: bool,
    logits_at_once: usize,
    num_threads: usize,
    /// The thread for which libtorch's number of threads has been set.
    prepared: Option<thread::ThreadId>,
    /// The last, since it ends when all others are gone.
    _loan: Loan,
}

impl Learner for TorchLearner {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn name(&self) -> String {
        // Of which index a GPU is changes nothing.
        let device = match self.device {
            Device::Cpu => "cpu",
            _ => "cuda",
        };
        format!("libtorch {device} {}", dtype_name(self.kind))
    }

    fn accumulate(
        &mut self,
        batch: &Batch,
        values: &[f32],
        dropout: Dropout,
        gradient: &mut [f32],
    ) -> Result<Vec<Score>, LearnError> {
        packed::check(batch, &self.config)?;
        self.check_len("values", values.len())?;
        self.check_len("gradient", gradient.len())?;
        if !(0.0..1.0).contains(&dropout.probability) {
            let why = format!("a dropout of {} is none", dropout.probability);
            return Err(LearnError::Batch(why));
        }
        self.guarded(batch, |learner| {
            let packed = Packed::new(batch, learner.model.windows(), learner.device)?;
            let leaves = Leaves::new(learner, values, true)?;
            let pass = Pass::new(learner, &packed, &leaves, dropout)?;
            let (scores, sums) = learner.differentiate(&pass)?;
            let mut added = vec![0.0_f32; gradient.len()];
            let count = added.len();
            sums.f_copy_data(&mut added, count)?;
            let each = gradient.iter_mut().zip(added);
            each.for_each(|(sum, added)| *sum += added);
            Ok(scores)
        })
    }

    fn score(&mut self, batch: &Batch, policy: Policy<'_>) -> Result<Vec<Score>, LearnError> {
        packed::check(batch, &self.config)?;
        if let Policy::Adapter(values) = policy {
            self.check_len("values", values.len())?;
        }
        self.guarded(batch, |learner| {
            let _no_grad = tch::no_grad_guard();
            let packed = Packed::new(batch, learner.model.windows(), learner.device)?;
            let leaves = match policy {
                Policy::Base => Leaves::default(),
                Policy::Adapter(values) => Leaves::new(learner, values, false)?,
            };
            let pass = Pass::new(learner, &packed, &leaves, Dropout::NONE)?;
            let mut x = pass.embed()?;
            for layer in 0..learner.model.layers.len() {
                x = pass.layer(layer, &x)?;
            }
            Head::new(&pass).score(&x)
        })
    }
}

impl TorchLearner {
    /// Bytes of the frozen weights as they lie on disk.
    pub fn weight_bytes(&self) -> u64 {
        self.stored.bytes
    }

    fn check_len(&self, what: &str, len: usize) -> Result<(), LearnError> {
        if len == self.parameters.len {
            return Ok(());
        }
        let needed = self.parameters.len;
        let why = format!("{what} has {len} numbers, but the adapter has {needed}");
        Err(LearnError::Batch(why))
    }

    /// Runs libtorch on this thread. A few functions of tch panic where it throws.
    fn guarded<T>(
        &mut self,
        batch: &Batch,
        run: impl FnOnce(&Self) -> Result<T, TchError>,
    ) -> Result<T, LearnError> {
        let current = thread::current().id();
        if self.prepared != Some(current) {
            // OpenMP keeps the number of threads per calling thread.
            tch::set_num_threads(self.num_threads as i32);
            self.prepared = Some(current);
        }
        panic::catch_unwind(panic::AssertUnwindSafe(|| run(self)))
            .unwrap_or_else(|panic| Err(TchError::Torch(message(&*panic))))
            .map_err(|error| learn_error(&error, batch.tokens()))
    }

    /// Scores, and derivatives laid out as the adapter is, on the device.
    fn differentiate(&self, pass: &Pass<'_>) -> Result<(Vec<Score>, Tensor), TchError> {
        let mut sums = Sums::new(&self.parameters, self.device)?;
        let scores = if self.recompute {
            self.layer_by_layer(pass, &mut sums)?
        } else {
            self.at_once(pass, &mut sums)?
        };
        Ok((scores, sums.0))
    }

    fn layer_by_layer(&self, pass: &Pass<'_>, sums: &mut Sums) -> Result<Vec<Score>, TchError> {
        let leaves = pass.leaves;
        let lowest = leaves.lowest_layer();
        let count = self.model.layers.len();
        let mut given = Vec::new();
        let last = tch::no_grad(|| {
            let mut x = pass.embed()?;
            for layer in 0..count {
                if layer >= lowest {
                    given.push(x.shallow_clone());
                }
                x = pass.layer(layer, &x)?;
            }
            Ok::<_, TchError>(x)
        })?;
        let below = lowest < count || leaves.embedding_is_trained();
        let (scores, derivative) = Head::new(pass).differentiate(&last, below, sums)?;
        let Some(mut derivative) = derivative else {
            return Ok(scores);
        };
        drop(last);
        for layer in (lowest..count).rev() {
            let x = given.pop().expect("one was kept for each of these layers");
            let below = layer > lowest || leaves.embedding_is_trained();
            let x = if below { differentiable(&x)? } else { x };
            let y = pass.layer(layer, &x)?;
            let input = below.then_some(&x);
            let passed = sums.backward(&y, &derivative, leaves.of_layer(layer), input)?;
            match passed {
                Some(passed) => derivative = passed,
                None => return Ok(scores),
            }
        }
        let x = pass.embed()?;
        sums.backward(&x, &derivative, leaves.of_embedding(), None)?;
        Ok(scores)
    }

    /// The same with one graph of all layers, which takes the memory of all of them.
    fn at_once(&self, pass: &Pass<'_>, sums: &mut Sums) -> Result<Vec<Score>, TchError> {
        let mut x = pass.embed()?;
        for layer in 0..self.model.layers.len() {
            x = pass.layer(layer, &x)?;
        }
        let below = x.requires_grad();
        let (scores, derivative) = Head::new(pass).differentiate(&x, below, sums)?;
        if let Some(derivative) = derivative {
            let layers = 0..self.model.layers.len();
            let leaves = layers.flat_map(|layer| pass.leaves.of_layer(layer));
            let leaves = leaves.chain(pass.leaves.of_embedding());
            sums.backward(&x, &derivative, leaves, None)?;
        }
        Ok(scores)
    }
}

/// Where derivatives of the adapter's numbers add up, `[numbers]`, in f32.
struct Sums(Tensor);

impl Sums {
    fn new(parameters: &Parameters, device: Device) -> Result<Self, TchError> {
        let kind = (Kind::Float, device);
        Tensor::f_zeros([parameters.len as i64], kind).map(Self)
    }

    /// Adds the derivatives of `sum(y * derivative)` by `leaves`, and returns that by `input`.
    fn backward<'a>(
        &mut self,
        y: &Tensor,
        derivative: &Tensor,
        leaves: impl IntoIterator<Item = &'a leaves::Leaf>,
        input: Option<&Tensor>,
    ) -> Result<Option<Tensor>, TchError> {
        // The sum itself is not needed: the derivative by each product is 1.
        let root = y.f_mul(derivative)?;
        self.run(&root, leaves, input)
    }

    /// The same of the sum of `root`.
    fn run<'a>(
        &mut self,
        root: &Tensor,
        leaves: impl IntoIterator<Item = &'a leaves::Leaf>,
        input: Option<&Tensor>,
    ) -> Result<Option<Tensor>, TchError> {
        let leaves: Vec<_> = leaves.into_iter().collect();
        let inputs = leaves.iter().map(|leaf| &leaf.tensor);
        let inputs: Vec<&Tensor> = inputs.chain(input).collect();
        if inputs.is_empty() {
            return Ok(None);
        }
        let mut derivatives = Tensor::f_run_backward(&[root], &inputs, false, false)?;
        let of_input = input.and_then(|_| derivatives.pop());
        for (leaf, derivative) in leaves.iter().zip(derivatives) {
            let range = &leaf.range;
            let _ = self
                .0
                .f_narrow(0, range.start as i64, range.len() as i64)?
                .f_add_(&derivative.f_reshape([-1])?)?;
        }
        Ok(of_input)
    }
}

/// The same numbers as the beginning of a graph.
fn differentiable(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_detach()?.f_requires_grad_(true)
}
