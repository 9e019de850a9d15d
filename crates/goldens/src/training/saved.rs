//! An adapter that the trainer made and saved, and what the trainer computes with it.

use std::{fs, path::Path};

use hyprstream_engine::{AdapterId, Backend, PackedAdapter};
use hyprstream_models::adapter::{Adapter, AdapterFiles};
use hyprstream_training::{
    Around, Batch, Control, Job, Learner, NoObserver, Outcome, Parameters, Policy, Segment, prepare,
};
use serde_json::{Value, json};

use super::SAVED_TOLERANCE;
use crate::{Adapters, Tiny, Way, logits, logits_with};

/// What every learner trains: all linear maps, by default.
pub const PLAIN: &str = r#"{"rank": 4, "alpha": 8, "rsLora": true}"#;
/// What only libtorch's does: DoRA, and embedding and head.
pub const EVERYTHING: &str = r#"{"rank": 4, "alpha": 8, "dora": true, "targets": ["q_proj", "v_proj",
    "o_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]}"#;

const VOCABULARY: u32 = 64;
/// Beginnings whose next tokens are asked for: of what is learnt, and one of nothing.
const BEGINNINGS: [&[u32]; 4] = [
    &[3],
    &[3, 14, 25, 36],
    &[6, 17, 28, 39, 50, 61, 8],
    &[9, 9, 40],
];

/// A small job, done: data to tokens, the loop, checkpoints and the files are the trainer's own.
pub struct Saved {
    name: String,
    model: Adapters,
    dir: std::path::PathBuf,
    files: AdapterFiles,
    learner: Box<dyn Learner>,
    values: Vec<f32>,
}

impl Saved {
    /// Trains the tiny model `mistral` in `folder`, with the job's field `adapter`, one of [`PLAIN`] and
    /// [`EVERYTHING`], and the learner that `load` makes for the model's folder, in f32.
    pub fn train(
        folder: &Path,
        adapter: &str,
        load: impl FnOnce(&Path, Parameters) -> Box<dyn Learner>,
    ) -> Self {
        let model = "mistral";
        let adapter: Value = serde_json::from_str(adapter).unwrap();
        let dir = folder.join("model");
        fs::create_dir_all(&dir).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(Tiny::read(model).dir().join(name), dir.join(name)).unwrap();
        }
        fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let records = (0..8).map(|first| {
            let tokens: Vec<u32> = (0..12)
                .map(|at| (3 + first + 11 * at) % VOCABULARY)
                .collect();
            json!({ "input_ids": tokens }).to_string()
        });
        let data = folder.join("data.jsonl");
        fs::write(&data, records.collect::<Vec<_>>().join("\n")).unwrap();
        let job = json!({
            "model": dir,
            "data": {"path": data, "maxLength": 32},
            "output": folder.join("out"),
            "adapter": adapter,
            "training": {"steps": 40, "batch": 4, "learningRate": 0.01},
        });
        let prepared = prepare(&Job::parse(&job.to_string()).unwrap(), &Around::default()).unwrap();
        let mut learner = load(&dir, prepared.parameters.clone());
        let control = Control::default();
        let outcome = prepared.train(learner.as_mut(), &mut NoObserver, &control);
        let Outcome::Complete(finished) = outcome.unwrap() else {
            unreachable!("nobody ends it")
        };
        let (files, _) = prepared.publish(&finished).unwrap();
        Self {
            name: format!("{model} by {}", learner.name()),
            model: Adapters::read(model),
            dir,
            files,
            learner,
            values: finished.values,
        }
    }

    /// The model's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The adapter as it is read from its files.
    #[track_caller]
    pub fn adapter(&self) -> Adapter {
        self.model.load(&self.files)
    }

    /// A backend with these files computes what the trainer did: each logarithm of a probability
    /// within [`SAVED_TOLERANCE`], and the model without them does not. Returns the largest
    /// difference.
    #[track_caller]
    pub fn check(&mut self, backend: &mut dyn Backend, packed: PackedAdapter) -> f64 {
        let id = AdapterId::new(7);
        backend.attach(id, packed).unwrap();
        let (mut most, mut without): (f64, f64) = (0.0, 0.0);
        for (tokens, trained) in BEGINNINGS.into_iter().zip(self.log_probabilities()) {
            let far = |rows: Vec<Vec<f32>>| {
                let served = log_softmax(rows.last().unwrap());
                let pairs = served.iter().zip(&trained);
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            };
            let adapted = logits_with(backend, tokens, Way::Whole, &[(id, 1.0)]);
            most = most.max(far(adapted));
            without = without.max(far(logits(backend, tokens, Way::Whole)));
        }
        let name = &self.name;
        assert!(most < SAVED_TOLERANCE, "{name}: off by {most}");
        assert!(without > 1.0, "{name}: the adapter changes but {without}");
        most
    }

    /// Writes what `make.py trained` compares PEFT with into `folder`: the pair of files, and
    /// `trained.json`.
    pub fn write(&mut self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for file in [&self.files.tensors, &self.files.config] {
            fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
        let told = json!({
            "name": self.name,
            "model": self.model.name(),
            "beginnings": BEGINNINGS,
            "log_probabilities": self.log_probabilities(),
        });
        fs::write(folder.join("trained.json"), told.to_string()).unwrap();
    }

    /// For each beginning, the logarithm of the probability of each token after it, as the learner
    /// has it: the loss of a sample in which just that token counts, but for the sign.
    fn log_probabilities(&mut self) -> Vec<Vec<f64>> {
        let each = BEGINNINGS.into_iter().map(|beginning| {
            let segments = (0..VOCABULARY).map(|token| Segment {
                sample: u64::from(token),
                tokens: beginning.iter().copied().chain([token]).collect(),
                trained: (0..=beginning.len())
                    .map(|at| at == beginning.len())
                    .collect(),
                weight: 1.0,
            });
            let batch = Batch {
                segments: segments.collect(),
            };
            let policy = Policy::Adapter(&self.values);
            let scores = self.learner.score(&batch, policy).unwrap();
            scores.iter().map(|score| -score.loss).collect()
        });
        each.collect()
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(x - most)).collect();
    let sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - sum).collect()
}

/// Words `t0` to `t63`. The data are tokens already; a model must have one.
fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<_, _> = (0..VOCABULARY)
        .map(|id| (format!("t{id}"), id.into()))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
    })
}
