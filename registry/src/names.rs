//! Names of repositories as they stand in paths of URLs and of the disk.

use std::{fmt, str::FromStr};

/// A repository of this registry. [`fmt::Display`] writes it as
/// `MirrorStatus::repository`: `git/<namespace>/<name>` or `mirror/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Repository {
    /// One that is pushed to.
    Pushed {
        /// The namespace that owns it.
        namespace: Namespace,
        /// Its name in that namespace.
        name: RepositoryName,
    },
    /// A copy of an upstream, which only the registry itself writes.
    Mirror(MirrorId),
}

/// A Kubernetes namespace: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

/// Name of a pushed repository: letters, digits, `-`, `_` and `.`, at most 100, beginning with a
/// letter, digit or `_`, not ending in `.`, `.git` or `.lock`, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RepositoryName(String);

/// Name of a mirror: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MirrorId(String);

/// A text that is not the name it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a DNS label.
    #[error("{0:?} is no namespace: use lower-case letters, digits and '-', at most 63")]
    Namespace(String),
    /// Not a [`RepositoryName`].
    #[error(
        "{0:?} is no repository name: use letters, digits, '-', '_' and '.', at most 100, beginning \
         with a letter or digit, without \"..\""
    )]
    Repository(String),
    /// Not 64 hexadecimal digits.
    #[error("{0:?} is no mirror: 64 lower-case hexadecimal digits are needed")]
    Digest(String),
}

impl Namespace {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RepositoryName {
    /// The text of the name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl MirrorId {
    /// The id that these 32 bytes write.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(hex::encode(bytes))
    }

    /// The text of the name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if label {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Namespace(shown(text)))
        }
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let good = (1..=100).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !text.starts_with(['-', '.'])
            && !text.ends_with('.')
            && !text.contains("..")
            && ![".git", ".lock"]
                .iter()
                .any(|ending| lower.ends_with(ending));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Repository(shown(text)))
        }
    }
}

impl FromStr for MirrorId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_digest(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Digest(shown(text)))
        }
    }
}

impl FromStr for Repository {
    type Err = InvalidName;

    /// Reads `NAMESPACE/NAME`, or what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(Ok(id)) = text.strip_prefix("mirror/").map(str::parse) {
            return Ok(Self::Mirror(id));
        }
        let both = match text.strip_prefix("git/") {
            Some(rest) if rest.contains('/') => rest,
            _ => text,
        };
        let (namespace, name) = both
            .split_once('/')
            .ok_or_else(|| InvalidName::Repository(shown(text)))?;
        Ok(Self::Pushed {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pushed { namespace, name } => write!(f, "git/{}/{}", namespace.0, name.0),
            Self::Mirror(id) => write!(f, "mirror/{}", id.0),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for wrong in [
            "", ".", "..", "a/b", "a..b", ".a", "a.", "a.git", "a.GIT", "a.lock", "a b", "-a",
        ] {
            assert!(wrong.parse::<RepositoryName>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "A", "a.b", "-a", "a-", "a/b", "..", &"a".repeat(64)] {
            assert!(wrong.parse::<Namespace>().is_err(), "{wrong:?}");
        }
        for wrong in ["", &"A".repeat(64), &"a".repeat(63), &"g".repeat(64)] {
            assert!(wrong.parse::<MirrorId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_repository_is_read_as_it_is_written() {
        let id = "0".repeat(64);
        for (text, expected) in [
            ("team-a/m", Some("git/team-a/m".to_owned())),
            ("git/team-a/m", Some("git/team-a/m".to_owned())),
            // A namespace may have any of these names.
            ("git/m", Some("git/git/m".to_owned())),
            ("mirror/m", Some("git/mirror/m".to_owned())),
            (&format!("mirror/{id}"), Some(format!("mirror/{id}"))),
            ("m", None),
            ("a/b/c", None),
            ("../m", None),
            ("", None),
        ] {
            let read = text.parse::<Repository>().ok().map(|r| r.to_string());
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn usual_names_are_taken() {
        for good in ["smollm2", "Qwen2.5-0.5B", "a_b", "x"] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        assert!("team-a".parse::<Namespace>().is_ok());
    }
}
