//! Who asks, and what they may do.
//!
//! | Token | API | read `git/NS/*` | write `git/NS/*` | read `mirror/*` |
//! |---|---|---|---|---|
//! | admin | yes | every NS | every NS | yes |
//! | node | asks for volumes, and for adapter lists that it shows words of | no | no | no |
//! | a volume's word | reads the list of its Model's adapters | what its grant opens | no | what its grant opens |
//! | signed for NS | no | its NS | its NS, if signed with `write` | no |
//! | of the API server | by rights | by rights | by rights, ref by ref | no |
//!
//! With `--node-token-reads-all` the node token reads everything. What a word opens is judged in
//! [`crate::access`], by the grants and lists of the moment.
//!
//! What signed tokens and those before may is written here as the same verbs that RBAC gives to the last, so that
//! everything behind asks one question: [`Auth::allows`].
//!
//! Nobody writes mirrors but the registry itself. Nothing is served without a token.

mod kubernetes;
mod token;
mod verb;

use std::{path::PathBuf, sync::Arc};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_contract::{grants::Word, persistent_volumes::KnownVolume};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use kubernetes::{CacheTimes, KubernetesTokens};
pub(crate) use kubernetes::{User, VolumeError};
pub use token::{InvalidToken, SigningKey, WeakKey};
pub(crate) use verb::Verb;

use self::kubernetes::{Act, Kubernetes, Unavailable};
use crate::{
    grants::{Granted, Grants},
    names::{Namespace, Repository},
    refusal::Refusal,
};

/// Where the secrets lie.
#[derive(Clone, Debug)]
pub struct TokenFiles {
    /// File with the token that may do everything.
    pub admin: PathBuf,
    /// File with the token by which one is a node.
    pub node: PathBuf,
    /// File with the key of signed tokens.
    pub signing_key: PathBuf,
}

/// The secrets as they were last read.
pub(crate) struct Auth {
    files: TokenFiles,
    secrets: RwLock<Secrets>,
    kubernetes: Option<Kubernetes>,
    grants: Option<Arc<Grants>>,
    node_reads_all: bool,
}

struct Secrets {
    admin: [u8; 32],
    node: [u8; 32],
    key: SigningKey,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// The control plane.
    Admin,
    /// A node plugin.
    Node {
        /// Whether it reads every repository and list.
        reads_all: bool,
    },
    /// The holder of a volume's word.
    Volume(Arc<Granted>),
    /// The holder of a signed token.
    Namespace { namespace: Namespace, write: bool },
    /// A user or service account of the cluster.
    Kubernetes(Arc<User>),
}

/// The secrets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A token is too short to be one.
    #[error("the token in {path} is shorter than 16 bytes")]
    ShortToken {
        /// The file.
        path: PathBuf,
    },
    /// The same token would be admin and node.
    #[error("the admin token and the node token are the same")]
    SameToken,
    /// The signing key is too short.
    #[error("the key in {path} cannot sign")]
    WeakKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: WeakKey,
    },
}

impl Auth {
    /// Reads the secrets.
    pub(crate) fn open(
        files: TokenFiles,
        kubernetes: Option<KubernetesTokens>,
    ) -> Result<Self, SecretsError> {
        let secrets = RwLock::new(read_secrets(&files)?);
        Ok(Self {
            files,
            secrets,
            kubernetes: kubernetes.map(Kubernetes::new),
            grants: None,
            node_reads_all: false,
        })
    }

    /// Knows the words of volumes as well, and whether the token of the nodes reads everything.
    pub(crate) fn with_grants(self, grants: Arc<Grants>, node_reads_all: bool) -> Self {
        Self {
            grants: Some(grants),
            node_reads_all,
            ..self
        }
    }

    /// The grant that a volume's word shows now.
    pub(crate) fn granted(&self, word: &str) -> Option<Arc<Granted>> {
        self.grants.as_ref()?.find(word)
    }

    /// Reads the secrets anew. After a failure the old ones stay in force.
    pub(crate) fn reload(&self) -> Result<(), SecretsError> {
        let secrets = read_secrets(&self.files)?;
        *self.secrets.write() = secrets;
        Ok(())
    }

    /// Who sends these headers.
    ///
    /// # Errors
    /// 401 if they hold no valid token, 503 if the API server cannot be asked about it now.
    pub(crate) async fn principal(&self, headers: &HeaderMap) -> Result<Principal, Refusal> {
        let token = bearer_or_password(headers).ok_or_else(Refusal::unauthorized)?;
        if let Some(principal) = self.own(&token) {
            return Ok(principal);
        }
        if Word::is_like(&token) {
            // Nobody else's business, and of no other meaning.
            let granted = self.granted(&token).ok_or_else(unknown_word)?;
            return Ok(Principal::Volume(granted));
        }
        let Some(kubernetes) = &self.kubernetes else {
            return Err(Refusal::unauthorized());
        };
        let user = kubernetes.user(&token).await.map_err(unavailable)?;
        user.map(Principal::Kubernetes)
            .ok_or_else(Refusal::unauthorized)
    }

    /// Whose token it is, if it is one of ours.
    fn own(&self, token: &str) -> Option<Principal> {
        let secrets = self.secrets.read();
        // Digests have one length, so that the comparison takes the same time for every token.
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let admin = bool::from(digest.ct_eq(&secrets.admin));
        let node = bool::from(digest.ct_eq(&secrets.node));
        if admin {
            return Some(Principal::Admin);
        }
        if node {
            return Some(Principal::Node {
                reads_all: self.node_reads_all,
            });
        }
        match secrets.key.check(token) {
            Ok(claims) => {
                let namespace = claims.ns.parse().ok()?;
                Some(Principal::Namespace {
                    namespace,
                    write: claims.write,
                })
            }
            Err(error) => {
                tracing::debug!(%error, "no token of our own");
                None
            }
        }
    }

    /// Whether `who` has `verb`, or one that includes it, on `repository`.
    ///
    /// # Errors
    /// 503 if the API server cannot be asked now.
    pub(crate) async fn allows(
        &self,
        who: &Principal,
        repository: &Repository,
        verb: Verb,
    ) -> Result<bool, Refusal> {
        match (who, repository) {
            (Principal::Kubernetes(_), Repository::Mirror(_)) => Ok(false),
            (Principal::Kubernetes(user), Repository::Pushed { namespace, name }) => {
                self.reviewed(user, namespace, name.as_str(), verb).await
            }
            _ => Ok(who.has(repository, verb)),
        }
    }

    /// Whether `who` has `verb` on every repository of a namespace.
    ///
    /// # Errors
    /// 503 if the API server cannot be asked now.
    pub(crate) async fn allows_in(
        &self,
        who: &Principal,
        namespace: &Namespace,
        verb: Verb,
    ) -> Result<bool, Refusal> {
        match who {
            Principal::Admin => Ok(true),
            Principal::Node { reads_all } => Ok(*reads_all && verb == Verb::Get),
            Principal::Volume(_) => Ok(false),
            Principal::Namespace {
                namespace: own,
                write,
            } => Ok(own == namespace && signed_for(*write, verb)),
            Principal::Kubernetes(user) => self.reviewed(user, namespace, "", verb).await,
        }
    }

    async fn reviewed(
        &self,
        user: &User,
        namespace: &Namespace,
        name: &str,
        verb: Verb,
    ) -> Result<bool, Refusal> {
        for verb in verb.including() {
            let act = Act {
                verb: verb.as_str(),
                subresource: "",
                namespace: namespace.as_str(),
                name,
            };
            if self.reviewed_act(user, act).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether `who` may push what training makes in `repository`: `push` on the subresource
    /// `repositories/train`, for the repository's name. Which branch is another question:
    /// [`Auth::allows_job`].
    pub(crate) async fn allows_training(
        &self,
        who: &Principal,
        repository: &Repository,
    ) -> Result<bool, Refusal> {
        self.train(who, repository, None).await
    }

    /// Whether `who` may push the branch `train/JOB` and the tags `JOB/*`.
    ///
    /// A service account with the right on the repository may, if its own name is the job's: who
    /// makes the binding names both. So may everybody with the right on the name
    /// `REPOSITORY/JOB`, which a rule without names includes.
    pub(crate) async fn allows_job(
        &self,
        who: &Principal,
        repository: &Repository,
        job: &str,
    ) -> Result<bool, Refusal> {
        let Principal::Kubernetes(user) = who else {
            return Ok(false);
        };
        if user.service_account() == Some(job) && self.train(who, repository, None).await? {
            return Ok(true);
        }
        self.train(who, repository, Some(job)).await
    }

    async fn train(
        &self,
        who: &Principal,
        repository: &Repository,
        job: Option<&str>,
    ) -> Result<bool, Refusal> {
        let (Principal::Kubernetes(user), Repository::Pushed { namespace, name }) =
            (who, repository)
        else {
            return Ok(false);
        };
        let name = match job {
            Some(job) => format!("{}/{job}", name.as_str()),
            None => name.as_str().to_owned(),
        };
        let act = Act {
            verb: Verb::Push.as_str(),
            subresource: "train",
            namespace: namespace.as_str(),
            name: &name,
        };
        self.reviewed_act(user, act).await
    }

    async fn reviewed_act(&self, user: &User, act: Act<'_>) -> Result<bool, Refusal> {
        match &self.kubernetes {
            Some(kubernetes) => kubernetes.allows(user, act).await.map_err(unavailable),
            None => Ok(false),
        }
    }

    /// The PersistentVolume of our driver with this name, which is a valid one; `None` if there is
    /// none.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<KnownVolume>, VolumeError> {
        match &self.kubernetes {
            Some(kubernetes) => kubernetes.volume(name).await,
            None => Err(VolumeError::Forbidden),
        }
    }

    /// A digest of `bytes` that says nothing to those who lack the signing key.
    pub(crate) fn keyed_digest(&self, bytes: &[u8]) -> [u8; 32] {
        self.secrets.read().key.digest(bytes)
    }
}

impl Principal {
    /// Whether one of our own tokens gives `verb` on `repository`.
    fn has(&self, repository: &Repository, verb: Verb) -> bool {
        match (self, repository) {
            (Self::Admin, Repository::Pushed { .. }) => true,
            // Nobody writes mirrors. They come back when they are asked for.
            (Self::Admin, Repository::Mirror(_)) => matches!(verb, Verb::Get | Verb::Delete),
            (Self::Node { reads_all }, _) => *reads_all && verb == Verb::Get,
            (
                Self::Namespace { namespace, write },
                Repository::Pushed {
                    namespace: owner, ..
                },
            ) => namespace == owner && signed_for(*write, verb),
            _ => false,
        }
    }

    /// Who it is, for the audit log. Says nothing of the token.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Admin => "admin token".to_owned(),
            Self::Node { .. } => "node token".to_owned(),
            Self::Volume(granted) => format!("volume {}", granted.handle()),
            Self::Namespace { namespace, .. } => format!("token of namespace {namespace}"),
            Self::Kubernetes(user) => user.username.clone(),
        }
    }

    /// The pod for which its token was made.
    pub(crate) fn pod(&self) -> Option<&str> {
        match self {
            Self::Kubernetes(user) => user.pod(),
            _ => None,
        }
    }
}

/// What a signed token gives on the repositories of its namespace. What is protected is protected
/// from it too.
fn signed_for(write: bool, verb: Verb) -> bool {
    match verb {
        Verb::Get => true,
        Verb::Push | Verb::Force | Verb::Create | Verb::Delete => write,
        Verb::Admin => false,
    }
}

fn unknown_word() -> Refusal {
    Refusal {
        message: "this word of a volume opens nothing (any more): its volume was deleted, or its \
                  Secret has another word by now; the operator's next sweep puts right what is \
                  not so"
            .to_owned(),
        ..Refusal::unauthorized()
    }
}

fn unavailable(Unavailable: Unavailable) -> Refusal {
    Refusal::busy(
        "the API server, which knows this token and its rights, does not answer; try again",
    )
}

fn bearer_or_password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    decoded
        .split_once(':')
        .map(|(_, password)| password.to_owned())
}

/// The signing key in a file.
///
/// # Errors
/// The file cannot be read or the key is shorter than 32 bytes.
pub fn read_signing_key(path: &std::path::Path) -> Result<SigningKey, SecretsError> {
    let bytes = read_trimmed(path)?;
    SigningKey::new(&bytes).map_err(|source| SecretsError::WeakKey {
        path: path.to_owned(),
        source,
    })
}

fn read_secrets(files: &TokenFiles) -> Result<Secrets, SecretsError> {
    let token = |path: &PathBuf| -> Result<[u8; 32], SecretsError> {
        let bytes = read_trimmed(path)?;
        if bytes.len() < 16 {
            return Err(SecretsError::ShortToken { path: path.clone() });
        }
        Ok(Sha256::digest(bytes).into())
    };
    let (admin, node) = (token(&files.admin)?, token(&files.node)?);
    if admin == node {
        return Err(SecretsError::SameToken);
    }
    Ok(Secrets {
        admin,
        node,
        key: read_signing_key(&files.signing_key)?,
    })
}

/// A file without the white space at its end, which editors and `kubectl` leave behind.
fn read_trimmed(path: &std::path::Path) -> Result<Vec<u8>, SecretsError> {
    let mut bytes = std::fs::read(path).map_err(|source| SecretsError::Read {
        path: path.to_owned(),
        source,
    })?;
    while bytes.last().is_some_and(u8::is_ascii_whitespace) {
        bytes.pop();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
