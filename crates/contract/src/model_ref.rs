//! The reference by which clients name a model.
//!
//! `[NAMESPACE/]NAME[:BRANCH[:COMMIT]][+ADAPTER[@SCALE]]...`

use std::{fmt, str::FromStr};

/// A parsed reference; [`fmt::Display`] writes it back.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRef {
    /// Namespace, if one is named.
    pub namespace: Option<String>,
    /// Name of the Model.
    pub name: String,
    /// Branch, if one is named. It may hold `/`.
    pub branch: Option<String>,
    /// Commit or its beginning, 7 to 40 lower-case hexadecimal digits.
    pub commit: Option<String>,
    /// Adapters in the order in which they are stacked.
    pub adapters: Vec<AdapterRef>,
}

/// One adapter of a [`ModelRef`].
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterRef {
    /// Served name.
    pub name: String,
    /// Scale; `None` is the adapter's own, 1 unless it says otherwise.
    pub scale: Option<f32>,
}

/// A text that is no reference, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a model reference: {why}")]
pub struct InvalidModelRef {
    text: String,
    why: &'static str,
}

/// Longest text that is looked at, in bytes.
const MAX_BYTES: usize = 512;
/// Most adapters in one reference, and in one request however it names them.
pub const MAX_STACK: usize = 8;
/// Largest scale, and as a negative number the smallest.
pub const MAX_SCALE: f32 = 10.0;

impl FromStr for ModelRef {
    type Err = InvalidModelRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|why| InvalidModelRef {
            text: text.chars().take(80).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<ModelRef, &'static str> {
    if text.len() > MAX_BYTES {
        return Err("it is longer than 512 bytes");
    }
    let mut parts = text.split('+');
    let base = parts.next().unwrap_or_default();
    let adapters = parts.map(parse_adapter).collect::<Result<Vec<_>, _>>()?;
    if adapters.len() > MAX_STACK {
        return Err("it names more than 8 adapters");
    }
    let mut base = base.splitn(3, ':');
    let path = base.next().unwrap_or_default();
    let (namespace, name) = match path.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, path),
    };
    if !is_dns_label(name) || namespace.is_some_and(|n| !is_dns_label(n)) {
        return Err("names are lower-case letters, digits and '-'");
    }
    let branch = base.next();
    if branch.is_some_and(|b| !is_branch(b)) {
        return Err("the branch is not a git branch name");
    }
    let commit = base.next();
    if commit.is_some_and(|c| !is_commit(c)) {
        return Err("a commit is 7 to 40 lower-case hexadecimal digits");
    }
    Ok(ModelRef {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        branch: branch.map(str::to_owned),
        commit: commit.map(str::to_owned),
        adapters,
    })
}

fn parse_adapter(text: &str) -> Result<AdapterRef, &'static str> {
    let (name, scale) = match text.split_once('@') {
        Some((name, scale)) => (name, Some(scale)),
        None => (text, None),
    };
    check_adapter_name(name)?;
    let scale = match scale {
        None => None,
        Some(scale) => match scale.parse::<f32>() {
            Ok(value) if value.is_finite() && value.abs() <= MAX_SCALE && !scale.contains('+') => {
                Some(value)
            }
            _ => return Err("an adapter's scale is a number from -10 to 10"),
        },
    };
    Ok(AdapterRef {
        name: name.to_owned(),
        scale,
    })
}

/// Whether an adapter may have that name.
///
/// # Errors
/// Why not.
pub fn check_adapter_name(name: &str) -> Result<(), &'static str> {
    let good = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good {
        Ok(())
    } else {
        Err("adapter names are letters, digits, '-', '_' and '.', at most 63")
    }
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
        && text
            .bytes()
            .last()
            .is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_branch(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !text.contains("..")
        && !text.contains("//")
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"~^:?*[\\@{}".contains(&b))
}

fn is_commit(text: &str) -> bool {
    (7..=40).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        if let Some(branch) = &self.branch {
            write!(f, ":{branch}")?;
        }
        if let Some(commit) = &self.commit {
            write!(f, ":{commit}")?;
        }
        for adapter in &self.adapters {
            write!(f, "+{}", adapter.name)?;
            if let Some(scale) = adapter.scale {
                write!(f, "@{scale}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str) -> ModelRef {
        let parsed: ModelRef = text.parse().unwrap();
        assert_eq!(parsed.to_string(), text);
        parsed
    }

    #[test]
    fn every_form_of_the_design_is_read_and_written_back() {
        check("qwen3-small");
        check("qwen3-small:main");
        check("qwen3-small:main:1a2b3c4");
        let full = check("team-a/qwen3-small:feature/x:1a2b3c4+sql@0.8+tone");
        assert_eq!(full.namespace.as_deref(), Some("team-a"));
        assert_eq!(full.branch.as_deref(), Some("feature/x"));
        assert_eq!(full.adapters[0].scale, Some(0.8));
        assert_eq!(full.adapters[1].scale, None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for wrong in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "A",
            "a:",
            "a:main:",
            "a:main:xyz",
            "a:main:123",
            "a+",
            "a+x@",
            "a+x@nan",
            "a+x@inf",
            "a+x@1e9",
            "a+x@10.1",
            "a+1+2+3+4+5+6+7+8+9",
            "a:..",
            "a:-x",
            "a b",
            "a\0",
            "a:main:1a2b3c4:x",
        ] {
            assert!(wrong.parse::<ModelRef>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_is_stable(text in ".{0,80}") {
            if let Ok(parsed) = text.parse::<ModelRef>() {
                prop_assert_eq!(parsed.to_string().parse::<ModelRef>().unwrap(), parsed);
            }
        }
    }
}
