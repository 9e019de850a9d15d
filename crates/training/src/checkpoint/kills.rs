//! A process that is killed at each step of a save, and what goes on from there.
//!
//! The test starts itself as a process, which says at one [`point`] after the other that it is there
//! and stands still until it is killed.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::{Checkpoints, Latest};
use crate::{
    AdamW, Control, Decay, EvalRecipe, Finished, Length, Method, NoObserver, Outcome, Recipe, Run,
    Sample, SamplesWriter, State, Subset, Unit,
    bigram::{Bigram, VOCAB, checkpoints},
    train,
};

/// The point at which the process stands still, from 1.
const POINT: &str = "TRAINING_TEST_POINT";
const FOLDER: &str = "TRAINING_TEST_FOLDER";
const KEEP: &str = "TRAINING_TEST_KEEP";
const HERE: &str = "stands still";

static POINTS: AtomicU64 = AtomicU64::new(0);

/// Where a process may be killed: stands still if it is this point's turn.
pub(super) fn point() {
    let Ok(turn) = std::env::var(POINT) else {
        return;
    };
    if turn.parse().ok() == Some(POINTS.fetch_add(1, Ordering::Relaxed) + 1) {
        println!("\n{HERE}");
        loop {
            thread::park();
        }
    }
}

fn samples() -> Subset {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = SamplesWriter::create(folder.path(), Unit::One).unwrap();
    for record in 0..6 {
        let tokens = (0..5).map(|i| (record * 3 + i) % VOCAB as u32).collect();
        let trained = vec![false, true, true, false, true];
        writer.push(record, &[Sample { tokens, trained }]).unwrap();
    }
    Subset::all(writer.finish().unwrap().into())
}

/// Goes on from what lies in `store`, to the end.
fn finish(store: Option<&Checkpoints>) -> Finished {
    let recipe = Recipe {
        method: Method::Sft,
        beta: 0.1,
        length: Length::Steps(4),
        batch: 2,
        packed: None,
        micro_batch_tokens: 64,
        learning_rate: 0.05,
        warmup: 0.0,
        decay: Decay::Cosine,
        optimiser: AdamW::default(),
        dropout: 0.2,
        seed: 3,
        max_bad_steps: 2,
        eval: EvalRecipe::default(),
        checkpoint_every: 1,
    };
    let (data, mut learner) = (samples(), Bigram::new());
    let latest = store.map_or_else(Latest::default, |store| store.latest().unwrap());
    let state = match latest.found {
        Some((_, state)) => state,
        None => State::fresh(&recipe, &data, learner.first_values(3)),
    };
    let outcome = train(Run {
        recipe: &recipe,
        learner: &mut learner,
        model: "bigram",
        from: None,
        train: &data,
        eval: None,
        state,
        reference: None,
        checkpoints: store,
        observer: &mut NoObserver,
        control: &Control::default(),
    });
    match outcome.unwrap() {
        Outcome::Complete(finished) => finished,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "it is the process that the test below kills"]
fn a_process_that_is_killed() {
    let keep = std::env::var(KEEP).unwrap().parse().unwrap();
    let folder = std::env::var(FOLDER).unwrap();
    finish(Some(&checkpoints(Path::new(&folder), keep)));
}

/// Kills a process at its point `turn`, or returns false where it comes to its end before.
fn is_killed(folder: &Path, keep: usize, turn: u64) -> bool {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::kills::a_process_that_is_killed"])
        .args(["--ignored", "--nocapture", "--test-threads", "1"])
        .env(POINT, turn.to_string())
        .env(FOLDER, folder)
        .env(KEEP, keep.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = BufReader::new(process.stdout.take().unwrap());
    let stands = told.lines().any(|line| line.unwrap() == HERE);
    if stands {
        process.kill().unwrap();
    }
    let status = process.wait().unwrap();
    assert!(stands || status.success(), "{status}");
    stands
}

/// Kills a process at every point of all saves that it makes beside what `before` leaves in its
/// folder, each time in a folder of its own, and goes on from there. `least` is a step of which, or of
/// one after it, there must always be a checkpoint.
#[track_caller]
fn check(keep: usize, before: impl Fn(&Path), least: u64, points: u64) {
    let whole = finish(None);
    let mut turn = 1;
    loop {
        let folder = tempfile::tempdir().unwrap();
        before(folder.path());
        if !is_killed(folder.path(), keep, turn) {
            break;
        }
        let store = checkpoints(folder.path(), keep);
        let found = store
            .latest()
            .unwrap()
            .found
            .map(|(written, _)| written.step);
        assert!(found >= Some(least), "{found:?} after point {turn}");
        assert_eq!(finish(Some(&store)), whole, "killed at point {turn}");
        let left = super::names(folder.path()).unwrap();
        assert_eq!(left.len(), keep, "after point {turn}: {left:?}");
        turn += 1;
    }
    assert!(turn > points, "{turn} points");
}

/// Runs to the end and takes the checkpoints after `step` away.
fn up_to(folder: &Path, step: u64) {
    let store = checkpoints(folder, 10);
    finish(Some(&store));
    for written in store.all().unwrap() {
        if written.step > step {
            fs::remove_dir_all(written.path).unwrap();
        }
    }
}

#[test]
fn a_process_killed_at_any_step_of_a_save_goes_on_to_the_same_bits() {
    // Saves of the steps 2, 3 and 4, of which two drop the oldest.
    check(2, |folder| up_to(folder, 1), 1, 30);
}

#[test]
fn so_does_one_that_replaces_a_damaged_checkpoint() {
    let damaged = |folder: &Path| {
        up_to(folder, 3);
        let cursor = checkpoints(folder, 10).path(3).join("cursor.json");
        fs::write(cursor, "{").unwrap();
    };
    check(3, damaged, 2, 20);
}

#[test]
fn the_only_checkpoint_is_not_lost_while_it_is_written_again() {
    // As a job does that is started again after its end.
    let done = |folder: &Path| {
        finish(Some(&checkpoints(folder, 1)));
    };
    check(1, done, 4, 10);
}
