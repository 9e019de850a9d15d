//! The model as a worker serves it, with adapters from their files.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, pin_mut, stream};
use hyprstream_contract::training::Metric;
use hyprstream_engine::{
    Adapter, EngineHandle, FinishReason, GenerationError, NoObserver, Request, SamplingParams,
    StopRules, Tokenizer,
};
use hyprstream_models::adapter::{AdapterFiles, AdapterLimits};
use hyprstream_training::{Control, Job, Sample};
use tokio::runtime::{self, Runtime};

use super::{Cancelled, Halt};
use crate::{
    ModelArgs, Quantization,
    adapters::{PackLimits, Packer},
    backend,
    train::TrainArgs,
};

/// Requests that the engine has at once: as many as run in a step, and as many that wait.
const AT_ONCE: usize = 64;
/// Room of the engine's queue.
const QUEUE: usize = 2 * AT_ONCE;
/// How often somebody looks whether the control wishes an end.
const LOOK: Duration = Duration::from_millis(100);

/// An engine as `serve` opens it, and the adapter that is judged.
pub(super) struct Served<'a> {
    runtime: Runtime,
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    packer: Arc<dyn Packer>,
    adapter: Adapter,
    control: &'a Control,
}

/// What requests run with: an adapter or none.
#[derive(Clone, Debug)]
pub(super) struct With(Option<Adapter>);

impl With {
    /// The model alone.
    pub(super) fn base() -> Self {
        Self(None)
    }

    fn request(&self) -> Request {
        let adapters = self.0.iter().map(|adapter| (adapter.clone(), 1.0));
        Request {
            adapters: adapters.collect(),
            ..Request::default()
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Without special tokens.
    pub(super) text: String,
    /// Whether it ended by itself.
    pub(super) stopped: bool,
}

/// How likely the tokens of a sample are that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Loss {
    /// Sum of negative log-likelihoods, in nats.
    pub(super) sum: f64,
    /// Tokens that count.
    pub(super) tokens: u64,
}

impl Loss {
    /// Mean over the tokens of all of `losses` that count; no number when there is none.
    pub(super) fn mean(losses: impl IntoIterator<Item = Self>) -> f64 {
        let all = losses.into_iter().fold(Self::default(), |all, one| Self {
            sum: all.sum + one.sum,
            tokens: all.tokens + one.tokens,
        });
        all.sum / all.tokens as f64
    }
}

impl<'a> Served<'a> {
    /// Opens the model of `job` where it was trained, on the device and with the kernels of `args`, in
    /// the type that serving takes by itself, and attaches the adapter in the folder.
    ///
    /// # Errors
    /// In words.
    pub(super) fn open(
        job: &Job,
        args: &TrainArgs,
        adapter: &std::path::Path,
        control: &'a Control,
    ) -> Result<Self, String> {
        let model = ModelArgs {
            model: job.model.clone(),
            device: args.device.to_string(),
            dtype: "auto".to_owned(),
            max_model_len: None,
            max_batch: AT_ONCE / 2,
            threads: args.threads,
            kv_cache_bytes: None,
            max_step_tokens: 512,
            quantization: Quantization::None,
            kernels: args.kernels,
            no_prefix_cache: false,
        };
        let files = AdapterFiles::find(adapter).map_err(|error| chain(&error))?;
        let runtime = runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| format!("there is no runtime: {error}"))?;
        let loaded = backend::load(&model, QUEUE, Arc::new(NoObserver));
        let (loaded, packer) = loaded.map_err(|failure| {
            let why = failure.chain();
            format!("the model cannot be opened as it is served: {why}")
        })?;
        let adapter = attach(&runtime, &loaded.engine, packer.as_ref(), &files)?;
        Ok(Self {
            runtime,
            engine: loaded.engine,
            tokenizer: loaded.tokenizer,
            packer,
            adapter,
            control,
        })
    }

    /// The adapter that is judged.
    pub(super) fn adapted(&self) -> With {
        With(Some(self.adapter.clone()))
    }

    /// Another adapter of the model.
    ///
    /// # Errors
    /// In words.
    pub(super) fn attach(&self, files: &AdapterFiles) -> Result<With, String> {
        let adapter = attach(&self.runtime, &self.engine, self.packer.as_ref(), files)?;
        Ok(With(Some(adapter)))
    }

    /// Text to tokens and back.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens by which the model ends an answer.
    pub(super) fn eos(&self) -> &[u32] {
        self.engine.eos()
    }

    /// Most tokens of prompt and answer together.
    pub(super) fn max_len(&self) -> usize {
        self.engine.max_model_len()
    }

    /// The type that it computes in.
    pub(super) fn dtype(&self) -> &str {
        &self.engine.spec().dtype
    }

    /// The losses of `samples`, in their order, each by itself. `progress` is told how many are
    /// done.
    pub(super) fn losses(
        &self,
        samples: &[Sample],
        with: &With,
        progress: impl FnMut(usize),
    ) -> Result<Vec<Loss>, Halt> {
        let each = samples.iter().map(|sample| async move {
            let request = Request {
                prompt: sample.tokens.clone(),
                stop: StopRules {
                    max_tokens: Some(0),
                    ..StopRules::default()
                },
                prompt_logprobs: Some(0),
                ..with.request()
            };
            let mut stream = self.engine.submit(request)?;
            let mut told = Vec::with_capacity(sample.tokens.len());
            while let Some(piece) = stream.next().await {
                told.extend(piece?.prompt_logprobs);
            }
            if told.len() != sample.tokens.len() {
                let (found, expected) = (told.len(), sample.tokens.len());
                let why = format!("{found} log-probabilities for {expected} tokens");
                return Err(GenerationError::Failed(why));
            }
            let mut loss = Loss::default();
            for (told, _) in told
                .iter()
                .zip(&sample.trained)
                .filter(|(_, counts)| **counts)
            {
                let logprob = told.as_ref().map_or(f32::NAN, |told| told.logprob);
                loss.sum -= f64::from(logprob);
                loss.tokens += 1;
            }
            Ok(loss)
        });
        self.all(stream::iter(each).buffered(AT_ONCE), progress)
    }

    /// Greedy answers to `prompts`, in their order, of at most `max_tokens` tokens, or of as many as
    /// the model has room for. `progress` is told how many are done.
    pub(super) fn answers<'p>(
        &self,
        prompts: impl Iterator<Item = &'p [u32]>,
        max_tokens: usize,
        with: &With,
        progress: impl FnMut(usize),
    ) -> Result<Vec<Answer>, Halt> {
        let each = prompts.map(|prompt| async move {
            let room = self.max_len().saturating_sub(prompt.len());
            let request = Request {
                prompt: prompt.to_vec(),
                sampling: SamplingParams {
                    temperature: 0.0,
                    ..SamplingParams::default()
                },
                stop: StopRules {
                    max_tokens: Some(max_tokens.min(room)),
                    ..StopRules::default()
                },
                ..with.request()
            };
            let mut stream = self.engine.submit(request)?;
            let mut answer = Answer::default();
            while let Some(piece) = stream.next().await {
                answer.text += &piece?.text;
            }
            answer.stopped = stream.stats().finish_reason == Some(FinishReason::Stop);
            Ok(answer)
        });
        self.all(stream::iter(each).buffered(AT_ONCE), progress)
    }

    /// All that comes, unless the control ends it: what was submitted is dropped then.
    fn all<T>(
        &self,
        results: impl Stream<Item = Result<T, GenerationError>>,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<T>, Halt> {
        self.runtime.block_on(async {
            pin_mut!(results);
            let mut all = Vec::new();
            loop {
                if self.control.is_ended() {
                    return Err(Cancelled.into());
                }
                // Only looks more often: what is not there yet is waited for again.
                let Ok(next) = tokio::time::timeout(LOOK, results.next()).await else {
                    continue;
                };
                match next {
                    None => return Ok(all),
                    Some(Ok(one)) => all.push(one),
                    Some(Err(error)) => {
                        return Err(Halt::Failed(format!("the engine fails: {error}")));
                    }
                }
                progress(all.len());
            }
        })
    }
}

/// What people are told of how far it is.
pub(super) fn how_far<'t>(
    tell: &'t dyn Fn(&str),
    metric: Metric,
    whose: &'t str,
    of: usize,
) -> impl FnMut(usize) + 't {
    move |done| tell(&format!("{metric:?} of {whose}: {done} of {of}"))
}

fn attach(
    runtime: &Runtime,
    engine: &EngineHandle,
    packer: &dyn Packer,
    files: &AdapterFiles,
) -> Result<Adapter, String> {
    let failed = |why: &dyn std::fmt::Display| {
        let path = files.tensors.display();
        format!("serving refuses the adapter {path}: {why}")
    };
    let limits = PackLimits {
        files: AdapterLimits::default(),
        bytes: u64::MAX,
    };
    let packed = packer.read(files, limits).map_err(|error| failed(&error))?;
    let attached = wait(
        runtime,
        engine.attach(*packed.digest.as_bytes(), packed.content),
    );
    attached.map_err(|error| failed(&error))
}

fn wait<F: Future>(runtime: &Runtime, future: F) -> F::Output {
    runtime.block_on(future)
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::train::anyhow_chain(error)
}
