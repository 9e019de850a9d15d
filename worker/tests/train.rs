//! `train` as a process, on a real model.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use hyprstream_goldens::RealModel;
use hyprstream_worker::train::{EXIT_GATES, EXIT_REFUSED, EXIT_SUSPENDED};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A job of a few short steps in a folder of its own.
struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let lines = (0..8).map(|number| {
            let messages = json!([
                {"role": "user", "content": format!("What follows {number}?")},
                {"role": "assistant", "content": format!("<{}>", number + 1)},
            ]);
            json!({ "messages": messages }).to_string()
        });
        let data = path("data.jsonl");
        fs::write(&data, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let mut job = json!({
            "model": RealModel::SmolLm2.dir(),
            "data": {"path": data, "maxLength": 64},
            "output": path("out"),
            "adapter": {"rank": 4, "dropout": 0.1},
            "training": {"steps": 8, "batch": 2, "warmup": 0.0},
            "checkpoints": {"every": 1, "keep": 2},
        });
        change(&mut job);
        fs::write(path("job.json"), job.to_string()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"));
        #[cfg(feature = "torch")]
        command.env("LD_LIBRARY_PATH", concat!(env!("LIBTORCH"), "/lib"));
        command
            .args(["train", "--json", "--threads", "2", "--job"])
            .arg(self.path("job.json"));
        command
    }

    fn run(&self) -> Output {
        self.command().output().expect("the program starts")
    }

    /// What came of it; it must succeed.
    fn complete(&self) -> Value {
        let output = self.run();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs until the checkpoint of this step is there.
    fn until(&self, step: u64) -> Child {
        let mut command = self.command();
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let running = command.spawn().expect("the program starts");
        let checkpoint = self.path(&format!("out/checkpoints/step-{step:08}"));
        let since = Instant::now();
        while !checkpoint.exists() {
            assert!(since.elapsed() < Duration::from_mins(5), "no step {step}");
            std::thread::sleep(Duration::from_millis(2));
        }
        running
    }

    fn adapter(&self) -> Vec<u8> {
        fs::read(self.path("out/adapter/adapter_model.safetensors")).unwrap()
    }
}

#[test]
fn a_job_that_is_killed_and_suspended_makes_the_same_adapter_bit_for_bit() {
    let whole = Job::new(|_| {});
    let undisturbed = whole.complete();
    assert_eq!(undisturbed["step"], 8);
    assert!(undisturbed["loss"].as_f64().unwrap() < 4.0, "{undisturbed}");
    // Asked for or not.
    let verdicts = undisturbed["gates"].as_array().unwrap();
    assert_eq!(verdicts.len(), 1, "{undisturbed}");
    assert_eq!(verdicts[0]["metric"], "ServingParity");
    assert_eq!(verdicts[0]["passed"], true);

    let job = Job::new(|_| {});
    let mut killed = job.until(2);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut suspended = job.until(4);
    kill_process(Pid::from_child(&suspended), Signal::TERM).unwrap();
    let status = suspended.wait().unwrap();
    assert_eq!(status.code(), Some(EXIT_SUSPENDED.into()));
    let resumed = job.complete();
    assert_eq!(resumed["digest"], undisturbed["digest"]);
    assert_eq!(job.adapter(), whole.adapter());
    // What is done stays done.
    assert_eq!(job.complete()["digest"], undisturbed["digest"]);
}

#[test]
fn a_job_that_cannot_be_says_which_field_is_wrong() {
    let refused = |change: fn(&mut Value), expected: &str| {
        let output = Job::new(change).run();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_REFUSED.into()), "{told}");
        assert!(told.contains(expected), "{told}");
    };
    refused(|job| job["adapter"]["rank"] = json!(0), "adapter.rank");
    refused(|job| job["adapter"]["ranks"] = json!(4), "ranks");
    refused(
        |job| job["data"]["path"] = json!("/nonexistent.jsonl"),
        "/nonexistent.jsonl",
    );
    refused(
        |job| job["model"] = json!(Path::new("/nonexistent")),
        "/nonexistent",
    );
    refused(|job| job["adapter"]["targets"] = json!(["qkv"]), "q_proj");
    refused(
        |job| job["gates"] = json!([{"metric": "exactMatch", "min": 1}]),
        "set its path, or eval",
    );
}

#[test]
fn gates_are_told_and_a_failed_one_is_an_exit_code_of_its_own() {
    let gates = |min: f64| {
        move |job: &mut Value| {
            job["eval"] = json!({"records": 2, "every": 1000});
            job["gates"] = json!([
                {"metric": "evalLoss", "max": 0, "baseline": "base"},
                {"metric": "stopRate", "min": min, "maxTokens": 2},
            ]);
        }
    };
    let passed = Job::new(gates(0.0)).complete();
    let verdicts = passed["gates"].as_array().unwrap();
    let metrics: Vec<_> = verdicts.iter().map(|verdict| &verdict["metric"]).collect();
    assert_eq!(metrics, ["ServingParity", "EvalLoss", "StopRate"]);
    for verdict in verdicts {
        assert_eq!(verdict["passed"], true, "{verdict}");
    }

    let job = Job::new(gates(1.1));
    let output = job.run();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_GATES.into()), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["gates"][2]["passed"], false, "{report}");
    assert_eq!(report["digest"], passed["digest"]);
    assert!(!job.adapter().is_empty());
}
