//! `bench --train --checkpoints`, which runs the program as a pod does.

use std::{fs, process::Command};

use hyprstream_goldens::Tiny;
use serde_json::Value;

use crate::place::tokenizer;

#[test]
fn what_checkpoints_cost_and_how_soon_a_killed_job_goes_on_is_measured_by_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let (model, disk) = (folder.path().join("model"), folder.path().join("disk"));
    for path in [&model, &disk] {
        fs::create_dir(path).unwrap();
    }
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Tiny::read("qwen3").dir().join(name), model.join(name)).unwrap();
    }
    fs::write(model.join("tokenizer.json"), tokenizer()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"));
    #[cfg(feature = "torch")]
    command.env("LD_LIBRARY_PATH", concat!(env!("LIBTORCH"), "/lib"));
    command
        .args(["bench", "--train", "8", "--batch", "2", "--repeat", "3"])
        .args(["--rank", "4", "--threads", "1", "--json"])
        .arg("--model")
        .arg(&model)
        .arg("--checkpoints")
        .arg(&disk);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = &report["checkpoints"];
    let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("{report}"));
    assert_eq!(found["count"], 3, "{report}");
    // The adapter twice, and two means of each number.
    let least = number(&report["parameters"]) * 4.0 * 4.0;
    let bytes = number(&found["bytes"]);
    assert!(bytes > least && bytes < 2.0 * least + 1e5, "{report}");
    for of in ["stood_still_ms", "waited_ms", "on_disk_ms"] {
        let (median, max) = (number(&found[of]["median"]), number(&found[of]["max"]));
        assert!(0.0 <= median && median <= max, "{of} {report}");
    }
    let [on_disk, stood_still] = ["on_disk_ms", "stood_still_ms"].map(|of| &found[of]["median"]);
    assert!(number(on_disk) > number(stood_still), "{report}");
    // Killed after the third, or a moment later.
    assert!(number(&found["resumed_step"]) >= 3.0, "{report}");
    let next = number(&found["resumed_step"]) + 1.0;
    assert!(
        (number(&found["first_step"]) - next).abs() < 0.5,
        "{report}"
    );
    assert!(number(&found["resume_seconds"]) > 0.0, "{report}");
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0, "{told}");
}
