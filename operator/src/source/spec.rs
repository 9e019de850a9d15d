//! What a spec says of a source: pure.

use std::time::Duration;

use hyprstream_api::{Source, SourceRef, condition};
use hyprstream_contract::{
    commit::InvalidCommit,
    registry::{Reference, reason},
};

use super::{SourceKey, own_repository};

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
    /// A repository of another namespace.
    #[error(
        "spec.source.url: the repository belongs to namespace {owner}; {who} may only name \
         repositories of its own namespace. Push it to hyprstream://{namespace}/{name} instead"
    )]
    ForeignRepository {
        /// Namespace that it belongs to.
        owner: String,
        /// Its name there.
        name: String,
        /// Namespace of the object.
        namespace: String,
        /// The object's kind, with its article.
        who: &'static str,
    },
    /// Credentials would go over the network as they are.
    #[error(
        "spec.source.secretRef: its credentials would go to {0} without TLS; use https:// in \
         spec.source.url, or have that host allowed by the Helm value \
         operator.allowInsecureCredentials"
    )]
    InsecureCredentials(String),
}

impl InvalidSource {
    /// Reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ForeignRepository { .. } => reason::ACCESS_DENIED,
            _ => condition::reason::INVALID_SPEC,
        }
    }
}

impl SourceKey {
    /// What an object of that namespace asks for with `spec.source`; `who` is its kind for people,
    /// as `a Model`.
    ///
    /// # Errors
    /// See [`InvalidSource`].
    pub fn of(namespace: &str, who: &'static str, source: &Source) -> Result<Self, InvalidSource> {
        if let Some((owner, name)) = own_repository(&source.url)
            && owner != namespace
        {
            return Err(InvalidSource::ForeignRepository {
                owner: owner.to_owned(),
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                who,
            });
        }
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
