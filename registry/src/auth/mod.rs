//! Who asks, and what they may do.
//!
//! | Token | API | read `git/NS/*` | write `git/NS/*` | read `mirror/*` |
//! |---|---|---|---|---|
//! | admin | yes | every NS | every NS | yes |
//! | node | reads adapter lists | every NS | no | yes |
//! | signed for NS | no | its NS | its NS, if signed with `write` | no |
//!
//! Nobody writes mirrors but the registry itself. Nothing is served without a token.

mod token;

use std::path::PathBuf;

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use token::{InvalidToken, SigningKey, WeakKey};

use crate::names::{Namespace, Repository};

/// Where the secrets lie.
#[derive(Clone, Debug)]
pub struct TokenFiles {
    /// File with the token that may do everything.
    pub admin: PathBuf,
    /// File with the token that may read every repository.
    pub node: PathBuf,
    /// File with the key of signed tokens.
    pub signing_key: PathBuf,
}

/// The secrets as they were last read.
pub(crate) struct Auth {
    files: TokenFiles,
    secrets: RwLock<Secrets>,
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
    Node,
    /// The holder of a signed token.
    Namespace { namespace: Namespace, write: bool },
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
    pub(crate) fn open(files: TokenFiles) -> Result<Self, SecretsError> {
        let secrets = RwLock::new(read_secrets(&files)?);
        Ok(Self { files, secrets })
    }

    /// Reads the secrets anew. After a failure the old ones stay in force.
    pub(crate) fn reload(&self) -> Result<(), SecretsError> {
        let secrets = read_secrets(&self.files)?;
        *self.secrets.write() = secrets;
        Ok(())
    }

    /// Who sends these headers; `None` if they hold no valid token.
    pub(crate) fn principal(&self, headers: &HeaderMap) -> Option<Principal> {
        let token = bearer_or_password(headers)?;
        let secrets = self.secrets.read();
        // Digests have one length, so that the comparison takes the same time for every token.
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let admin = bool::from(digest.ct_eq(&secrets.admin));
        let node = bool::from(digest.ct_eq(&secrets.node));
        if admin {
            return Some(Principal::Admin);
        }
        if node {
            return Some(Principal::Node);
        }
        match secrets.key.check(&token) {
            Ok(claims) => {
                let namespace = claims.ns.parse().ok()?;
                Some(Principal::Namespace {
                    namespace,
                    write: claims.write,
                })
            }
            Err(error) => {
                tracing::debug!(%error, "refused a token");
                None
            }
        }
    }

    /// A digest of `bytes` that says nothing to those who lack the signing key.
    pub(crate) fn keyed_digest(&self, bytes: &[u8]) -> [u8; 32] {
        self.secrets.read().key.digest(bytes)
    }
}

impl Principal {
    /// Whether `repository` may be read.
    pub(crate) fn may_read(&self, repository: &Repository) -> bool {
        match self {
            Self::Admin | Self::Node => true,
            Self::Namespace { namespace, .. } => owns(namespace, repository),
        }
    }

    /// Whether `repository` may be pushed to.
    pub(crate) fn may_write(&self, repository: &Repository) -> bool {
        match self {
            Self::Admin => matches!(repository, Repository::Pushed { .. }),
            Self::Node => false,
            Self::Namespace { namespace, write } => *write && owns(namespace, repository),
        }
    }
}

fn owns(owner: &Namespace, repository: &Repository) -> bool {
    matches!(repository, Repository::Pushed { namespace, .. } if namespace == owner)
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
mod tests {
    use std::time::Duration;

    use super::*;

    const ADMIN: &str = "admin-token-0123456789";
    const NODE: &str = "node-token-0123456789";

    fn auth(dir: &std::path::Path) -> Auth {
        let file = |name: &str, content: &str| {
            let path = dir.join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let files = TokenFiles {
            admin: file("admin", &format!("{ADMIN}\n")),
            node: file("node", NODE),
            signing_key: file("key", &"k".repeat(40)),
        };
        Auth::open(files).unwrap()
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    fn basic(password: &str) -> HeaderMap {
        headers(&format!(
            "Basic {}",
            STANDARD.encode(format!("any:{password}"))
        ))
    }

    #[test]
    fn tokens_are_taken_as_bearer_and_as_password() {
        let dir = tempfile::tempdir().unwrap();
        let auth = auth(dir.path());
        assert_eq!(
            auth.principal(&headers(&format!("Bearer {ADMIN}"))),
            Some(Principal::Admin)
        );
        assert_eq!(auth.principal(&basic(ADMIN)), Some(Principal::Admin));
        assert_eq!(auth.principal(&basic(NODE)), Some(Principal::Node));
        for wrong in [
            "",
            "nonsense",
            "Bearer ",
            "Bearer x",
            "Basic !!!",
            "Digest x",
        ] {
            assert_eq!(auth.principal(&headers(wrong)), None, "{wrong}");
        }
        assert_eq!(auth.principal(&HeaderMap::new()), None);
    }

    #[test]
    fn each_principal_reaches_what_is_its_own() {
        let ours: Repository = Repository::Pushed {
            namespace: "a".parse().unwrap(),
            name: "m".parse().unwrap(),
        };
        let theirs = Repository::Pushed {
            namespace: "b".parse().unwrap(),
            name: "m".parse().unwrap(),
        };
        let mirror = Repository::Mirror(crate::names::MirrorId::from_bytes([1; 32]));
        let reader = Principal::Namespace {
            namespace: "a".parse().unwrap(),
            write: false,
        };
        let writer = Principal::Namespace {
            namespace: "a".parse().unwrap(),
            write: true,
        };
        let table = [
            (&Principal::Admin, [true, true, true], [true, true, false]),
            (&Principal::Node, [true, true, true], [false, false, false]),
            (&reader, [true, false, false], [false, false, false]),
            (&writer, [true, false, false], [true, false, false]),
        ];
        for (principal, read, write) in table {
            let all = [&ours, &theirs, &mirror];
            assert_eq!(all.map(|r| principal.may_read(r)), read, "{principal:?}");
            assert_eq!(all.map(|r| principal.may_write(r)), write, "{principal:?}");
        }
    }

    #[test]
    fn a_rotated_token_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let auth = auth(dir.path());
        std::fs::write(dir.path().join("admin"), "another-admin-token").unwrap();
        auth.reload().unwrap();
        assert_eq!(auth.principal(&basic(ADMIN)), None);
        assert_eq!(
            auth.principal(&basic("another-admin-token")),
            Some(Principal::Admin)
        );
        std::fs::write(dir.path().join("admin"), "short").unwrap();
        assert!(auth.reload().is_err());
        assert_eq!(
            auth.principal(&basic("another-admin-token")),
            Some(Principal::Admin)
        );
    }

    #[test]
    fn a_signed_token_names_its_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let auth = auth(dir.path());
        let key = read_signing_key(&dir.path().join("key")).unwrap();
        let token = key.sign(&"a".parse().unwrap(), true, Duration::from_mins(1));
        let expected = Principal::Namespace {
            namespace: "a".parse().unwrap(),
            write: true,
        };
        assert_eq!(auth.principal(&basic(&token)), Some(expected));
    }
}
