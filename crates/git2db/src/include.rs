//! Which files of a commit are wanted.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::Digest;

/// A list of globs relative to the repository's root; a file is wanted if any of them matches, and
/// none of those that [`Include::excluding`] was given.
///
/// `*` and `?` do not match `/`; `**` does. An empty list wants every file.
#[derive(Clone, Debug)]
pub struct Include {
    globs: Vec<String>,
    set: Option<GlobSet>,
    excluded: Option<Box<Include>>,
}

/// A glob that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("include pattern {glob:?} cannot be read: {why}")]
pub struct InvalidGlob {
    /// The glob.
    pub glob: String,
    /// What is wrong with it.
    pub why: String,
}

impl Include {
    /// Every file.
    pub fn all() -> Self {
        Self {
            globs: Vec::new(),
            set: None,
            excluded: None,
        }
    }

    /// The files that match one of `globs`, or every file if there are none.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Self, InvalidGlob> {
        let mut globs: Vec<String> = globs.iter().map(|g| g.as_ref().to_owned()).collect();
        globs.sort();
        globs.dedup();
        if globs.is_empty() {
            return Ok(Self::all());
        }
        let mut set = GlobSetBuilder::new();
        for text in &globs {
            let invalid = |why: String| InvalidGlob {
                glob: text.chars().take(200).collect(),
                why,
            };
            if text.is_empty() || text.starts_with('/') || text.contains('\0') {
                return Err(invalid(
                    "it must be a path below the repository's root".to_owned(),
                ));
            }
            let glob = GlobBuilder::new(text)
                .literal_separator(true)
                .build()
                .map_err(|e| invalid(e.kind().to_string()))?;
            set.add(glob);
        }
        let set = set.build().map_err(|e| InvalidGlob {
            glob: globs.join(", "),
            why: e.kind().to_string(),
        })?;
        Ok(Self {
            globs,
            set: Some(set),
            excluded: None,
        })
    }

    /// These files without those that match one of `globs`, which take the place of earlier ones.
    pub fn excluding<S: AsRef<str>>(mut self, globs: &[S]) -> Result<Self, InvalidGlob> {
        self.excluded = if globs.is_empty() {
            None
        } else {
            Some(Box::new(Self::new(globs)?))
        };
        Ok(self)
    }

    /// The glob that matches the file at `path` and no other.
    pub fn literal(path: &str) -> String {
        globset::escape(path)
    }

    /// Whether the file at `path`, with `/` between its parts, is wanted.
    pub fn matches(&self, path: &str) -> bool {
        self.set.as_ref().is_none_or(|set| set.is_match(path))
            && !self
                .excluded
                .as_ref()
                .is_some_and(|excluded| excluded.matches(path))
    }

    /// Whether every file is wanted.
    pub fn is_all(&self) -> bool {
        self.set.is_none() && self.excluded.is_none()
    }

    /// A digest of the list that does not depend on order or repetition.
    pub fn digest(&self) -> Digest {
        let mut text = self.globs.join("\0");
        if let Some(excluded) = &self.excluded {
            // No glob holds a zero byte, so that no list without exclusions reads like this.
            text = format!("{text}\0\0{}", excluded.globs.join("\0"));
        }
        Digest::of(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_one_folder_and_two_do_not() {
        let include = Include::new(&["*.json", "weights/**", "**/*.txt"]).unwrap();
        for wanted in ["config.json", "weights/a/b.bin", "a.txt", "x/y.txt"] {
            assert!(include.matches(wanted), "{wanted}");
        }
        for unwanted in ["sub/config.json", "README.md", "other/weights/a"] {
            assert!(!include.matches(unwanted), "{unwanted}");
        }
    }

    #[test]
    fn a_literal_path_matches_itself_alone() {
        for path in ["a/b.bin", "a*", "[x]{y,z}", "!a?"] {
            let include = Include::new(&[Include::literal(path)]).unwrap();
            assert!(include.matches(path), "{path}");
            for other in ["a/bxbin", "ab", "x", "xy", "!ab"] {
                assert!(!include.matches(other), "{path} {other}");
            }
        }
    }

    #[test]
    fn no_globs_want_everything() {
        assert!(Include::new::<&str>(&[]).unwrap().matches("a/b/c"));
        assert_eq!(
            Include::all().digest(),
            Include::new::<&str>(&[]).unwrap().digest()
        );
    }

    #[test]
    fn order_and_repetition_do_not_change_the_digest() {
        let digest = |globs: &[&str]| Include::new(globs).unwrap().digest();
        assert_eq!(digest(&["a", "b"]), digest(&["b", "a", "b"]));
        assert_ne!(digest(&["a"]), digest(&["b"]));
    }

    #[test]
    fn what_is_excluded_is_not_wanted_even_if_it_is_included() {
        let include = Include::new(&["weights/**"]).unwrap();
        let without = include.clone().excluding(&["**/*.bin"]).unwrap();
        assert!(without.matches("weights/a.safetensors") && !without.matches("weights/a.bin"));
        assert!(!Include::all().excluding(&["a"]).unwrap().matches("a"));
        assert_ne!(include.digest(), without.digest());
        let none: [&str; 0] = [];
        assert_eq!(
            include.digest(),
            include.clone().excluding(&none).unwrap().digest()
        );
    }

    #[test]
    fn a_broken_glob_is_named() {
        let error = Include::new(&["a[b"]).unwrap_err();
        assert_eq!(error.glob, "a[b");
        assert!(Include::new(&["/etc/*"]).is_err());
    }
}
