//! `train` in a pod of a TrainingJob: what it makes are commits of a branch, and it goes on from
//! those wherever it is started.
//!
//! The branch is the truth, and the pod's disk a cache of it. What a pod says at its end is a
//! function of what lies on the branch, so that one which was killed after its last push says the
//! same again.

mod args;
mod board;
mod branch;
mod curve;
mod error;
mod metrics;
mod push;
mod server;
mod wait;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_contract::training::{Checkpoint, Phase, TrainingPod, exit, reason};
use hyprstream_git2db::{CommitId, Digest};
use hyprstream_models::adapter::BaseName;
use hyprstream_training::{
    Around, Event, Finished, Job, JobError, Learner, Observer, Outcome, PrepareError, Prepared,
    newest_checkpoint, prepare,
};
use tracing::{error, info, warn};

use self::{
    board::Board,
    branch::{Branch, BranchError, Done, Making, Provenance, Snapshot, Tip, of_contract},
    error::PodError,
    push::Pusher,
    wait::{Patience, Stop},
};
use super::{TrainArgs, anyhow_chain as chain, gates, learner::LearnerChoice, teller::Teller};

pub use args::PodArgs;

/// How long at most a checkpoint is pushed after a failure.
const LAST_PUSH: Duration = Duration::from_secs(30);

/// How a pod ended.
enum End {
    /// The adapter is on the branch, and merged if that was wished and earned.
    Complete(String),
    /// A signal ended it.
    Suspended(String),
}

/// Trains what the job says, pushes what the pod's file says, and leaves its last words.
pub(super) fn run(args: &TrainArgs, file: &Path) -> ExitCode {
    let board = match Board::new() {
        Ok(board) => Arc::new(board),
        Err(error) => {
            eprintln!("error: metrics: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (why, message, code) = match work(args, file, &board) {
        Ok(End::Complete(message)) => (reason::COMPLETE, message, 0),
        Ok(End::Suspended(message)) => (reason::SUSPENDED, message, exit::SUSPENDED),
        Err(error) => {
            let (reason, code) = error.verdict();
            (reason, chain(&error), code)
        }
    };
    if code == 0 || code == exit::SUSPENDED {
        info!(reason = why, message, "ends");
    } else {
        error!(reason = why, message, "the job does not get on");
    }
    let words = board.words(why, &message);
    words::leave(&args.pod.termination_log, &words);
    if args.json {
        println!("{}", words::fitting(&words, usize::MAX));
    }
    ExitCode::from(code)
}

/// What was trained, and what it is judged with.
struct Trained<'a> {
    prepared: &'a Prepared,
    learner: Box<dyn Learner>,
    finished: &'a Finished,
    /// The folder of the last known good adapter, or why it cannot be had.
    good: Result<Option<PathBuf>, String>,
}

/// What all parts of the work need.
struct Place<'a> {
    args: &'a TrainArgs,
    choice: &'a LearnerChoice,
    pod: &'a TrainingPod,
    job: &'a Job,
    board: &'a Arc<Board>,
    stop: &'a Stop,
}

fn work(args: &TrainArgs, file: &Path, board: &Arc<Board>) -> Result<End, PodError> {
    let pod = read_pod(file)?;
    let choice = args.learner()?;
    let job = Job::read(&args.job)?;
    refuse_gates(&job)?;
    let stop = Stop::default();
    server::start(&args.pod, Arc::clone(board), stop.clone())?;
    let place = Place {
        args,
        choice: &choice,
        pod: &pod,
        job: &job,
        board,
        stop: &stop,
    };
    let mut branch = Branch::open(&job.output, pod.clone(), args.pod.token_file.clone())?;
    let tip = place.patience().until(|| branch.look());
    match tip {
        Err(BranchError::Stopped) => Ok(End::Suspended("nothing was begun".to_owned())),
        Err(error) => Err(error.into()),
        Ok(Tip::Complete(commit, said)) => {
            let done = branch.done(&commit, &said)?;
            place.again(&branch, &commit, done)
        }
        Ok(tip) => place.train(branch, &tip),
    }
}

fn read_pod(path: &Path) -> Result<TrainingPod, PodError> {
    let text = fs::read_to_string(path).map_err(|source| PodError::File {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|error| PodError::Form {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

/// A pod's gates stand in its own file, by which their verdicts reach the branch and the cluster.
fn refuse_gates(job: &Job) -> Result<(), JobError> {
    if job.gates.is_empty() {
        return Ok(());
    }
    Err(JobError::Field {
        field: "gates",
        why: "with --pod they stand in the pod's file, where those of a TrainingJob's spec.gates are: \
              move them there"
            .to_owned(),
    })
}

impl Place<'_> {
    fn patience(&self) -> Patience<'_> {
        Patience {
            most: self.args.pod.registry_patience,
            stop: self.stop,
            board: self.board,
        }
    }

    /// Ends as a pod before did, whose last commit is there.
    fn again(&self, branch: &Branch, commit: &CommitId, done: Done) -> Result<End, PodError> {
        info!(%commit, "all is done already");
        let message = done.words.message.clone();
        self.board.take_words(done.words);
        self.board.output(done.output);
        self.board.phase(Phase::Publishing);
        self.merge(branch, message)
    }

    /// Trains from where the branch is, or from what lies here if that is later.
    fn train(&self, branch: Branch, tip: &Tip) -> Result<End, PodError> {
        let (pushed, began_with) = self.resume(&branch, tip)?;
        let around = Around {
            judged_by: self.gate_paths().collect(),
            control: self.stop.control.clone(),
        };
        let mut prepared = match prepare(self.job, &around) {
            Err(PrepareError::Ended) => {
                let why = "stopped while the data were read; no step was begun";
                return Ok(End::Suspended(why.to_owned()));
            }
            prepared => prepared?,
        };
        super::tell(&prepared);
        for (path, error) in &prepared.passed_over {
            let why = chain(error);
            self.board.note(
                "checkpoint",
                format!("{} is passed over: {why}", path.display()),
            );
        }
        if prepared.is_taken_on_trust() {
            self.board.note("trust", super::TRUSTED.to_owned());
        }
        prepared.set_base(self.base());
        self.board.read(&prepared.report);
        self.board.cursor(prepared.cursor());
        let found = prepared.report.digest.clone();
        if let Some(expected) = began_with.filter(|expected| *expected != found) {
            return Err(PodError::DatasetChanged { found, expected });
        }
        let loaded = self
            .choice
            .load(&self.job.model, prepared.parameters.clone())?;
        let mut learner = loaded.learner;
        let good = self.good(&branch);
        if self.stop.is_told() {
            return Ok(End::Suspended("no step was begun".to_owned()));
        }
        let from = Provenance {
            dataset_digest: found,
            parameters: self.parameters(),
            computed_by: learner.name(),
        };
        let (board, stop) = (Arc::clone(self.board), self.stop.clone());
        let pusher = Pusher::start(branch, from.clone(), board, stop, pushed);
        let pusher = pusher.map_err(|source| PodError::Setup {
            what: "the thread that pushes",
            source,
        })?;
        let mut observer = Watcher {
            teller: Teller::new(false),
            board: self.board,
            pusher: &pusher,
            folder: self.job.output.join("pushing"),
        };
        if let Some(resumed) = &prepared.resumed {
            observer.offer(resumed.step, &resumed.path);
        }
        self.board.phase(Phase::Training);
        let outcome = prepared.train(learner.as_mut(), &mut observer, &self.stop.control);
        if pusher.has_failed() {
            return Err(pusher
                .end()
                .map(drop)
                .err()
                .unwrap_or(BranchError::Stopped)
                .into());
        }
        match outcome {
            Ok(Outcome::Complete(finished)) => {
                let trained = Trained {
                    prepared: &prepared,
                    learner,
                    finished: &finished,
                    good,
                };
                self.publish(pusher, &from, trained)
            }
            Ok(Outcome::Suspended(state) | Outcome::Cancelled(state)) => {
                self.board.cursor(&state.cursor);
                Ok(self.suspend(pusher))
            }
            Err(error) => {
                // What was saved before may be of use to another start.
                let grace = self.args.pod.push_grace.min(LAST_PUSH);
                let _ = pusher.drain(Instant::now() + grace);
                Err(error.into())
            }
        }
    }

    /// The folder of the adapter that is served by the name, if the gates are measured from it, or
    /// why it cannot be had, which a gate says.
    fn good(&self, branch: &Branch) -> Result<Option<PathBuf>, String> {
        let Some(good) = &self.pod.last_known_good else {
            return Ok(None);
        };
        if good.repository != self.pod.repository {
            return Err(format!(
                "the adapter {} that is served lies in {}, and this job reads {} alone: let it write \
                 there (output.repository)",
                self.pod.adapter, good.repository, self.pod.repository
            ));
        }
        let folder = self.job.output.join("last-known-good");
        let brought = self.patience().until(|| branch.bring(good, &folder));
        self.board.clear("registry");
        brought.map(|()| Some(folder)).map_err(|error| {
            let why = chain(&error);
            warn!(commit = %good.commit, why, "the last known good adapter cannot be had");
            format!(
                "the adapter {} that is served cannot be had: {why}",
                self.pod.adapter
            )
        })
    }

    /// Sees to it that the newest checkpoint lies where the trainer looks for it. Returns the step
    /// of the one that the registry has, and the digest of the data that it was trained on.
    fn resume(
        &self,
        branch: &Branch,
        tip: &Tip,
    ) -> Result<(Option<u64>, Option<String>), PodError> {
        let folder = self.job.output.join("checkpoints");
        clear(&self.job.output.join("pushing"))?;
        let local = newest_checkpoint(&folder).map_err(hyprstream_training::PrepareError::from)?;
        let Tip::Checkpoint(commit, said) = tip else {
            return Ok((None, None));
        };
        let mut step = said.step.unwrap_or(0);
        if local.as_ref().is_none_or(|local| local.step < step) {
            // A folder of that step which is not whole would be taken for newer.
            let restored = self
                .patience()
                .until(|| branch.restore(commit, &folder, &()))?;
            step = restored.step;
            info!(step, %commit, "the checkpoint of the branch is here");
        }
        self.board.has(Checkpoint {
            step,
            commit: of_contract(commit),
        });
        let before = branch.progress(commit).unwrap_or_default();
        self.board.take_progress(before, step);
        Ok((Some(step), said.dataset_digest.clone()))
    }

    /// Judges the adapter, and commits it whatever the gates say.
    fn publish(
        &self,
        pusher: Pusher,
        from: &Provenance,
        trained: Trained<'_>,
    ) -> Result<End, PodError> {
        let Trained {
            prepared,
            learner,
            finished,
            good,
        } = trained;
        self.board.cursor(&finished.cursor);
        self.board.phase(Phase::Judging);
        let (files, digest) = prepared.publish(finished)?;
        let judged = gates::judge(gates::Judging {
            job: self.job,
            prepared,
            gates: &self.pod.gates,
            name: &self.pod.adapter,
            good: good.as_ref().map(Option::as_deref).map_err(String::as_str),
            learner,
            values: &finished.values,
            adapter: files.tensors.parent().unwrap_or(&self.job.output),
            args: self.args,
            control: &self.stop.control,
            tell: &|text| self.board.note("gates", text.to_owned()),
        });
        self.board.clear("gates");
        let Ok(verdicts) = judged else {
            return Ok(self.suspend(pusher));
        };
        let failed: Vec<&str> = verdicts
            .iter()
            .filter(|verdict| !verdict.passed)
            .map(|verdict| verdict.message.as_str())
            .collect();
        let name = &self.pod.adapter;
        let mut message = format!("the adapter {name} is that of step {}", finished.step);
        if finished.stopped_early {
            message += ", since nothing was better for long";
        }
        if !failed.is_empty() {
            message = format!("{message}; it is not published: {}", failed.join("; "));
        }
        self.board.judged(verdicts);
        self.board.phase(Phase::Publishing);
        let mut branch = pusher.end()?;
        let words = self.board.words(reason::COMPLETE, &message);
        let digest = digest.to_string();
        let making = Making {
            files: &files,
            digest: &digest,
            step: finished.step,
            words: &words,
            prepared,
        };
        let output = self
            .patience()
            .until(|| branch.finish(&making, from, &()))?;
        self.board.metrics.pushes.inc();
        info!(
            commit = output.commit.as_str(),
            path = output.path,
            digest,
            "the adapter is pushed"
        );
        self.board.output(output);
        self.merge(&branch, message)
    }

    /// Has the adapter taken up, where that is wished and the gates are passed.
    fn merge(&self, branch: &Branch, message: String) -> Result<End, PodError> {
        let words = self.board.words(reason::COMPLETE, &message);
        let passed = words.gates.iter().all(|verdict| verdict.passed);
        if let (Some(into), Some(mut output), true) = (&self.pod.merge_into, words.output, passed) {
            let merged = self
                .patience()
                .until(|| branch.merge(into, &output.commit))?;
            info!(into, commit = merged.as_str(), "the adapter is taken up");
            output.merged = Some(merged);
            self.board.output(output);
        }
        Ok(End::Complete(message))
    }

    /// Has the last checkpoint pushed, as far as there is time.
    fn suspend(&self, pusher: Pusher) -> End {
        let (branch, left) = pusher.drain(Instant::now() + self.args.pod.push_grace);
        let words = self.board.words(reason::SUSPENDED, "");
        let on = branch.as_ref().map_or("the branch", |branch| branch.name());
        let last = match &words.checkpoint {
            Some(last) => format!("the checkpoint of step {} is on {on}", last.step),
            None => format!("no checkpoint is on {on}"),
        };
        End::Suspended(match left {
            Ok(()) => format!("stopped after step {}; {last}", words.step),
            Err(why) => format!(
                "stopped after step {}, whose checkpoint could not be pushed ({why}); {last}",
                words.step
            ),
        })
    }

    /// The data of the gates, from which nothing is learnt.
    fn gate_paths(&self) -> impl Iterator<Item = PathBuf> {
        let paths = self.pod.gates.iter().filter_map(|gate| gate.path.as_ref());
        paths.map(PathBuf::from)
    }

    /// What the adapter says it was trained on.
    fn base(&self) -> BaseName {
        let url = self.pod.model.url.trim_end_matches(".git");
        let name = url.strip_prefix("https://huggingface.co/").unwrap_or(url);
        BaseName {
            name: Some(name.to_owned()),
            revision: self.pod.model.commit.as_ref().map(ToString::to_string),
        }
    }

    /// SHA-256 of the job's canonical JSON: its fields in order, without white space.
    fn parameters(&self) -> String {
        let value = serde_json::to_value(self.job).expect("it is of texts and numbers");
        Digest::of(value.to_string().as_bytes()).to_string()
    }
}

fn clear(folder: &Path) -> Result<(), PodError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            let (doing, path) = ("deleted", folder.to_owned());
            Err(BranchError::Io {
                doing,
                path,
                source,
            }
            .into())
        }
        _ => Ok(()),
    }
}

/// Tells everybody of the run, and has its checkpoints pushed.
struct Watcher<'a> {
    teller: Teller,
    board: &'a Board,
    pusher: &'a Pusher,
    folder: PathBuf,
}

impl Watcher<'_> {
    fn offer(&self, step: u64, path: &Path) {
        let progress = self.board.progress();
        let text = serde_json::to_vec(&progress).expect("it is of texts and numbers");
        let figures = self.board.figures();
        match Snapshot::take(path, &self.folder, step, figures, &text) {
            Ok(snapshot) => self.pusher.offer(snapshot),
            // A newer one is there when the trainer has deleted this one.
            Err(error) => warn!(step, error = chain(&error), "a checkpoint is passed over"),
        }
    }
}

impl Observer for Watcher<'_> {
    fn hear(&mut self, event: Event<'_>) {
        self.board.hear(&event);
        if let Event::Saved { step, path, cost } = event {
            let began = Instant::now();
            self.offer(step, path);
            // Training stands still for that, too.
            let stood_still = cost.stood_still + began.elapsed();
            let metrics = &self.board.metrics;
            metrics.stood_still.observe(stood_still.as_secs_f64());
            metrics.to_disk.observe(cost.took.as_secs_f64());
        }
        self.teller.hear(event);
    }
}
