//! The TrainingJob of a request.

use hyprstream_api::{
    Dataset, Objective as Learns, SourceRef, TrainingJob, TrainingJobSpec, TrainingMethod,
    TrainingModelRef,
};
use hyprstream_contract::{CommitId, label, registry, training_defaults};
use hyprstream_openai::fine_tuning::{Method, Objective};

use super::{super::REPOSITORY, record::JobRecord, template::JobTemplate};

/// Path of what is learnt from in a job's commit.
pub(super) const TRAIN: &str = "train.jsonl";
/// What the branches with the data of jobs begin with.
pub(super) const DATA_BRANCHES: &str = "jobs/";
/// Path of what it is judged by.
pub(super) const VALID: &str = "valid.jsonl";
/// Longest part of a suffix in the name of an adapter.
const MAX_SUFFIX: usize = 40;
/// Characters of the job's name in that of its adapter.
const OF_NAME: usize = 12;

/// All that a TrainingJob is made of.
pub(super) struct Plan<'a> {
    pub(super) namespace: &'a str,
    /// The job's id.
    pub(super) name: &'a str,
    pub(super) record: &'a JobRecord,
    /// Name of the Model.
    pub(super) model: &'a str,
    pub(super) seed: i64,
    /// The commit with its data.
    pub(super) data: &'a CommitId,
    /// What is the same of all jobs.
    pub(super) template: &'a JobTemplate,
}

/// The branch with a job's data.
pub(super) fn data_branch(name: &str) -> String {
    format!("{DATA_BRANCHES}{name}")
}

impl Plan<'_> {
    /// The TrainingJob.
    pub(super) fn training_job(&self) -> TrainingJob {
        let model = TrainingModelRef {
            name: self.model.to_owned(),
            reference: None,
        };
        let dataset = Dataset {
            url: Some(format!(
                "{}://{}/{REPOSITORY}",
                registry::SCHEME,
                self.namespace
            )),
            reference: Some(SourceRef {
                commit: Some(self.data.to_string()),
                ..SourceRef::default()
            }),
            secret_ref: None,
            config_map: None,
            persistent_volume_claim: None,
            path: TRAIN.to_owned(),
        };
        let mut spec = TrainingJobSpec::new(model, dataset);
        spec.method = method(&self.record.method, self.seed);
        let validation = self.record.validation_file.as_ref();
        spec.eval.path = validation.map(|_| VALID.to_owned());
        spec.output.name = Some(adapter_name(self.record.suffix.as_deref(), self.name));
        self.template.apply(&mut spec);
        let mut job = TrainingJob::new(self.name, spec);
        job.metadata.namespace = Some(self.namespace.to_owned());
        job.metadata.labels = Some([(label::FINE_TUNING.to_owned(), "true".to_owned())].into());
        job.metadata.annotations = Some([self.record.annotation()].into());
        job
    }
}

fn method(asked: &Method, seed: i64) -> TrainingMethod {
    let own = &asked.hyperparameters;
    let (objective, rate) = match asked.objective {
        Objective::Supervised => (Learns::Sft, training_defaults::SFT_LEARNING_RATE),
        Objective::Dpo => (Learns::Dpo, training_defaults::DPO_LEARNING_RATE),
    };
    let default = TrainingMethod::default();
    TrainingMethod {
        objective,
        // What is read is within the bounds of both.
        epochs: own.n_epochs.value().map(|n| n as i32),
        batch_size: own
            .batch_size
            .value()
            .map_or(default.batch_size, |n| n as i32),
        learning_rate: own
            .learning_rate_multiplier
            .value()
            .map(|multiplier| scientific(rate * multiplier)),
        beta: own
            .beta
            .and_then(hyprstream_openai::fine_tuning::Setting::value)
            .map(decimal),
        seed,
        ..default
    }
}

/// A number with up to seven digits, such as `2e-4`.
fn scientific(value: f64) -> String {
    let text = format!("{value:.6e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e{exponent}")
        }
        None => text,
    }
}

/// A number with up to nine places, such as `0.1`.
fn decimal(value: f64) -> String {
    let text = format!("{value:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A DNS label that begins with the suffix and that no other job has.
fn adapter_name(suffix: Option<&str>, job: &str) -> String {
    let own = &job[job.len().saturating_sub(OF_NAME)..];
    let mut label = String::new();
    for c in suffix.unwrap_or_default().chars() {
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    label.truncate(MAX_SUFFIX);
    let label = label.trim_matches('-');
    let label = if label.is_empty() { "ft" } else { label };
    format!("{label}-{own}")
}

#[cfg(test)]
mod tests {
    use hyprstream_openai::fine_tuning::CreateJob;
    use serde_json::{Value, json};

    use super::*;

    const NAME: &str = "ftjob-0123456789abcdefghijklmn";

    fn job(body: &Value) -> Value {
        let request = CreateJob::from_json(body.to_string().as_bytes()).unwrap();
        let record = JobRecord::from(request);
        let data: CommitId = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let plan = Plan {
            namespace: "team-a",
            name: NAME,
            record: &record,
            model: "m",
            seed: 7,
            data: &data,
            template: &r#"{"device": "cuda"}"#.parse().unwrap(),
        };
        let job = plan.training_job();
        assert_eq!(JobRecord::of_object(&job), Ok(record));
        serde_json::to_value(&job).unwrap()
    }

    #[test]
    fn a_request_becomes_a_training_job_on_its_own_commit() {
        let made = job(&json!({
            "model": "m", "training_file": "file-a", "validation_file": "file-b",
            "suffix": "My model!", "metadata": {"a": "b"},
            "method": {"type": "dpo", "dpo": {"hyperparameters": {
                "n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.8, "beta": 0.25}}},
        }));
        let spec = &made["spec"];
        assert_eq!(
            made["metadata"]["labels"],
            json!({"hyprstream.io/fine-tuning": "true"})
        );
        assert_eq!(spec["modelRef"], json!({"name": "m"}));
        assert_eq!(spec["device"], "cuda", "as whoever runs the cluster says");
        assert_eq!(
            spec["dataset"],
            json!({"url": "hyprstream://team-a/openai-files", "path": "train.jsonl",
                   "ref": {"commit": "0123456789abcdef0123456789abcdef01234567"}})
        );
        assert_eq!(spec["eval"]["path"], "valid.jsonl");
        assert_eq!(
            spec["output"],
            json!({"name": "my-model-cdefghijklmn", "onSuccess": "CreateAdapter"})
        );
        let method = &spec["method"];
        assert_eq!(method["objective"], "DPO");
        assert_eq!(method["epochs"], 2);
        assert_eq!(method["batchSize"], 4);
        assert_eq!(method["learningRate"], "1.8e-5");
        assert_eq!(
            (&method["beta"], &method["seed"]),
            (&json!("0.25"), &json!(7))
        );
    }

    #[test]
    fn what_is_left_to_the_server_is_left_to_the_training_job() {
        let made = job(&json!({"model": "m", "training_file": "file-a"}));
        let method = &made["spec"]["method"];
        assert_eq!(method["objective"], "SFT");
        for name in ["epochs", "learningRate", "beta"] {
            assert!(method.get(name).is_none(), "{name}");
        }
        assert!(made["spec"]["eval"].get("path").is_none());
    }

    #[test]
    fn names_and_numbers_are_what_the_crd_takes() {
        for (suffix, expected) in [
            (None, "ft-cdefghijklmn"),
            (Some("---"), "ft-cdefghijklmn"),
            (Some("Ünï a"), "n-a-cdefghijklmn"),
        ] {
            assert_eq!(adapter_name(suffix, NAME), expected);
        }
        let long = adapter_name(Some(&"x".repeat(64)), NAME);
        assert_eq!(long.len(), 53);
        for (value, expected) in [(2e-4, "2e-4"), (1.0, "1e0"), (2e-10, "2e-10")] {
            assert_eq!(scientific(value), expected);
        }
        assert_eq!(scientific(2e-4 * 1.1), "2.2e-4");
        assert_eq!(
            (decimal(0.1), decimal(1000.0)),
            ("0.1".into(), "1000".into())
        );
    }
}
