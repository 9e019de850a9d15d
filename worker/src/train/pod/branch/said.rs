//! What the commits of a job say.

use std::collections::BTreeMap;

use hyprstream_contract::training::{LastWords, Origin, TrainingPod, trailer};
use hyprstream_git2db::commit::{Author, Metadata};

/// What all commits of a job say alike.
#[derive(Clone, Debug)]
pub(in super::super) struct Provenance {
    /// SHA-256 of the records.
    pub(in super::super) dataset_digest: String,
    /// SHA-256 of the job.
    pub(in super::super) parameters: String,
    /// The learner's name.
    pub(in super::super) computed_by: String,
}

/// What a commit says in its trailers, as far as it is read again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Said {
    pub(in super::super) job: Option<String>,
    pub(in super::super) uid: Option<String>,
    pub(in super::super) dataset_digest: Option<String>,
    pub(in super::super) step: Option<u64>,
    pub(in super::super) adapter_digest: Option<String>,
    pub(in super::super) last_words: Option<LastWords>,
}

impl Said {
    /// What `message` says.
    pub(in super::super) fn parse(message: &str) -> Self {
        let last = message.trim_end().rsplit("\n\n").next().unwrap_or_default();
        let find = |key: &str| {
            let mut lines = last.lines().filter_map(|line| line.split_once(": "));
            lines.find_map(|(found, value)| (found == key).then(|| value.trim().to_owned()))
        };
        Self {
            job: find(trailer::JOB),
            uid: find(trailer::UID),
            dataset_digest: find(trailer::DATASET_DIGEST),
            step: find(trailer::STEP).and_then(|step| step.parse().ok()),
            adapter_digest: find(trailer::ADAPTER_DIGEST),
            last_words: find(trailer::LAST_WORDS)
                .and_then(|words| serde_json::from_str(&words).ok()),
        }
    }
}

/// What a commit of the job says of `step`, with these figures.
pub(super) fn metadata(
    pod: &TrainingPod,
    from: &Provenance,
    subject: &str,
    step: u64,
    metrics: &BTreeMap<String, f64>,
) -> Metadata {
    let author = Author {
        name: format!("{}/{}", pod.namespace, pod.name),
        email: "noreply@hyprstream.io".to_owned(),
    };
    let metadata = Metadata::new(author, subject)
        .with_trailer(trailer::JOB, &format!("{}/{}", pod.namespace, pod.name))
        .with_trailer(trailer::UID, &pod.uid)
        .with_trailer(trailer::MODEL, &origin(&pod.model))
        .with_trailer(trailer::DATASET, &origin(&pod.dataset))
        .with_trailer(trailer::DATASET_DIGEST, &from.dataset_digest)
        .with_trailer(trailer::PARAMETERS, &from.parameters)
        .with_trailer(trailer::COMPUTED_BY, &from.computed_by)
        .with_trailer(trailer::STEP, &step.to_string());
    let figures: Vec<String> = metrics
        .iter()
        .filter(|(name, _)| name.to_lowercase().contains("loss") || name.contains("ccuracy"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let metadata = if figures.is_empty() {
        metadata
    } else {
        metadata.with_trailer(trailer::METRICS, &figures.join(" "))
    };
    metadata.with_trailer(
        trailer::PROGRAM,
        concat!("hyprstream-worker ", env!("CARGO_PKG_VERSION")),
    )
}

fn origin(origin: &Origin) -> String {
    match &origin.commit {
        Some(commit) => format!("{}@{}", origin.url, commit.as_str()),
        None => origin.url.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_commit_says_is_read_again_and_a_body_is_not() {
        let message = "Train\n\nTraining-Job-Uid: body\n\nTraining-Job: ns/a\n\
                       Training-Job-Uid: u\nDataset-Digest: d\n";
        let said = Said::parse(message);
        assert_eq!(said.uid.as_deref(), Some("u"));
        assert_eq!(said.job.as_deref(), Some("ns/a"));
        assert_eq!(said.dataset_digest.as_deref(), Some("d"));
        assert_eq!(said.adapter_digest, None);
        assert_eq!(Said::parse("Add a model\n"), Said::default());
    }
}
