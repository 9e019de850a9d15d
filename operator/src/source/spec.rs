//! What a spec says of a source: pure.

use std::time::Duration;

use hyprstream_api::{Source, SourceRef};
use hyprstream_contract::{commit::InvalidCommit, registry::Reference};

use super::SourceKey;

/// Why a source cannot work. Only an edit helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// The interval is no duration.
    #[error("spec.source.interval {0:?} is no duration such as 10m")]
    Interval(String),
    /// The commit is no commit.
    #[error("spec.source.ref.commit: {0}")]
    Commit(InvalidCommit),
    /// More than one of branch, tag and commit.
    #[error("spec.source.ref: at most one of branch, tag and commit may be set")]
    Ambiguous,
    /// Credentials for what needs none.
    #[error(
        "spec.source.secretRef: the registry of this cluster needs no credentials; remove it, or \
         name another repository in spec.source.url"
    )]
    NeedlessSecret,
}

impl SourceKey {
    /// What an object of that namespace asks for with `spec.source`.
    ///
    /// # Errors
    /// See [`InvalidSource`].
    pub fn of(namespace: &str, source: &Source) -> Result<Self, InvalidSource> {
        if source.secret_ref.is_some() && source.url.starts_with("hyprstream://") {
            return Err(InvalidSource::NeedlessSecret);
        }
        let interval = interval(&source.interval)
            .ok_or_else(|| InvalidSource::Interval(source.interval.clone()))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            url: source.url.clone(),
            reference: reference(source.reference.as_ref())?,
            include: source.include.clone(),
            secret: source.secret_ref.as_ref().map(|s| s.name.clone()),
            interval,
        })
    }
}

fn interval(text: &str) -> Option<Duration> {
    let parsed: kube::core::Duration = text.parse().ok()?;
    let parsed = (!parsed.is_negative()).then(|| Duration::from(parsed))?;
    (parsed >= Duration::from_secs(1)).then_some(parsed)
}

fn reference(reference: Option<&SourceRef>) -> Result<Reference, InvalidSource> {
    let Some(SourceRef {
        branch,
        tag,
        commit,
    }) = reference
    else {
        return Ok(Reference::Head);
    };
    match (branch, tag, commit) {
        (None, None, None) => Ok(Reference::Head),
        (Some(branch), None, None) => Ok(Reference::Branch(branch.clone())),
        (None, Some(tag), None) => Ok(Reference::Tag(tag.clone())),
        (None, None, Some(commit)) => commit
            .parse()
            .map(Reference::Commit)
            .map_err(InvalidSource::Commit),
        _ => Err(InvalidSource::Ambiguous),
    }
}
