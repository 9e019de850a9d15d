use std::sync::Arc;

use super::*;
use crate::{
    Best, Sample, Samples, SamplesWriter,
    bigram::{Bigram, VOCAB, checkpoints},
    random::{Purpose, Sequence},
};

/// Sentences in which every token is followed by the one after it, beginning anywhere.
fn samples(count: u32, unit: Unit) -> Arc<Samples> {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = SamplesWriter::create(folder.path(), unit).unwrap();
    let numbers = Sequence::new(5, Purpose::HoldOut, 9);
    let sentence = |seed: u64, step: u32| {
        let len = 3 + numbers.below(2 * seed, 9) as u32;
        let from = numbers.below(2 * seed + 1, VOCAB as u64) as u32;
        Sample {
            tokens: (0..len).map(|i| (from + i * step) % VOCAB as u32).collect(),
            trained: (0..len).map(|i| i > len / 3).collect(),
        }
    };
    for record in 0..count {
        let seed = u64::from(record);
        match unit {
            Unit::One => writer.push(record, &[sentence(seed, 1)]).unwrap(),
            Unit::Pair => writer
                .push(record, &[sentence(seed, 1), sentence(seed, 5)])
                .unwrap(),
        }
    }
    Arc::new(writer.finish().unwrap())
}

fn recipe() -> Recipe {
    Recipe {
        method: Method::Sft,
        beta: 0.1,
        length: Length::Epochs(3),
        batch: 4,
        packed: None,
        micro_batch_tokens: 64,
        learning_rate: 0.05,
        warmup: 0.1,
        decay: Decay::Cosine,
        optimiser: AdamW::default(),
        dropout: 0.0,
        seed: 3,
        max_bad_steps: 2,
        eval: EvalRecipe::default(),
        checkpoint_every: 1000,
    }
}

/// What an observer was told.
#[derive(Default)]
struct Told {
    losses: Vec<f64>,
    norms: Vec<f64>,
    evaluations: Vec<f64>,
    halved: Vec<usize>,
    skipped: Vec<u64>,
    saved: Vec<u64>,
    /// Suspends after this step.
    suspend_at: Option<u64>,
    control: Control,
}

impl Observer for Told {
    fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Step(progress) => {
                self.losses.push(progress.loss);
                self.norms.push(progress.gradient_norm);
                if self.suspend_at == Some(progress.step) {
                    self.control.suspend();
                }
            }
            Event::Skipped { step, .. } => self.skipped.push(step),
            Event::Halved { tokens, .. } => self.halved.push(tokens),
            Event::Evaluated { loss, .. } => self.evaluations.push(loss),
            Event::Saved { step, .. } => self.saved.push(step),
            Event::NotSaved { error, .. } => panic!("{error}"),
        }
    }
}

struct Case {
    recipe: Recipe,
    train: Subset,
    eval: Option<Subset>,
    learner: Bigram,
    model: &'static str,
    from: Option<&'static str>,
    told: Told,
}

impl Case {
    fn new(recipe: Recipe) -> Self {
        let unit = match recipe.method {
            Method::Sft => Unit::One,
            Method::Dpo => Unit::Pair,
        };
        Self {
            train: Subset::all(samples(30, unit)),
            eval: None,
            learner: Bigram::new(),
            model: "model",
            from: None,
            told: Told::default(),
            recipe,
        }
    }

    fn fresh(&self) -> State {
        let values = self.learner.first_values(self.recipe.seed);
        State::fresh(&self.recipe, &self.train, values)
    }

    fn run_from(
        &mut self,
        state: State,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<Outcome, TrainError> {
        let control = self.told.control.clone();
        train(Run {
            recipe: &self.recipe,
            learner: &mut self.learner,
            model: self.model,
            from: self.from,
            train: &self.train,
            eval: self.eval.as_ref(),
            state,
            reference: None,
            checkpoints,
            observer: &mut self.told,
            control: &control,
        })
    }

    fn finish(&mut self) -> Finished {
        let state = self.fresh();
        match self.run_from(state, None).unwrap() {
            Outcome::Complete(finished) => finished,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn something_is_learnt() {
    let mut case = Case::new(Recipe {
        length: Length::Epochs(30),
        ..recipe()
    });
    let finished = case.finish();
    let (first, last) = (case.told.losses[0], *case.told.losses.last().unwrap());
    assert!(first > 2.0 && last < 0.5, "from {first} to {last}");
    assert_eq!(finished.step, 30 * 8, "30 samples are 8 batches");
    assert_eq!(finished.cursor.epoch, 29);
}

#[track_caller]
fn resumes_everywhere(recipe: &Recipe, with_eval: bool) {
    let case = || {
        let mut case = Case::new(recipe.clone());
        if with_eval {
            let samples = samples(30, Unit::One);
            let (train, eval) = Subset::split(&samples, |_| 6, 1).unwrap();
            (case.train, case.eval) = (train, Some(eval));
        }
        case
    };
    let whole = case().finish();
    for at in 1..whole.cursor.step {
        let folder = tempfile::tempdir().unwrap();
        let mut before = case();
        before.told.suspend_at = Some(at);
        let store = checkpoints(folder.path(), 2);
        let state = before.fresh();
        let outcome = before.run_from(state, Some(&store)).unwrap();
        let Outcome::Suspended(state) = outcome else {
            panic!("{outcome:?}");
        };
        // As another process would: from the disk alone.
        let latest = checkpoints(folder.path(), 2).latest().unwrap();
        let (written, read) = latest.found.unwrap();
        assert_eq!((written.step, &read), (at, &state));
        let mut after = case();
        let Outcome::Complete(resumed) = after.run_from(read, None).unwrap() else {
            panic!("not complete");
        };
        assert_eq!(resumed, whole, "resumed at {at}");
    }
}

#[test]
fn a_run_resumed_at_any_step_gives_the_same_bits() {
    resumes_everywhere(&recipe(), false);
}

#[test]
fn so_does_one_with_dropout_packing_decay_and_a_best() {
    let recipe = Recipe {
        packed: Some(20),
        batch: 2,
        dropout: 0.3,
        learning_rate: 0.3,
        micro_batch_tokens: 24,
        optimiser: AdamW {
            weight_decay: 0.1,
            ..AdamW::default()
        },
        eval: EvalRecipe {
            every: Some(2),
            keep_best: true,
            ..EvalRecipe::default()
        },
        ..recipe()
    };
    resumes_everywhere(&recipe, true);
}

#[test]
fn so_does_dpo() {
    let recipe = Recipe {
        method: Method::Dpo,
        length: Length::Steps(11),
        ..recipe()
    };
    resumes_everywhere(&recipe, false);
}

/// Ends the run during every part of every evaluation in turn: nothing more is computed then, and what
/// goes on from there comes to the same bits.
#[track_caller]
fn ends_within_every_evaluation(recipe: &Recipe) {
    let unit = match recipe.method {
        Method::Sft => Unit::One,
        Method::Dpo => Unit::Pair,
    };
    let case = || {
        let mut case = Case::new(recipe.clone());
        let (train, eval) = Subset::split(&samples(12, unit), |_| 6, 1).unwrap();
        (case.train, case.eval) = (train, Some(eval));
        case
    };
    let mut undisturbed = case();
    let whole = undisturbed.finish();
    let mut left = 0;
    for at in 1..=undisturbed.learner.scored {
        let folder = tempfile::tempdir().unwrap();
        let store = checkpoints(folder.path(), 2);
        let mut before = case();
        before.learner.ends = Some((at, before.told.control.clone()));
        let state = before.fresh();
        let state = match before.run_from(state, Some(&store)).unwrap() {
            Outcome::Suspended(state) => state,
            Outcome::Complete(finished) => {
                assert_eq!((at, &finished), (undisturbed.learner.scored, &whole));
                continue;
            }
            other @ Outcome::Cancelled(_) => panic!("{other:?}"),
        };
        let latest = checkpoints(folder.path(), 2).latest().unwrap();
        assert_eq!(latest.found.unwrap().1, state);
        if state.cursor.unjudged {
            left += 1;
            // Pairs are scored by steps too, which are ended by nothing.
            if recipe.method == Method::Sft {
                assert_eq!(before.learner.scored, at);
            }
        }
        let mut after = case();
        let Outcome::Complete(resumed) = after.run_from(state, None).unwrap() else {
            panic!("not complete");
        };
        assert_eq!(resumed, whole, "ended during part {at}");
    }
    assert!(left > whole.cursor.step, "{left} evaluations were left");
}

#[test]
fn a_run_ends_within_an_evaluation_and_goes_on_to_the_same_bits() {
    ends_within_every_evaluation(&Recipe {
        micro_batch_tokens: 12,
        length: Length::Epochs(4),
        learning_rate: 0.3,
        eval: EvalRecipe {
            every: Some(1),
            keep_best: true,
            patience: Some(3),
            ..EvalRecipe::default()
        },
        ..recipe()
    });
}

#[test]
fn so_does_one_with_pairs() {
    ends_within_every_evaluation(&Recipe {
        method: Method::Dpo,
        micro_batch_tokens: 24,
        length: Length::Epochs(2),
        ..recipe()
    });
}

#[test]
fn a_batch_is_the_same_in_whatever_parts_it_is_computed() {
    let whole = Case::new(Recipe {
        micro_batch_tokens: 100_000,
        ..recipe()
    });
    let parts = Case::new(Recipe {
        micro_batch_tokens: 1,
        ..recipe()
    });
    let [whole, parts] = [whole, parts].map(|mut case| {
        case.finish();
        case.told
    });
    for (a, b) in whole.losses.iter().zip(&parts.losses) {
        assert!((a - b).abs() < 1e-5 * a, "{a} and {b}");
    }
    let (a, b) = (whole.norms[0], parts.norms[0]);
    assert!((a - b).abs() < 1e-6 * a, "{a} and {b}");
}

#[test]
fn a_packed_row_counts_as_its_samples_do_alone() {
    // One step over everything: the same samples, packed or not.
    let step = |packed| {
        let mut case = Case::new(Recipe {
            packed,
            batch: 1000,
            length: Length::Steps(1),
            warmup: 0.0,
            ..recipe()
        });
        let values = case.finish().values;
        (values, case.told.losses[0], case.told.norms[0])
    };
    let (alone, packed) = (step(None), step(Some(40)));
    assert!((alone.1 - packed.1).abs() < 1e-12 * alone.1);
    assert!((alone.2 - packed.2).abs() < 1e-6 * alone.2);
}

#[test]
fn the_first_loss_of_dpo_is_that_of_a_coin_and_falls() {
    let mut case = Case::new(Recipe {
        method: Method::Dpo,
        length: Length::Epochs(20),
        ..recipe()
    });
    case.finish();
    let losses = &case.told.losses;
    assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-12);
    assert!(losses.last().unwrap() < &0.4, "{losses:?}");
}

#[test]
fn a_step_that_is_no_number_is_skipped_and_a_few_in_a_row_end_the_run() {
    let mut case = Case::new(recipe());
    case.learner.bad = vec![3, 4];
    let finished = case.finish();
    assert_eq!(case.told.skipped, [3, 4]);
    assert_eq!((finished.cursor.skipped, finished.cursor.step), (2, 24));
    assert_eq!(finished.cursor.updates, 22);
    assert!(case.told.losses[2].is_nan(), "as it was, not a mean");
    let mut case = Case::new(recipe());
    case.learner.bad = vec![3, 4, 5];
    let state = case.fresh();
    let error = case.run_from(state, None).unwrap_err();
    assert!(matches!(
        error,
        TrainError::NotFinite {
            step: 5,
            in_a_row: 3
        }
    ));
}

#[test]
fn out_of_memory_halves_what_is_computed_at_once_and_changes_no_loss() {
    let mut plain = Case::new(recipe());
    plain.finish();
    let mut case = Case::new(recipe());
    case.learner.room = 15;
    let finished = case.finish();
    assert!(!case.told.halved.is_empty());
    assert!(finished.cursor.micro_batch_tokens <= 15);
    for (a, b) in plain.told.losses.iter().zip(&case.told.losses) {
        assert!((a - b).abs() < 1e-5 * a, "{a} and {b}");
    }
    let mut case = Case::new(recipe());
    case.learner.room = 4;
    let state = case.fresh();
    let error = case.run_from(state, None).unwrap_err();
    assert!(matches!(error, TrainError::TooLong { tokens: 5.., .. }));
}

#[test]
fn a_run_ends_early_without_a_better_loss_and_gives_the_best() {
    let (train, eval) = Subset::split(&samples(30, Unit::One), |_| 6, 1).unwrap();
    let mut case = Case::new(Recipe {
        // Far too fast, so that it gets worse.
        learning_rate: 30.0,
        length: Length::Epochs(50),
        eval: EvalRecipe {
            every: Some(1),
            patience: Some(3),
            keep_best: true,
            ..EvalRecipe::default()
        },
        ..recipe()
    });
    (case.train, case.eval) = (train, Some(eval));
    let finished = case.finish();
    assert!(finished.stopped_early);
    let Best { step, loss } = finished.cursor.best.unwrap();
    assert_eq!((finished.step, finished.cursor.step), (step, step + 3));
    let least = case
        .told
        .evaluations
        .iter()
        .copied()
        .fold(f64::MAX, f64::min);
    assert_eq!(loss.to_bits(), least.to_bits());
}

#[test]
fn a_cancelled_run_leaves_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut case = Case::new(recipe());
    case.told.control.cancel();
    let state = case.fresh();
    let store = checkpoints(folder.path(), 2);
    let outcome = case.run_from(state, Some(&store)).unwrap();
    assert!(matches!(outcome, Outcome::Cancelled(_)));
    assert_eq!(case.told.saved, [1]);
}

#[test]
fn a_state_of_other_data_or_another_recipe_is_refused() {
    let mut case = Case::new(recipe());
    let mut state = case.fresh();
    state.cursor.data = "other".to_owned();
    let error = case.run_from(state, None).unwrap_err();
    assert!(matches!(error, TrainError::OtherData { .. }), "{error}");
    let mut state = case.fresh();
    let other = Recipe {
        learning_rate: 0.06,
        ..recipe()
    };
    state.cursor.recipe = other.digest();
    let error = case.run_from(state, None).unwrap_err();
    assert!(matches!(error, TrainError::OtherRecipe), "{error}");
    let mut state = case.fresh();
    state.values.pop();
    let error = case.run_from(state, None).unwrap_err();
    assert!(matches!(error, TrainError::OtherLayout { .. }), "{error}");
}

#[test]
fn a_state_that_another_learner_computed_is_refused_by_name_and_one_of_nobody_is_taken() {
    let mut case = Case::new(recipe());
    case.told.suspend_at = Some(2);
    let fresh = case.fresh();
    assert_eq!(fresh.cursor.learner, None);
    let Outcome::Suspended(mut state) = case.run_from(fresh, None).unwrap() else {
        panic!("it was to be suspended")
    };
    assert_eq!(state.cursor.learner.as_deref(), Some("bigram float32"));
    let mut case = Case::new(recipe());
    case.learner.name = "bigram bfloat16";
    let error = case.run_from(state.clone(), None).unwrap_err();
    assert!(matches!(error, TrainError::OtherLearner { .. }));
    let told = error.to_string();
    assert!(
        told.contains("computed by bigram float32, but here bigram bfloat16"),
        "{told}"
    );
    // As checkpoints are that were written before it was recorded.
    state.cursor.learner = None;
    case.run_from(state, None).unwrap();
}

#[test]
fn a_state_of_another_model_start_or_eval_is_refused_by_name_and_an_old_one_is_taken() {
    let judged = || {
        let (train, eval) = Subset::split(&samples(30, Unit::One), |_| 6, 1).unwrap();
        let mut case = Case::new(recipe());
        (case.train, case.eval) = (train, Some(eval));
        case
    };
    let mut case = judged();
    case.told.suspend_at = Some(2);
    let fresh = case.fresh();
    let Outcome::Suspended(mut state) = case.run_from(fresh, None).unwrap() else {
        panic!("it was to be suspended")
    };
    let check = |change: fn(&mut Case), expected: &str| {
        let mut case = judged();
        change(&mut case);
        let told = case.run_from(state.clone(), None).unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
    };
    check(
        |case| case.model = "other",
        "trained on the model model, but this one is other",
    );
    check(
        |case| case.from = Some("adapter"),
        "went on from the adapter none, but adapter.from is adapter",
    );
    check(|case| case.eval = None, "but eval has none");
    judged().run_from(state.clone(), None).unwrap();
    // As checkpoints are that were written before it was recorded: with what Rust says of a recipe.
    state.cursor.inputs = None;
    let recipe = Recipe {
        checkpoint_every: 0,
        ..recipe()
    };
    state.cursor.recipe = hex::encode(Sha256::digest(format!("{recipe:?}")));
    let mut case = judged();
    case.told.suspend_at = Some(3);
    let Outcome::Suspended(resumed) = case.run_from(state.clone(), None).unwrap() else {
        panic!("it was to be suspended")
    };
    assert_eq!(resumed.cursor.recipe, recipe.digest());
    assert_eq!(resumed.cursor.inputs.unwrap().model, "model");
    state.cursor.recipe = hex::encode(Sha256::digest("another"));
    let error = judged().run_from(state, None).unwrap_err();
    assert!(matches!(error, TrainError::OtherRecipe), "{error}");
}

#[test]
fn a_recipe_has_one_text_for_all_releases() {
    let recipe = Recipe {
        packed: Some(512),
        eval: EvalRecipe {
            every: Some(20),
            patience: Some(3),
            ..EvalRecipe::default()
        },
        ..recipe()
    };
    // It stands in checkpoints: a change of it refuses all that there are.
    assert_eq!(
        recipe.text(),
        "method sft\nbeta 0.1\nepochs 3\nbatch 4\nmicro_batch_tokens 64\nlearning_rate 0.05\n\
         warmup 0.1\ndecay cosine\nadamw 0.9 0.999 0.00000001 0\nclip 1\ndropout 0\nseed 3\n\
         max_bad_steps 2\neval_min_gain 0\neval_keep_best false\npacked 512\neval_every 20\n\
         eval_patience 3"
    );
    let rarer = Recipe {
        checkpoint_every: 7,
        ..recipe.clone()
    };
    assert_eq!(rarer.digest(), recipe.digest());
    let other = Recipe {
        packed: None,
        ..recipe.clone()
    };
    assert_ne!(other.digest(), recipe.digest());
}
