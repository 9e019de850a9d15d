//! A tiny model that learnt a few answers by heart, and is judged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use hyprstream_goldens::Tiny;
use hyprstream_training::{Around, NoObserver, Outcome, prepare};
use serde_json::{Map, Value, json};

use super::super::*;
use crate::{Args, Command};

pub(super) const NAME: &str = "answers";
/// Prompts and answers, which the adapter learns by heart.
const LEARNT: [(&str, &str); 4] = [
    ("ab=", "{\"a\":1}"),
    ("cd=", "no"),
    ("ef=", "12"),
    ("gh=", "[1]"),
];

/// A tiny model that learnt [`LEARNT`].
pub(super) struct Rig {
    folder: tempfile::TempDir,
    pub(super) job: Job,
    pub(super) prepared: Prepared,
    pub(super) values: Vec<f32>,
    pub(super) args: TrainArgs,
}

/// 64 tokens, a byte each but for `<unk>`, `<s>` and `</s>`.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789{}[]\":,.=+-*/<>()!?_;|&".chars();
    let names = special.iter().map(ToString::to_string);
    let names = names
        .chain(letters.map(String::from))
        .chain(["Ġ".to_owned()]);
    let vocab: Map<_, _> = names
        .zip(0..64)
        .map(|(name, id)| (name, id.into()))
        .collect();
    let added = special.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    })
}

pub(super) fn lines(path: &Path, records: impl IntoIterator<Item = Value>) {
    let lines: Vec<String> = records.into_iter().map(|line| line.to_string()).collect();
    fs::write(path, lines.join("\n")).unwrap();
}

impl Rig {
    /// Trained by default.
    pub(super) fn new() -> Self {
        Self::with(|_| {}, &[])
    }

    /// With another job, and with more arguments of `train`.
    pub(super) fn with(change: impl FnOnce(&mut Value), more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("model")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(
                Tiny::read("qwen2").dir().join(name),
                path("model").join(name),
            )
            .unwrap();
        }
        fs::write(path("model/tokenizer.json"), tokenizer().to_string()).unwrap();
        let learnt = LEARNT.map(|(prompt, answer)| json!({"prompt": prompt, "completion": answer}));
        lines(&path("data.jsonl"), learnt);
        let mut job = json!({
            "model": path("model"),
            "data": {"path": path("data.jsonl"), "maxLength": 32},
            "output": path("out"),
            "adapter": {"rank": 8, "alpha": 16.0},
            "training": {"steps": 150, "batch": 4, "learningRate": 0.02},
            "eval": {"path": path("data.jsonl"), "every": 1000},
        });
        change(&mut job);
        let job = Job::parse(&job.to_string()).unwrap();
        let prepared = prepare(&job, &Around::default()).unwrap();
        let parsed = [
            "hyprstream-worker",
            "train",
            "--threads",
            "1",
            "--job",
            "job.yaml",
        ];
        let Command::Train(args) = Args::parse_from(parsed.iter().chain(more)).command else {
            unreachable!("train was asked for")
        };
        let mut rig = Self {
            folder,
            job,
            prepared,
            values: Vec::new(),
            args: *args,
        };
        let mut learner = rig.learner();
        let control = Control::default();
        let outcome = rig
            .prepared
            .train(learner.as_mut(), &mut NoObserver, &control);
        let Outcome::Complete(finished) = outcome.unwrap() else {
            unreachable!("nobody ends it")
        };
        rig.prepared.publish(&finished).unwrap();
        rig.values = finished.values;
        rig
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The one that the arguments choose.
    pub(super) fn learner(&self) -> Box<dyn Learner> {
        let parameters = self.prepared.parameters.clone();
        let loaded = self
            .args
            .learner()
            .and_then(|choice| choice.load(&self.path("model"), parameters));
        loaded.unwrap().learner
    }

    pub(super) fn judging<'a>(
        &'a self,
        gates: &'a [Gate],
        control: &'a Control,
        tell: &'a dyn Fn(&str),
        adapter: &'a Path,
    ) -> Judging<'a> {
        Judging {
            job: &self.job,
            prepared: &self.prepared,
            gates,
            name: NAME,
            good: Ok(None),
            learner: self.learner(),
            values: &self.values,
            adapter,
            args: &self.args,
            control,
            tell,
        }
    }

    /// The verdicts on these gates, of which the first must be that parity is passed.
    #[track_caller]
    pub(super) fn judge(&self, gates: &[Gate]) -> Vec<Verdict> {
        let (control, adapter) = (Control::default(), self.path("out/adapter"));
        let mut all = judge(self.judging(gates, &control, &|_| {}, &adapter)).unwrap();
        assert_eq!(all.len(), gates.len() + 1);
        let parity = all.remove(0);
        assert_eq!(parity.metric, Metric::ServingParity);
        assert!(parity.passed, "{}", parity.message);
        println!("{}", parity.message);
        all
    }

    /// The first verdict on the adapter of this folder.
    pub(super) fn parity(&self, adapter: &Path) -> Verdict {
        let control = Control::default();
        let all = judge(self.judging(&[], &control, &|_| {}, adapter));
        all.unwrap().remove(0)
    }

    /// A copy of the adapter.
    pub(super) fn copy(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir(&to).unwrap();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            fs::copy(self.path("out/adapter").join(name), to.join(name)).unwrap();
        }
        to
    }
}
