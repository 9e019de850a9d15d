//! From a job to everything that its run needs, but for the learner.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyprstream_engine::{FilesError, ModelFiles};
use hyprstream_models::{
    Checkpoint, DecoderConfig, LoadError, Weights,
    adapter::{Adapter, AdapterDigest, AdapterError, AdapterFiles, AdapterLimits, BaseName},
};
use sha2::{Digest as _, Sha256};

use crate::{
    checkpoint::{CheckpointError, Checkpoints, Written},
    data::{self, DataError, Report, Source},
    job::{EvalSpec, Job, JobError, Loss, Method},
    layout::{self, LayoutError, Lora},
    learner::{Learner, Parameters},
    render::{Renderer, RendererError},
    samples::{Samples, Subset},
    trainer::{
        Control, Cursor, EvalRecipe, Finished, Length, Observer, Outcome, Recipe, Run, State,
        TrainError, train,
    },
};

/// What a job begins beside.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Data that its adapter is judged by and that the job itself does not name, as those of gates
    /// that stand elsewhere: files, folders or patterns, from which nothing is learnt.
    pub judged_by: Vec<PathBuf>,
    /// Ends the reading of data from another thread.
    pub control: Control,
}

/// A job whose model and data were read.
#[derive(Debug)]
pub struct Prepared {
    /// The model, for whoever makes the learner.
    pub config: DecoderConfig,
    /// The adapter's layout, likewise.
    pub parameters: Parameters,
    /// How the run goes.
    pub recipe: Recipe,
    /// What is learnt from.
    pub train: Subset,
    /// What it is judged by.
    pub eval: Option<Subset>,
    /// What was seen of the data.
    pub report: Report,
    /// What was seen of the data it is judged by, if that is of its own.
    pub eval_report: Option<Report>,
    /// The checkpoint that the run goes on from.
    pub resumed: Option<Written>,
    /// Newer checkpoints that are not whole.
    pub passed_over: Vec<(PathBuf, CheckpointError)>,
    state: State,
    reference: Option<Vec<f32>>,
    checkpoints: Checkpoints,
    base: BaseName,
    model: PathBuf,
    /// What identifies it.
    model_digest: String,
    /// What identifies the adapter that it goes on from.
    from_digest: Option<String>,
    output: PathBuf,
}

/// A job that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A field does not fit the model or the data.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The output folder cannot be made.
    #[error("the folder {} cannot be made", path.display())]
    Output {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The model cannot be read.
    #[error("the model cannot be read")]
    Model(#[from] LoadError),
    /// Its tokenizer or chat template cannot be used.
    #[error("the model's tokenizer or template cannot be used")]
    Files(#[from] FilesError),
    /// The adapter does not fit the model.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The adapter to go on from cannot be read.
    #[error("adapter.from: the adapter cannot be read")]
    From(#[source] AdapterError),
    /// The chat template needs or knows something else.
    #[error(transparent)]
    Renderer(#[from] RendererError),
    /// The data cannot be learnt from.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Somebody wished an end before the run could begin.
    #[error("ended before the data were read")]
    Ended,
    /// The data it is judged by cannot be used.
    #[error("eval.path: the data cannot be used")]
    Eval(#[source] DataError),
    /// Checkpoints cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A finished adapter that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The folder cannot be made.
    #[error("the folder {} cannot be made", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written, or what was written is refused by what serves.
    #[error("the adapter cannot be written and read back")]
    Adapter(#[source] AdapterError),
    /// The model, which it is checked with, cannot be read.
    #[error("the model cannot be read")]
    Model(#[source] LoadError),
    /// What was read back is another adapter.
    #[error("the adapter that was written is {found}, not {expected}: the disk changed it")]
    Changed {
        /// What lies on disk.
        found: AdapterDigest,
        /// What was trained.
        expected: AdapterDigest,
    },
}

/// Reads the model and the data of a job, and finds where its run begins: at its last checkpoint
/// that is whole, or at the beginning. A folder or pattern of data leaves out the files that the job
/// names for eval and gates.
///
/// # Errors
/// [`PrepareError`], with the field or the record that is wrong.
pub fn prepare(job: &Job, around: &Around) -> Result<Prepared, PrepareError> {
    job.check()?;
    make(&job.output).map_err(|source| PrepareError::Output {
        path: job.output.clone(),
        source,
    })?;
    let (config, _) = DecoderConfig::read(&job.model)?;
    if job.data.max_length > config.max_positions {
        let most = config.max_positions;
        let why = format!("the model has {most} positions: set it to {most} or less");
        return Err(JobError::field("data.maxLength", why).into());
    }
    let files = ModelFiles::load(&job.model)?;
    let recipe = recipe(job);
    let model_digest = model_digest(&job.model)?;
    let Start {
        parameters,
        values,
        digest: from_digest,
    } = adapter(job, &config)?;
    let judged_by = judged_by(job, around);
    let control = &around.control;
    let (samples, report) = samples(job, &config, &files, &job.data.path, &judged_by, control)?;
    let samples = Arc::new(samples);
    let (train, eval, eval_report) = match &job.eval {
        None => (Subset::all(samples), None, None),
        Some(EvalSpec {
            path: Some(path), ..
        }) => {
            let (held, report) =
                self::samples(job, &config, &files, path, learnt_from(job), control).map_err(
                    |e| match e {
                        PrepareError::Data(error) => PrepareError::Eval(error),
                        other => other,
                    },
                )?;
            let held = Subset::all(Arc::new(held));
            (Subset::all(samples), Some(held), Some(report))
        }
        Some(eval) => {
            let (train, held) = split(eval, &samples, job.seed)?;
            (train, Some(held), None)
        }
    };
    let base = BaseName {
        name: job
            .model
            .file_name()
            .map(|name| name.to_string_lossy().into_owned()),
        revision: None,
    };
    let checkpoints = Checkpoints::open(
        &job.output.join("checkpoints"),
        job.checkpoints.keep,
        config.clone(),
        parameters.clone(),
        base.clone(),
    )?;
    let latest = checkpoints.latest()?;
    let reference = job.adapter.from.is_some().then(|| values.clone());
    let (resumed, state) = match latest.found {
        Some((written, state)) => (Some(written), state),
        None => (None, State::fresh(&recipe, &train, values)),
    };
    Ok(Prepared {
        config,
        parameters,
        recipe,
        train,
        eval,
        report,
        eval_report,
        resumed,
        passed_over: latest.passed_over,
        state,
        reference,
        checkpoints,
        base,
        model: job.model.clone(),
        model_digest,
        from_digest,
        output: job.output.clone(),
    })
}

impl Prepared {
    /// Trains with a learner that has this model and these parameters.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn train(
        &self,
        learner: &mut dyn Learner,
        observer: &mut dyn Observer,
        control: &Control,
    ) -> Result<Outcome, TrainError> {
        train(Run {
            recipe: &self.recipe,
            learner,
            model: &self.model_digest,
            from: self.from_digest.as_deref(),
            train: &self.train,
            eval: self.eval.as_ref(),
            state: self.state.clone(),
            reference: self.reference.as_deref(),
            checkpoints: Some(&self.checkpoints),
            observer,
            control,
        })
    }

    /// Writes the finished adapter into `adapter/` of the output folder as PEFT has it, reads it
    /// back as serving does, and returns its files and its identity.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(
        &self,
        finished: &Finished,
    ) -> Result<(AdapterFiles, AdapterDigest), PublishError> {
        let folder = self.output.join("adapter");
        make(&folder).map_err(|source| PublishError::Folder {
            path: folder.clone(),
            source,
        })?;
        let files = AdapterFiles {
            tensors: folder.join("adapter_model.safetensors"),
            config: folder.join("adapter_config.json"),
        };
        let base = self.base.clone();
        let adapter = layout::adapter(&self.parameters, &finished.values, &self.config, base);
        adapter
            .write(&files, &self.config)
            .map_err(PublishError::Adapter)?;
        let (found, expected) = (self.digest(&files)?, adapter.digest());
        if found != expected {
            return Err(PublishError::Changed { found, expected });
        }
        Ok((files, found))
    }

    /// The identity of the adapter in these files, read as serving does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn digest(&self, files: &AdapterFiles) -> Result<AdapterDigest, PublishError> {
        let weights = weights(&self.config, &self.model).map_err(PublishError::Model)?;
        let limits = AdapterLimits {
            max_rank: usize::MAX,
            max_bytes: u64::MAX,
        };
        let read = Adapter::read(files, &self.config, &weights, limits);
        Ok(read.map_err(PublishError::Adapter)?.digest())
    }

    /// Whether the checkpoint that the run goes on from is too old to say of which model, adapter to
    /// go on from and eval data it is, so that those are taken for the ones of before.
    #[must_use]
    pub fn is_taken_on_trust(&self) -> bool {
        self.resumed.is_some() && self.state.cursor.inputs.is_none()
    }

    /// Where the run begins.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.state.cursor
    }

    /// Names the model that the finished adapter says it was trained on; without this, its folder.
    pub fn set_base(&mut self, base: BaseName) {
        self.base = base;
    }
}

/// The samples of other data than the job's, in one of its forms: rendered for its model by its rules,
/// but that these tokens count. Records that are bad are counted in the report, and refuse nothing.
/// A folder or pattern leaves out the file that the job learns from.
///
/// # Errors
/// [`PrepareError`]: also when no sample is left, or `control` ends it.
pub fn samples_at(
    job: &Job,
    path: &Path,
    method: Method,
    loss: Loss,
    control: &Control,
) -> Result<(Subset, Report), PrepareError> {
    let (config, _) = DecoderConfig::read(&job.model)?;
    let files = ModelFiles::load(&job.model)?;
    let mut job = job.clone();
    job.method = method;
    job.data.loss = loss;
    job.data.max_bad = 1.0;
    let apart = learnt_from(&job);
    let (samples, report) = samples(&job, &config, &files, path, apart, control)?;
    Ok((Subset::all(Arc::new(samples)), report))
}

/// The numbers of a job.
fn recipe(job: &Job) -> Recipe {
    let training = &job.training;
    let eval = job.eval.as_ref();
    Recipe {
        method: job.method,
        beta: job.beta(),
        length: match training.steps {
            Some(steps) => Length::Steps(steps),
            None => Length::Epochs(job.epochs()),
        },
        batch: training.batch,
        packed: job.data.packing.then_some(job.data.max_length),
        micro_batch_tokens: job.micro_batch_tokens(),
        learning_rate: job.learning_rate(),
        warmup: training.warmup,
        decay: training.decay,
        optimiser: training.optimiser,
        dropout: job.adapter.dropout,
        seed: job.seed,
        max_bad_steps: training.max_bad_steps,
        eval: eval.map_or_else(EvalRecipe::default, |eval| EvalRecipe {
            every: eval.every,
            patience: eval.patience,
            min_gain: eval.min_gain,
            keep_best: eval.keep_best,
        }),
        checkpoint_every: job.checkpoints.every,
    }
}

/// What identifies a model: SHA-256 of its configuration and of [`Checkpoint::fingerprint`], in
/// hexadecimal. Its tokenizer and template stand in the digest of the samples.
fn model_digest(model: &Path) -> Result<String, LoadError> {
    let path = model.join("config.json");
    let mut hash = Sha256::new();
    let config = fs::read(&path);
    hash.update(config.map_err(|source| LoadError::Read { path, source })?);
    hash.update(Checkpoint::open(model)?.fingerprint());
    Ok(hex::encode(hash.finalize()))
}

/// What a run begins with.
struct Start {
    parameters: Parameters,
    values: Vec<f32>,
    /// Of the adapter that it goes on from.
    digest: Option<String>,
}

/// Layout and first values of the adapter.
fn adapter(job: &Job, config: &DecoderConfig) -> Result<Start, PrepareError> {
    let spec = &job.adapter;
    if let Some(from) = &spec.from {
        let files = AdapterFiles::find(from).map_err(PrepareError::From)?;
        let weights = weights(config, &job.model)?;
        let adapter = Adapter::read(&files, config, &weights, AdapterLimits::default());
        let adapter = adapter.map_err(PrepareError::From)?;
        let (parameters, values) = layout::of_adapter(&adapter, config)?;
        return Ok(Start {
            parameters,
            values,
            digest: Some(adapter.digest().to_string()),
        });
    }
    let lora = Lora {
        rank: job.rank(),
        alpha: job.alpha(),
        rank_stabilized: spec.rs_lora.unwrap_or(false),
        dora: spec.dora.unwrap_or(false),
        targets: spec.targets.clone().unwrap_or_default(),
    };
    let parameters = layout::parameters(config, &lora)?;
    let weights = lora.dora.then(|| weights(config, &job.model)).transpose()?;
    let values = layout::first_values(&parameters, job.seed, |site| {
        let weights = weights.as_ref().expect("only DoRA asks for lengths");
        site.lengths(weights)
    });
    Ok(Start {
        parameters,
        values,
        digest: None,
    })
}

/// All data that the adapter is judged by.
fn judged_by(job: &Job, around: &Around) -> Vec<PathBuf> {
    let eval = job.eval.iter().filter_map(|eval| eval.path.clone());
    let gates = job.gates.iter().filter_map(|gate| gate.path.clone());
    let others = around.judged_by.iter().cloned();
    eval.chain(gates).chain(others).collect()
}

/// What judges leave out of folders and patterns of their own: the file that the job names. Of two
/// folders, what is learnt from gives way.
fn learnt_from(job: &Job) -> &[PathBuf] {
    let path = &job.data.path;
    let is_one = path.is_file();
    if is_one {
        std::slice::from_ref(path)
    } else {
        &[]
    }
}

fn weights(config: &DecoderConfig, model: &Path) -> Result<Weights, LoadError> {
    Weights::take(config, Checkpoint::open(model)?)
}

fn samples(
    job: &Job,
    config: &DecoderConfig,
    files: &ModelFiles,
    path: &Path,
    apart: &[PathBuf],
    control: &Control,
) -> Result<(Samples, Report), PrepareError> {
    let data = &job.data;
    let renderer = Renderer::new(
        files,
        config.vocab_size,
        data.loss,
        data.max_length,
        &data.template_variables,
        data.date.as_deref(),
    )?;
    let source = Source {
        path,
        apart,
        method: job.method,
        max_bad: data.max_bad,
        scratch: &job.output,
        control,
    };
    data::read(source, &renderer).map_err(|error| match error {
        DataError::Ended => PrepareError::Ended,
        error => error.into(),
    })
}

fn split(
    eval: &EvalSpec,
    samples: &Arc<Samples>,
    seed: u64,
) -> Result<(Subset, Subset), PrepareError> {
    let field = if eval.records.is_some() {
        "eval.records"
    } else {
        "eval.fraction"
    };
    let held_back = |records: usize| {
        let part = eval
            .fraction
            .map(|part| (part * records as f64).ceil() as usize);
        eval.records.or(part).unwrap_or(0)
    };
    let split = Subset::split(samples, held_back, seed);
    split.map_err(|records| {
        let why = format!("nothing would be left of {records} records: set it lower");
        JobError::field(field, why).into()
    })
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}
