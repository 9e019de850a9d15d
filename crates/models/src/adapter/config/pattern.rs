//! Names and patterns by which PEFT's configuration speaks of modules.
//!
//! Patterns are regular expressions of Python's `re`. They are run by an engine that knows
//! lookaround and backreferences, since real files use them (ms-swift writes `(?!...)`); what it
//! would read otherwise than Python is refused, and so is one that takes too long.

use std::collections::BTreeSet;

use fancy_regex::{Regex, RegexBuilder};

/// Longest pattern in bytes.
const MAX_PATTERN_BYTES: usize = 64 << 10;
/// Most steps back of one match. A pattern of real files takes a few hundred.
const MAX_STEPS: usize = 100_000;
/// Most bytes of a compiled pattern.
const MAX_COMPILED_BYTES: usize = 4 << 20;

/// Why a pattern cannot be used.
pub(super) type Why = String;

/// A pattern that a whole name must match, or its end after a dot.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Letters, digits, `_`, and dots that stand for any character: the end of a name.
    Ending(String),
    /// Anything else.
    Regex(Box<Regex>),
}

impl Pattern {
    /// `re.fullmatch(pattern, name)`.
    pub(super) fn whole(pattern: &str) -> Result<Self, Why> {
        compile(pattern, &format!(r"\A(?:{pattern})\z")).map(Self::from)
    }

    /// `re.match(rf"(.*\.)?({pattern})$", name)`, as `get_pattern_key` of PEFT has it.
    pub(super) fn ending(pattern: &str) -> Result<Self, Why> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
        if pattern.bytes().all(plain) {
            return Ok(Self::Ending(pattern.to_owned()));
        }
        // The same groups, so that backreferences mean the same.
        compile(pattern, &format!(r"\A(.*\.)?({pattern})\z")).map(Self::from)
    }

    /// Whether it matches.
    ///
    /// # Errors
    /// It takes too long.
    pub(super) fn matches(&self, name: &str) -> Result<bool, Why> {
        match self {
            Self::Ending(ending) => {
                let Some(begin) = name.len().checked_sub(ending.len()) else {
                    return Ok(false);
                };
                let (before, end) = name.as_bytes().split_at(begin);
                let same = |(a, b): (&u8, u8)| b == b'.' || *a == b;
                Ok(before.last().is_none_or(|byte| *byte == b'.')
                    && end.iter().zip(ending.bytes()).all(same))
            }
            Self::Regex(regex) => regex.is_match(name).map_err(|error| error.to_string()),
        }
    }
}

impl From<Regex> for Pattern {
    fn from(regex: Regex) -> Self {
        Self::Regex(Box::new(regex))
    }
}

/// Compiles `whole`, which was made of `pattern`.
fn compile(pattern: &str, whole: &str) -> Result<Regex, Why> {
    // Sets within classes, and words of other engines: Python takes them for characters.
    const OTHERWISE: [&str; 8] = ["&&", "--", "~~", "[[", r"\<", r"\>", r"\b{", r"\p"];
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err("it is too long".to_owned());
    }
    if let Some(found) = OTHERWISE.iter().find(|part| pattern.contains(**part)) {
        return Err(format!(
            "it contains {found:?}, which is not read as Python reads it"
        ));
    }
    let build = |text: &str| {
        RegexBuilder::new(text)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .delegate_dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|error| error.to_string())
    };
    // Alone as well, so that a lone bracket does not pair with ours.
    build(pattern)?;
    build(whole)
}

/// Which modules are meant: `check_target_module_exists` of PEFT.
#[derive(Clone, Debug)]
pub(super) enum Names {
    /// A pattern that the whole name matches.
    Pattern(Pattern),
    /// The name itself or its end after a dot.
    Listed(BTreeSet<String>),
}

/// How a name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// By a pattern, or under its whole name.
    Itself,
    /// By its end.
    Ending,
}

impl Names {
    /// How `name` is among them.
    ///
    /// # Errors
    /// A pattern takes too long.
    pub(super) fn find(&self, name: &str) -> Result<Option<Found>, Why> {
        match self {
            Self::Pattern(pattern) => Ok(pattern.matches(name)?.then_some(Found::Itself)),
            Self::Listed(listed) if listed.contains(name) => Ok(Some(Found::Itself)),
            Self::Listed(listed) => {
                let mut ends = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
                let found = ends.any(|end| listed.contains(end));
                Ok(found.then_some(Found::Ending))
            }
        }
    }
}

/// `layers_to_transform` and `layers_pattern`.
#[derive(Clone, Debug)]
pub(super) struct LayersToTransform {
    layers: BTreeSet<usize>,
    /// With the index of the layer as their group `idx`.
    patterns: Vec<Regex>,
}

impl LayersToTransform {
    /// Of these indices, in lists of these names; none is any name.
    pub(super) fn new(layers: BTreeSet<usize>, names: &[String]) -> Result<Self, Why> {
        let patterns = if names.is_empty() {
            let any = r"\A.*?\.[^.]*\.(?P<idx>\d+)\.";
            vec![compile(any, any)?]
        } else {
            let one =
                |name: &String| compile(name, &format!(r"\A(?:^|.*?\.){name}\.(?P<idx>\d+)\."));
            names.iter().map(one).collect::<Result<_, _>>()?
        };
        Ok(Self { layers, patterns })
    }

    /// Whether the module of this name is in one of them.
    pub(super) fn contains(&self, name: &str) -> Result<bool, Why> {
        for pattern in &self.patterns {
            let groups = pattern.captures(name).map_err(|error| error.to_string())?;
            let index = groups.as_ref().and_then(|groups| groups.name("idx"));
            if let Some(index) = index {
                let index = index.as_str().parse::<usize>();
                return Ok(index.is_ok_and(|index| self.layers.contains(&index)));
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn an_ending_begins_after_a_dot() {
        for (pattern, expected) in [
            ("q_proj", true),
            ("proj", false),
            ("self_attn.q_proj", true),
            ("self_attn_q_proj", false),
            (NAME, true),
            ("^model.layers.11.self_attn.q_proj", true),
            ("^layers.11.self_attn.q_proj", false),
            ("1.self_attn.q_proj", false),
            (r"layers\.\d+\.self_attn\.[qk]_proj", true),
            ("k_proj|q_proj", true),
            ("k_proj|attn", false),
            (r"(?!.*k_proj).*", true),
            ("", false),
        ] {
            let found = Pattern::ending(pattern).unwrap().matches(NAME).unwrap();
            assert_eq!(found, expected, "{pattern}");
        }
    }

    #[test]
    fn a_whole_match_leaves_nothing_over() {
        for (pattern, expected) in [
            ("q_proj", false),
            (".*q_proj", true),
            (r"model\.layers\.1[01]\..*_proj", true),
            (
                r"^(model)(?!\.(lm_head|embed_tokens)).*\.(q_proj|v_proj)$",
                true,
            ),
            (r".*\.(\d)\1\..*", true),
            (r"(?P<layer>.*)\.self_attn\..*", true),
            (r".*layers\.1", false),
        ] {
            let found = Pattern::whole(pattern).unwrap().matches(NAME).unwrap();
            assert_eq!(found, expected, "{pattern}");
        }
    }

    #[test]
    fn what_python_reads_otherwise_or_not_at_all_is_refused() {
        for (pattern, why) in [
            ("[a&&b]", "Python"),
            ("[[a]", "Python"),
            (r"\p{L}", "Python"),
            ("(", ""),
            ("a)(b", ""),
            ("*", ""),
        ] {
            let error = Pattern::whole(pattern).unwrap_err();
            assert!(error.contains(why), "{pattern}: {error}");
            Pattern::ending(pattern).unwrap_err();
        }
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
        Pattern::whole(&long).unwrap_err();
    }

    #[test]
    fn a_pattern_that_never_ends_is_given_up() {
        let pattern = Pattern::whole(r"(?=x*)((a*)*\2)*b").unwrap();
        pattern.matches(&"a".repeat(200)).unwrap_err();
    }

    #[test]
    fn layers_are_numbered_by_the_first_list_of_the_name() {
        let layers = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            LayersToTransform::new(BTreeSet::from([0, 11]), &names).unwrap()
        };
        assert!(layers(&[]).contains(NAME).unwrap());
        assert!(layers(&["layers"]).contains(NAME).unwrap());
        assert!(layers(&["h", "layers"]).contains(NAME).unwrap());
        assert!(layers(&["(h|layers)"]).contains(NAME).unwrap());
        assert!(!layers(&["h"]).contains(NAME).unwrap());
        assert!(
            layers(&["layers"])
                .contains("layers.0.mlp.up_proj")
                .unwrap()
        );
        assert!(!layers(&[]).contains("layers.0.mlp.up_proj").unwrap());
        assert!(!layers(&[]).contains("model.layers.1.mlp.up_proj").unwrap());
        assert!(!layers(&[]).contains("lm_head").unwrap());
    }

    proptest::proptest! {
        #[test]
        fn plain_endings_match_as_the_regex_would(
            pattern in "[a-c._0-1]{0,8}",
            name in "[a-c._0-1]{0,12}",
        ) {
            let plain = Pattern::ending(&pattern).unwrap();
            let whole = format!(r"\A(.*\.)?({pattern})\z");
            let regex = Pattern::from(compile(&pattern, &whole).unwrap());
            proptest::prop_assert!(matches!(plain, Pattern::Ending(_)));
            proptest::prop_assert_eq!(plain.matches(&name), regex.matches(&name));
        }

        #[test]
        fn a_listed_name_is_itself_or_an_end_after_a_dot(
            listed in proptest::collection::btree_set("[ab.]{1,5}", 0..4),
            name in "[ab.]{1,9}",
        ) {
            let expected = if listed.contains(&name) {
                Some(Found::Itself)
            } else {
                let ends = |end: &String| name.ends_with(&format!(".{end}"));
                listed.iter().any(ends).then_some(Found::Ending)
            };
            proptest::prop_assert_eq!(Names::Listed(listed).find(&name).unwrap(), expected);
        }
    }
}
