//! The registry's API for the control plane, beside the git and LFS protocols.
//!
//! | Call | Body | Answer |
//! |---|---|---|
//! | `POST /api/v1/resolve` | [`ResolveRequest`] | 200 [`ResolveResponse`], or [`ApiError`] |
//! | `POST /api/v1/mirrors` | [`MirrorRequest`] | 200 [`MirrorStatus`], idempotent, never waits |
//! | `GET /api/v1/events?after=N` | | 200 [`EventPage`], waits up to 30 s for one |
//!
//! Calls carry `Authorization: Bearer <admin token>`. Repositories are served to git at
//! `/<repository>.git`, where `<repository>` is [`MirrorStatus::repository`]: `mirror/<id>` or, for
//! what was pushed here, `git/<namespace>/<name>`. Git sends the token as the password of basic
//! authentication; the user name is not looked at.

use serde::{Deserialize, Serialize};

use crate::CommitId;

/// The ConfigMap of the release's namespace with the authorities by which the registry is trusted,
/// where it speaks TLS.
pub const TRUST_CONFIG_MAP: &str = "hyprstream-trust";
/// Its key with the bundle of them, PEM.
pub const TRUST_KEY: &str = "ca.crt";
/// Scheme of a source that lies on the registry itself: `hyprstream://NAMESPACE/NAME`. Only
/// Models of that namespace may name it.
pub const SCHEME: &str = "hyprstream";
/// Path of [`ResolveRequest`].
pub const RESOLVE_PATH: &str = "/api/v1/resolve";
/// Path of [`MirrorRequest`].
pub const MIRRORS_PATH: &str = "/api/v1/mirrors";
/// Path of [`EventPage`].
pub const EVENTS_PATH: &str = "/api/v1/events";

/// What to follow in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reference {
    /// The head of the upstream's default branch.
    Head,
    /// A branch, without `refs/heads/`.
    Branch(String),
    /// A tag, without `refs/tags/`; an annotated one is peeled.
    Tag(String),
    /// A commit by its full name.
    Commit(CommitId),
}

/// A repository as a Model names it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// `https://`, `http://`, `ssh://`, `user@host:path` or `hyprstream://NAMESPACE/NAME`.
    pub url: String,
    /// Namespace of the Model. With credentials, part of the mirror's identity.
    pub namespace: String,
    /// What the Model's Secret held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// How to authenticate to an upstream. Never stored, never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Credentials {
    /// A bearer or access token.
    Token(String),
    /// User name and password.
    #[serde(rename_all = "camelCase")]
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A private key for `ssh://`.
    #[serde(rename_all = "camelCase")]
    SshKey {
        /// The key in OpenSSH or PEM form.
        private_key: String,
        /// Passphrase of the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passphrase: Option<String>,
        /// Lines as in `known_hosts`. Without them no host is trusted.
        known_hosts: String,
    },
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("url", &self.url)
            .field("namespace", &self.namespace)
            .field("credentials", &self.credentials)
            .finish()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Basic { .. } => "Basic(..)",
            Self::SshKey { .. } => "SshKey(..)",
        })
    }
}

/// Asks which commit a reference names now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where.
    pub upstream: Upstream,
    /// What.
    pub reference: Reference,
}

/// Answer to [`ResolveRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolveResponse {
    /// The commit.
    pub commit: CommitId,
}

/// Asks that a commit and its included files lie complete and verified on the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorRequest {
    /// Where from.
    pub upstream: Upstream,
    /// How `commit` was found; helps servers that do not serve bare commits.
    pub reference: Reference,
    /// The commit.
    pub commit: CommitId,
    /// Globs of the files whose LFS objects are needed; empty for all.
    #[serde(default)]
    pub include: Vec<String>,
}

/// How far a mirrored commit is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// Where it lies on the registry: `mirror/<id>` or `git/<namespace>/<name>`.
    pub repository: String,
    /// State of the work.
    pub state: MirrorState,
    /// Bytes of LFS objects of this commit that lie here, verified.
    pub bytes_done: u64,
    /// Bytes of LFS objects of this commit in all; 0 while unknown.
    pub bytes_total: u64,
    /// Why, when `state` is `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// State of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MirrorState {
    /// Work is under way; ask again.
    Fetching,
    /// All of it lies here.
    Ready,
    /// The last attempt failed. Asking again later starts another.
    Failed,
}

/// An error as the registry tells it, also in [`MirrorStatus::error`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    /// CamelCase; see [`reason`].
    pub reason: String,
    /// What was wrong and what to do, safe to show to the user of the Model.
    pub message: String,
    /// Whether the same request may succeed later without an edit.
    pub retriable: bool,
}

/// Values of [`ApiError::reason`].
pub mod reason {
    /// The URL cannot be parsed or its scheme is not served.
    pub const INVALID_URL: &str = "InvalidURL";
    /// Name resolution or connection failed.
    pub const HOST_UNREACHABLE: &str = "HostUnreachable";
    /// The upstream wants other credentials, or any.
    pub const AUTHENTICATION_FAILED: &str = "AuthenticationFailed";
    /// There is no such repository, or the credentials do not show it.
    pub const REPOSITORY_NOT_FOUND: &str = "RepositoryNotFound";
    /// The branch, tag or commit does not exist.
    pub const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";
    /// The namespace may not read that repository.
    pub const ACCESS_DENIED: &str = "AccessDenied";
    /// An LFS object is not on the upstream.
    pub const MISSING_OBJECT: &str = "MissingLFSObject";
    /// Bytes do not have the digest or size that the commit names.
    pub const DIGEST_MISMATCH: &str = "DigestMismatch";
    /// The tree holds something that is refused: an escaping link, a huge blob, and so on.
    pub const REFUSED_CONTENT: &str = "RefusedContent";
    /// No space is left.
    pub const DISK_FULL: &str = "DiskFull";
    /// The upstream answered with an error of its own or broke off.
    pub const UPSTREAM_ERROR: &str = "UpstreamError";
    /// Too much is asked for at once; it passes by itself.
    pub const BUSY: &str = "Busy";
    /// Something of ours failed.
    pub const INTERNAL: &str = "InternalError";
}

/// A repository on the registry changed, by a push or otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushEvent {
    /// Number of the event, growing.
    pub sequence: u64,
    /// Namespace of the repository.
    pub namespace: String,
    /// Name of the repository.
    pub name: String,
    /// What changed, where the registry says so: one of before this member does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// What changed in a repository, and who did it, as the audit log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What was done.
    pub kind: ChangeKind,
    /// Who did it.
    pub subject: String,
    /// The ref that changed, in full; none if it was the repository as a whole.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether `reference` is the repository's default branch.
    #[serde(default)]
    pub is_default: bool,
    /// The commit that `reference` named before; zeros if it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The commit that it names now; zeros if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// Bytes that came for it, LFS not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What was done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// Git pushed a ref.
    Push,
    /// A commit was made over the API.
    Commit,
    /// A branch took up another over the API.
    Merge,
    /// The repository was made of another.
    Fork,
    /// The repository, or a branch over the API, was deleted.
    Delete,
    /// Something that this version has no name for.
    #[serde(other)]
    Other,
}

impl Change {
    /// Whether what `followed` names changed by it.
    #[must_use]
    pub fn concerns(&self, followed: &Reference) -> bool {
        let Some(reference) = &self.reference else {
            return true;
        };
        match followed {
            Reference::Head => self.is_default,
            Reference::Branch(name) => reference.strip_prefix("refs/heads/") == Some(name),
            Reference::Tag(name) => reference.strip_prefix("refs/tags/") == Some(name),
            Reference::Commit(_) => false,
        }
    }
}

/// Events after the number asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventPage {
    /// In order; may be empty.
    pub events: Vec<PushEvent>,
    /// Ask with this next.
    pub last: u64,
    /// Events may have been lost (the registry started anew): look at everything again.
    pub reset: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_registries_of_before_and_of_later() {
        let read = |text: &str| serde_json::from_str::<PushEvent>(text).unwrap();
        let before = read(r#"{"sequence":1,"namespace":"a","name":"m"}"#);
        assert_eq!(before.change, None);
        let later = read(
            r#"{"sequence":1,"namespace":"a","name":"m","more":1,
                "change":{"kind":"rebase","subject":"alice","ref":"refs/heads/x","more":2}}"#,
        );
        let change = later.change.unwrap();
        assert_eq!(
            (change.kind, change.reference.as_deref()),
            (ChangeKind::Other, Some("refs/heads/x"))
        );
    }

    #[test]
    fn a_change_concerns_who_follows_its_ref() {
        #[track_caller]
        fn check(reference: Option<&str>, is_default: bool, followed: &Reference, expected: bool) {
            let change = Change {
                kind: ChangeKind::Push,
                subject: "alice".into(),
                reference: reference.map(str::to_owned),
                is_default,
                old: None,
                new: None,
                bytes: None,
            };
            assert_eq!(change.concerns(followed), expected);
        }
        let branch = |name: &str| Reference::Branch(name.into());
        let tag = Reference::Tag("v1".into());
        check(Some("refs/heads/main"), true, &Reference::Head, true);
        check(Some("refs/heads/x"), false, &Reference::Head, false);
        check(Some("refs/heads/x/y"), false, &branch("x/y"), true);
        check(Some("refs/heads/x"), false, &branch("x/y"), false);
        check(Some("refs/tags/v1"), false, &tag, true);
        check(Some("refs/heads/v1"), false, &tag, false);
        check(None, false, &tag, true);
    }

    #[test]
    fn requests_survive_the_round_trip_and_hide_credentials() {
        let request = MirrorRequest {
            upstream: Upstream {
                url: "https://example.org/m".into(),
                namespace: "default".into(),
                credentials: Some(Credentials::Basic {
                    username: "u".into(),
                    password: "hunter2".into(),
                }),
            },
            reference: Reference::Branch("main".into()),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            include: vec!["*.json".into()],
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<MirrorRequest>(&text).unwrap(),
            request
        );
        assert!(!format!("{request:?}").contains("hunter2"));
    }
}
