//! Names of commits, of contents, and of what to follow in a repository.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The SHA-1 of a git commit as 40 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

/// The SHA-256 of a content as 64 lower-case hexadecimal digits. For an LFS object, its oid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// The text is not the name of a commit or a content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {digits} hexadecimal digits are needed")]
pub struct InvalidId {
    text: String,
    what: &'static str,
    digits: usize,
}

/// What to follow in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// The head of the default branch.
    Head,
    /// A branch, without `refs/heads/`.
    Branch(String),
    /// A tag, without `refs/tags/`; an annotated one is peeled.
    Tag(String),
    /// A commit by its full name.
    Commit(CommitId),
}

impl CommitId {
    /// All 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn oid(&self) -> git2::Oid {
        git2::Oid::from_str(&self.0).expect("40 hexadecimal digits are an oid")
    }

    pub(crate) fn from_oid(oid: git2::Oid) -> Self {
        Self(oid.to_string())
    }
}

impl Digest {
    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(hex::encode(sha2::Sha256::digest(bytes)))
    }

    pub(crate) fn finish(hasher: sha2::Sha256) -> Self {
        use sha2::Digest as _;
        Self(hex::encode(hasher.finalize()))
    }
}

impl Reference {
    /// The full name of the ref, such as `refs/heads/main`; `None` for a commit.
    pub fn full_name(&self) -> Option<String> {
        match self {
            Self::Head => Some("HEAD".to_owned()),
            Self::Branch(name) => Some(format!("refs/heads/{name}")),
            Self::Tag(name) => Some(format!("refs/tags/{name}")),
            Self::Commit(_) => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("the default branch"),
            Self::Branch(name) => write!(f, "branch {name:?}"),
            Self::Tag(name) => write!(f, "tag {name:?}"),
            Self::Commit(commit) => write!(f, "commit {commit}"),
        }
    }
}

fn parse_hex(text: &str, digits: usize, what: &'static str) -> Result<String, InvalidId> {
    if text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(InvalidId {
            text: text.chars().take(80).collect(),
            what,
            digits,
        })
    }
}

macro_rules! hexadecimal {
    ($name:ident, $digits:literal, $what:literal) => {
        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text, $digits, $what).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hexadecimal!(CommitId, 40, "a commit");
hexadecimal!(Digest, 64, "a SHA-256");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_number_of_hex_digits_is_a_name() {
        let upper = "0123456789ABCDEF0123456789abcdef01234567";
        assert_eq!(
            upper.parse::<CommitId>().unwrap().as_str(),
            upper.to_lowercase()
        );
        for wrong in [
            "",
            "main",
            &upper[1..],
            "g123456789abcdef0123456789abcdef01234567",
        ] {
            assert!(wrong.parse::<CommitId>().is_err(), "{wrong}");
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b""), known.parse().unwrap());
    }
}
