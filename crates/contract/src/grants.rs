//! What the volumes of a node open on the registry (`docs/adr/0004-what-a-node-may-read.md`).
//!
//! | Call | Token | Body | Answer |
//! |---|---|---|---|
//! | `PUT /api/v1/grants/HANDLE` | admin | [`Grant`] | 204, idempotent |
//! | `DELETE /api/v1/grants/HANDLE` | admin | | 204, also if there was none |
//! | `GET /api/v1/grants` | admin | | 200 [`KeptGrants`] |
//!
//! `HANDLE` is that of a PersistentVolume. Its word lies in a Secret of the type [`SECRET_TYPE`]
//! under [`WORD_KEY`], which the volume names; the registry knows the word by its SHA-256 alone. To
//! git and LFS it is a password as any other token is. A node that waits for lists of adapters shows
//! the words of the Models in [`crate::adapters::ChangesRequest::words`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::adapters::{ModelName, hexadecimal, is_repository};

/// Path of [`KeptGrants`], and of the grants: `/HANDLE` follows.
pub const GRANTS_PATH: &str = "/api/v1/grants";
/// Type of the Secrets with words. Nothing else has it, and credentials for git are never taken out
/// of it.
pub const SECRET_TYPE: &str = "hyprstream.io/volume-word";
/// Label of these Secrets; its value is `true`.
pub const SECRET_LABEL: &str = "hyprstream.io/volume-word";
/// Key of the word in its Secret, and in the secrets of the kubelet's calls.
pub const WORD_KEY: &str = "word";
/// Most words that open the same at a time: the new one and the one before.
pub const MAX_WORDS: usize = 2;
/// Longest handle, in bytes, as CSI has it.
pub const MAX_HANDLE_BYTES: usize = 128;
/// What handles of volumes begin with that somebody else than the operator made: it leaves their
/// grants alone. Those that it makes begin with a UID.
pub const BY_HAND: &str = "own-";
/// What a word begins with, which tells it from every other token.
const PREFIX: &str = "hsv_";
/// Characters of a word behind that: 32 bytes in base64.
const DIGITS: usize = 43;

/// What shows that somebody may open what a volume opens. Never logged, not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word(String);

/// SHA-256 of a [`Word`], in 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WordHash(String);

/// What a volume opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Opens {
    /// A repository of the registry, as in [`crate::registry::MirrorStatus::repository`].
    Repository(String),
    /// The list of a Model's adapters, and the repositories that it names or has named in the last
    /// ten minutes.
    Adapters(ModelName),
}

/// A volume's right to read, as the operator tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// The words that show it, at least one and at most [`MAX_WORDS`].
    pub words: BTreeSet<WordHash>,
    /// What it opens.
    pub opens: Opens,
}

/// All grants that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptGrants {
    /// [`Grant::revision`] by handle; `None` of one that cannot be read, which opens nothing.
    pub grants: BTreeMap<String, Option<String>>,
}

/// A text that is no [`Word`]. Does not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {PREFIX:?} and {DIGITS} characters of base64url")]
pub struct InvalidWord;

/// A text that is no [`WordHash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a word has 64 lower-case hexadecimal digits")]
pub struct InvalidHash;

/// A grant that is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGrant {
    /// None or too many words.
    #[error("it has {0} words, and needs 1 to {MAX_WORDS}")]
    Words(usize),
    /// The repository cannot be one.
    #[error("it opens the repository {0:?}, which must be mirror/ID or git/NAMESPACE/NAME")]
    Repository(String),
}

impl Word {
    /// The word that these random bytes write.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Whether a token has the form of a word, so that it can be nothing else.
    #[must_use]
    pub fn is_like(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// The text, to be shown to the registry alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// By which the registry knows it.
    #[must_use]
    pub fn hash(&self) -> WordHash {
        WordHash(hexadecimal(&Sha256::digest(self.0.as_bytes())))
    }
}

impl FromStr for Word {
    type Err = InvalidWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(InvalidWord)?;
        let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if digits.len() == DIGITS && digits.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidWord)
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Word(..)")
    }
}

impl WordHash {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WordHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidHash)
        }
    }
}

impl TryFrom<String> for WordHash {
    type Error = InvalidHash;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WordHash> for String {
    fn from(hash: WordHash) -> Self {
        hash.0
    }
}

impl fmt::Display for Opens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(repository) => f.write_str(repository),
            Self::Adapters(model) => write!(f, "adapters/{model}"),
        }
    }
}

impl Grant {
    /// The first 32 hexadecimal digits of the SHA-256 of what the grant says.
    #[must_use]
    pub fn revision(&self) -> String {
        let bytes = serde_json::to_vec(self).expect("a grant is JSON");
        hexadecimal(&Sha256::digest(bytes)[..16])
    }

    /// Whether it can be kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), InvalidGrant> {
        if !(1..=MAX_WORDS).contains(&self.words.len()) {
            return Err(InvalidGrant::Words(self.words.len()));
        }
        match &self.opens {
            Opens::Repository(repository) if !is_repository(repository) => {
                let shown = repository.chars().take(140).collect();
                Err(InvalidGrant::Repository(shown))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a volume of ours can have this handle: lower-case letters, digits, `-` and `.`, beginning
/// with a letter or digit, at most [`MAX_HANDLE_BYTES`].
#[must_use]
pub fn is_handle(handle: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=MAX_HANDLE_BYTES).contains(&handle.len())
        && handle
            .bytes()
            .all(|b| is_plain(b) || b == b'-' || b == b'.')
        && handle.bytes().next().is_some_and(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn word(byte: u8) -> Word {
        Word::from_bytes([byte; 32])
    }

    proptest! {
        #[test]
        fn a_word_survives_its_text_and_is_not_shown(bytes: [u8; 32]) {
            let word = Word::from_bytes(bytes);
            prop_assert_eq!(word.expose().parse::<Word>(), Ok(word.clone()));
            prop_assert!(Word::is_like(word.expose()));
            let shown = format!("{word:?}");
            prop_assert!(!shown.contains(&word.expose()[4..]));
            prop_assert_eq!(word.hash().as_str().parse(), Ok(word.hash()));
        }
    }

    #[test]
    fn what_is_no_word_is_refused_without_being_shown() {
        let good = word(7);
        for wrong in [
            "",
            "hsv_",
            "abc",
            &good.expose()[1..],
            &format!("{}x", good.expose()),
        ] {
            let error = wrong.parse::<Word>().unwrap_err().to_string();
            assert!(wrong.len() < 5 || !error.contains(wrong), "{error}");
        }
        for wrong in ["", &"A".repeat(64), &"a".repeat(63)] {
            assert_eq!(wrong.parse::<WordHash>(), Err(InvalidHash));
        }
    }

    #[test]
    fn a_grant_reads_as_documented() {
        let hash = word(0).hash();
        let grant = Grant {
            words: BTreeSet::from([hash.clone()]),
            opens: Opens::Repository("git/a/m".into()),
        };
        let adapters = Grant {
            opens: Opens::Adapters("a/m".parse().unwrap()),
            ..grant.clone()
        };
        for (grant, opens) in [
            (&grant, json!({"repository": "git/a/m"})),
            (&adapters, json!({"adapters": "a/m"})),
        ] {
            let value = serde_json::to_value(grant).unwrap();
            assert_eq!(value, json!({"words": [hash.as_str()], "opens": opens}));
            let text = serde_json::to_string(grant).unwrap();
            assert_eq!(serde_json::from_str::<Grant>(&text).unwrap(), *grant);
            assert_eq!(grant.check(), Ok(()));
        }
        assert_ne!(grant.revision(), adapters.revision());
        let kept = KeptGrants {
            grants: BTreeMap::from([("h".into(), Some("r".into())), ("x".into(), None)]),
        };
        let value = serde_json::to_value(&kept).unwrap();
        assert_eq!(value, json!({"grants": {"h": "r", "x": null}}));
        let text = value.to_string();
        assert_eq!(serde_json::from_str::<KeptGrants>(&text).unwrap(), kept);
    }

    #[test]
    fn a_grant_without_bounds_is_refused() {
        let grant = |words: &[u8], repository: &str| Grant {
            words: words.iter().map(|byte| word(*byte).hash()).collect(),
            opens: Opens::Repository(repository.into()),
        };
        assert_eq!(grant(&[1, 2], "mirror/1").check(), Ok(()));
        assert_eq!(grant(&[], "git/a/m").check(), Err(InvalidGrant::Words(0)));
        let many = grant(&[1, 2, 3], "git/a/m").check();
        assert_eq!(many, Err(InvalidGrant::Words(3)));
        for wrong in ["", "a/m", "git/a/..", "git/a/m/n", "/git/a/m"] {
            let refused = grant(&[1], wrong).check();
            assert_eq!(refused, Err(InvalidGrant::Repository(wrong.into())));
        }
    }

    #[test]
    fn a_handle_never_leaves_its_folder() {
        for good in [
            "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb-0123456-89abcdef-1",
            "a.b",
        ] {
            assert!(is_handle(good), "{good}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "../a",
            "a/b",
            "A",
            "-a",
            "a b",
            "a%2fb",
            &"a".repeat(129),
        ] {
            assert!(!is_handle(wrong), "{wrong}");
        }
    }
}
