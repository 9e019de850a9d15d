//! Which learner trains, and what the gates are measured with then.

use clap::Parser as _;
#[cfg(feature = "torch")]
use hyprstream_training::{Around, NoObserver, TrainError, prepare};
#[cfg(feature = "torch")]
use serde_json::json;

#[cfg(feature = "torch")]
use super::{Control, Gate, Job, Metric, Rig, gate};
use crate::{Args, Command, train::learner::LearnerError};

fn chosen(more: &[&str]) -> Result<(), LearnerError> {
    let args = ["hyprstream-worker", "train", "--job", "job.yaml"];
    let Command::Train(args) = Args::parse_from(args.iter().chain(more)).command else {
        unreachable!("train was asked for")
    };
    args.learner().map(drop)
}

#[test]
fn a_learner_that_is_not_here_is_refused_with_where_it_is() {
    assert!(chosen(&["--device", "cpu"]).is_ok());
    assert!(chosen(&["--device", "cpu", "--kernels", "portable"]).is_ok());
    let why = chosen(&["--device", "cuda", "--kernels", "avx2"]).unwrap_err();
    assert!(why.to_string().contains("--kernels avx2"), "{why}");
    for (more, asked) in [
        (["--device", "cuda:1"], "--device cuda:1"),
        (["--kernels", "aten"], "--kernels aten"),
    ] {
        let chosen = chosen(&more);
        if cfg!(feature = "torch") {
            assert!(chosen.is_ok(), "{more:?}");
            continue;
        }
        let why = chosen.unwrap_err().to_string();
        assert!(why.contains(asked) && why.contains("worker-cuda"), "{why}");
    }
}

#[cfg(feature = "torch")]
const ATEN: [&str; 4] = ["--device", "cpu", "--kernels", "aten"];

#[cfg(feature = "torch")]
#[test]
fn libtorch_trains_what_the_cpus_learner_refuses_and_judges_it_with_itself() {
    let everything = json!({
        "rank": 8, "alpha": 16.0, "dora": true,
        "targets": ["q_proj", "v_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    });
    let mut rig = Rig::with(|job| job["adapter"] = everything.clone(), &ATEN);
    assert_eq!(rig.learner().name(), "libtorch cpu float32");
    // Parity, of the engine's libtorch with the learner's, is asked for first.
    let verdict = rig
        .judge(&[Gate {
            min: Some(1.0),
            ..gate(Metric::ExactMatch)
        }])
        .remove(0);
    assert!(verdict.passed, "{}", verdict.message);

    // What it goes on from is such an adapter too.
    let job = json!({
        "model": rig.path("model"),
        "data": {"path": rig.path("data.jsonl"), "maxLength": 32},
        "output": rig.path("more"),
        "adapter": {"from": rig.path("out/adapter")},
        "training": {"steps": 2, "batch": 4},
    });
    rig.prepared = prepare(&Job::parse(&job.to_string()).unwrap(), &Around::default()).unwrap();
    let control = Control::default();
    let mut learner = rig.learner();
    let outcome = rig
        .prepared
        .train(learner.as_mut(), &mut NoObserver, &control);
    outcome.unwrap();
    rig.args.kernels = crate::Kernels::Auto;
    let choice = rig.args.learner().unwrap();
    let refused = choice.load(&rig.path("model"), rig.prepared.parameters.clone());
    let Err(refused @ LearnerError::Job(_)) = refused.map(drop) else {
        unreachable!("the CPU's learner has no DoRA")
    };
    let why = crate::train::anyhow_chain(&refused);
    assert!(why.contains("only libtorch trains"), "{why}");
}

#[cfg(feature = "torch")]
#[test]
fn what_one_learner_began_no_other_goes_on_with() {
    let mut rig = Rig::with(|_| {}, &ATEN);
    rig.prepared = prepare(&rig.job, &Around::default()).unwrap();
    assert!(rig.prepared.resumed.is_some());
    rig.args.kernels = crate::Kernels::Auto;
    let (mut learner, control) = (rig.learner(), Control::default());
    let outcome = rig
        .prepared
        .train(learner.as_mut(), &mut NoObserver, &control);
    let error = outcome.unwrap_err();
    assert!(matches!(error, TrainError::OtherLearner { .. }), "{error}");
    let why = error.to_string();
    let expected = "computed by libtorch cpu float32, but here cpu bfloat16 computes";
    assert!(why.contains(expected), "{why}");
}
