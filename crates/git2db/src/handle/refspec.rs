//! Which refs of a remote become which refs here.

use std::str::FromStr;

use crate::Reference;

/// What to fetch and where to keep it: `[+]SOURCE[:TARGET]`, with one `*` on both sides or none.
///
/// Both are full names of refs (`HEAD` too as a source). Without a target the objects come and no
/// ref is changed. With `+` a ref is set whatever it named before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refspec {
    source: String,
    target: Option<String>,
    force: bool,
}

/// A text that is no refspec, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no refspec: {why}")]
pub struct InvalidRefspec {
    text: String,
    why: &'static str,
}

impl Refspec {
    /// What the usual clone fetches: the branches to `refs/remotes/REMOTE`.
    pub(crate) fn branches(remote: &str) -> Self {
        Self {
            source: "refs/heads/*".to_owned(),
            target: Some(format!("refs/remotes/{remote}/*")),
            force: true,
        }
    }

    /// The ref to `source`'s own kind of name, forced or not.
    pub(crate) fn one(source: &str, target: Option<String>, force: bool) -> Self {
        Self {
            source: source.to_owned(),
            target,
            force,
        }
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.force
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// What the source is, for an error about it.
    pub(crate) fn reference(&self) -> Reference {
        let name = self.source.as_str();
        match name.strip_prefix("refs/tags/") {
            Some(tag) => Reference::Tag(tag.to_owned()),
            None if name == "HEAD" => Reference::Head,
            None => {
                let branch = name.strip_prefix("refs/heads/").unwrap_or(name);
                Reference::Branch(branch.to_owned())
            }
        }
    }

    /// Whether the ref `name` of the remote is meant.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.source == name || self.middle(name).is_some()
    }

    /// What keeps the ref `name` of the remote, if it is meant and kept.
    pub(crate) fn target(&self, name: &str) -> Option<String> {
        let target = self.target.as_ref()?;
        if self.source == name {
            return Some(target.clone());
        }
        Some(target.replacen('*', self.middle(name)?, 1))
    }

    /// What stands for the `*`.
    fn middle<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (before, after) = self.source.split_once('*')?;
        let middle = name.strip_prefix(before)?.strip_suffix(after)?;
        (!middle.is_empty()).then_some(middle)
    }

    /// The ref of the remote whose target is `name`, if that is within the targets.
    pub(crate) fn unmap(&self, name: &str) -> Option<String> {
        let target = self.target.as_deref()?;
        let Some((before, after)) = target.split_once('*') else {
            return (target == name).then(|| self.source.clone());
        };
        let middle = name.strip_prefix(before)?.strip_suffix(after)?;
        (!middle.is_empty()).then(|| self.source.replacen('*', middle, 1))
    }
}

impl FromStr for Refspec {
    type Err = InvalidRefspec;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|why| InvalidRefspec {
            text: text.chars().take(200).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Refspec, &'static str> {
    let (force, rest) = match text.strip_prefix('+') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (source, target) = match rest.split_once(':') {
        Some((source, "")) => (source, None),
        Some((source, target)) => (source, Some(target)),
        None => (rest, None),
    };
    let stars = |name: &str| name.matches('*').count();
    if stars(source) > 1 || target.is_some_and(|target| stars(target) != stars(source)) {
        return Err("a '*' stands once on both sides");
    }
    let is_ref = |name: &str| {
        name.starts_with("refs/") && git2::Reference::is_valid_name(&name.replace('*', "x"))
    };
    if source != "HEAD" && !is_ref(source) {
        return Err("what is fetched is HEAD or the full name of a ref, such as refs/heads/main");
    }
    if !target.is_none_or(is_ref) {
        return Err("it is kept by the full name of a ref, such as refs/remotes/origin/main");
    }
    Ok(Refspec {
        source: source.to_owned(),
        target: target.map(str::to_owned),
        force,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    #[allow(clippy::option_option)]
    fn check(spec: &str, name: &str, expected: Option<Option<&str>>) {
        let spec: Refspec = spec.parse().unwrap();
        let target = spec.target(name);
        let found = spec.matches(name).then_some(target.as_deref());
        assert_eq!(found, expected);
        if let Some(target) = target {
            assert_eq!(spec.unmap(&target).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_star_carries_the_rest_of_the_name_over() {
        let usual = "+refs/heads/*:refs/remotes/o/*";
        check(usual, "refs/heads/a/b", Some(Some("refs/remotes/o/a/b")));
        check(usual, "refs/tags/a", None);
        check(
            "refs/tags/v*:refs/tags/old/v*",
            "refs/tags/v1",
            Some(Some("refs/tags/old/v1")),
        );
        check("HEAD", "HEAD", Some(None));
        check(
            "refs/heads/a:refs/heads/b",
            "refs/heads/a",
            Some(Some("refs/heads/b")),
        );
        check("refs/heads/a:refs/heads/b", "refs/heads/ab", None);
    }

    #[test]
    fn what_is_no_refspec_is_refused() {
        for wrong in [
            "",
            "+",
            "main",
            "refs/*/*:refs/*/*",
            "refs/heads/a:b",
            "refs/heads/*:refs/heads/a",
            "refs/heads/a..b",
            ":refs/heads/a",
        ] {
            assert!(wrong.parse::<Refspec>().is_err(), "{wrong:?}");
        }
    }
}
