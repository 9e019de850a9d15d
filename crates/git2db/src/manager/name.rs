//! Names of tracked repositories.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Name of a tracked repository: parts of letters, digits, `-`, `_` and `.` with `/` between
/// them, such as `org/model`; at most 255 bytes.
///
/// A part begins with a letter, a digit or `_` and does not end in `.`, `.git` or `.lock`; there is
/// no `..`. `:`, `+` and `@` have a meaning in references such as `name:branch+adapter@0.5`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is not the name of a repository, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of a repository: {why}")]
pub struct InvalidName {
    text: String,
    why: &'static str,
}

const MAX_BYTES: usize = 255;

impl Name {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_BYTES {
        return Err("it is longer than 255 bytes");
    }
    for part in text.split('/') {
        let lower = part.to_ascii_lowercase();
        if part.is_empty() {
            return Err("it is empty, or a '/' has nothing before or after it");
        }
        if !part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err("letters, digits, '-', '_', '.' and '/' are allowed");
        }
        if part.starts_with(['-', '.']) {
            return Err("its parts begin with a letter, a digit or '_'");
        }
        if [".", ".git", ".lock"]
            .iter()
            .any(|end| lower.ends_with(end))
        {
            return Err("its parts do not end in '.', '.git' or '.lock'");
        }
        if part.contains("..") {
            return Err("there is no '..' in it");
        }
    }
    Ok(())
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match check(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(why) => Err(InvalidName {
                text: text.chars().take(80).collect(),
                why,
            }),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_elsewhere_are_refused() {
        let long = "a".repeat(256);
        for wrong in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a..b", ".a", "a.", "a.git", "a.LOCK/b", "a b",
            "-a", "a/-b", "a:b", "a+b", "a@b", "ä", "a\\b", "a\0", &long,
        ] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn usual_names_are_taken() {
        for good in ["a", "Qwen/Qwen2.5-0.5B", "org/team/model_v1", "_x", "0"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }
}
