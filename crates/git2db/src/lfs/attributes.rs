//! Which files `.gitattributes` give to LFS.
//!
//! Only the attribute `filter` is looked at, with the rules of gitattributes(5): patterns as in
//! `.gitignore` without negation and without folders, the last match wins, a deeper file wins over
//! the ones above it, and macros may be defined in the root's file.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobMatcher};

/// The rules of all `.gitattributes` of a commit.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// By folder (empty for the root).
    files: HashMap<String, Vec<Rule>>,
    /// What macros do to `filter`.
    macros: HashMap<String, Filter>,
}

#[derive(Debug)]
struct Rule {
    matcher: GlobMatcher,
    /// Whether the pattern is matched against the name alone.
    name_only: bool,
    filter: Filter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Lfs,
    /// Unset, or another filter.
    Other,
    /// `!filter`: as if nothing had been said.
    Unspecified,
}

impl Attributes {
    /// Takes in the `.gitattributes` of `folder`. The root's file (`""`) comes first.
    pub(crate) fn add(&mut self, folder: &str, content: &[u8]) {
        let mut rules = Vec::new();
        for line in String::from_utf8_lossy(content).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(definition) = line.strip_prefix("[attr]") {
                let mut words = definition.split_whitespace();
                if let Some(name) = words.next().filter(|_| folder.is_empty())
                    && let Some(filter) = self.filter(words)
                {
                    self.macros.insert(name.to_owned(), filter);
                }
                continue;
            }
            let Some((pattern, rest)) = split_pattern(line) else {
                continue;
            };
            if let Some(filter) = self.filter(rest.split_whitespace())
                && let Some(rule) = rule(&pattern, filter)
            {
                rules.push(rule);
            }
        }
        self.files.insert(folder.to_owned(), rules);
    }

    /// Whether the file at `path` has `filter=lfs`.
    pub(crate) fn is_lfs(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let mut folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        loop {
            if let Some(rules) = self.files.get(folder) {
                let below = path
                    .strip_prefix(folder)
                    .unwrap_or(path)
                    .trim_start_matches('/');
                let last = rules.iter().rev().find(|rule| {
                    rule.matcher
                        .is_match(if rule.name_only { name } else { below })
                });
                match last.map(|rule| rule.filter) {
                    Some(Filter::Lfs) => return true,
                    Some(Filter::Other | Filter::Unspecified) => return false,
                    None => {}
                }
            }
            if folder.is_empty() {
                return false;
            }
            folder = folder.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }

    /// What a list of attributes does to `filter`; `None` if nothing.
    fn filter<'a>(&self, words: impl Iterator<Item = &'a str>) -> Option<Filter> {
        let mut result = None;
        for word in words {
            match word {
                "filter=lfs" => result = Some(Filter::Lfs),
                "-filter" => result = Some(Filter::Other),
                "!filter" => result = Some(Filter::Unspecified),
                _ if word == "filter" || word.starts_with("filter=") => {
                    result = Some(Filter::Other);
                }
                _ => {
                    if let Some(filter) = self.macros.get(word) {
                        result = Some(*filter);
                    }
                }
            }
        }
        result
    }
}

/// The pattern and what follows it. A pattern in quotes is written as in C.
fn split_pattern(line: &str) -> Option<(String, &str)> {
    let Some(quoted) = line.strip_prefix('"') else {
        let (pattern, rest) = line.split_once(|c: char| c.is_whitespace())?;
        return Some((pattern.to_owned(), rest));
    };
    let mut pattern = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((pattern, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                't' => pattern.push('\t'),
                'n' => pattern.push('\n'),
                // The other escapes of C do not occur in names that we serve.
                other => pattern.push(other),
            },
            other => pattern.push(other),
        }
    }
    None
}

fn rule(pattern: &str, filter: Filter) -> Option<Rule> {
    // Negative patterns are forbidden there, and those of folders match no file.
    if pattern.starts_with('!') || pattern.ends_with('/') {
        return None;
    }
    let name_only = !pattern.contains('/');
    let glob = GlobBuilder::new(pattern.trim_start_matches('/'))
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .ok()?;
    Some(Rule {
        matcher: glob.compile_matcher(),
        name_only,
        filter,
    })
}

/// The line that `git lfs track` writes for a path, which is escaped.
pub(crate) fn track_line(path: &str) -> String {
    let mut escaped = String::new();
    for c in path.chars() {
        match c {
            ' ' | '\t' => escaped.push_str("[[:space:]]"),
            '*' | '?' | '[' | '\\' | '"' | '#' | '!' => {
                escaped.push('\\');
                escaped.push(c);
            }
            other => escaped.push(other),
        }
    }
    format!("/{escaped} filter=lfs diff=lfs merge=lfs -text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], lfs: &[&str], plain: &[&str]) {
        let mut attributes = Attributes::default();
        for (folder, content) in files {
            attributes.add(folder, content.as_bytes());
        }
        for path in lfs {
            assert!(attributes.is_lfs(path), "{path} is LFS");
        }
        for path in plain {
            assert!(!attributes.is_lfs(path), "{path} is not LFS");
        }
    }

    #[test]
    fn the_lines_of_hugging_face_are_understood() {
        check(
            &[(
                "",
                "*.safetensors filter=lfs diff=lfs merge=lfs -text\n\
                saved_model/**/* filter=lfs diff=lfs merge=lfs -text\n\
                *tfevents* filter=lfs diff=lfs merge=lfs -text\n\
                tokenizer.json filter=lfs diff=lfs merge=lfs -text\n",
            )],
            &[
                "m.safetensors",
                "a/b/m.safetensors",
                "saved_model/x/y",
                "saved_model/x",
                "x/tfevents.1",
                "tokenizer.json",
                "sub/tokenizer.json",
            ],
            &["config.json", "safetensors", "x/saved_model/y"],
        );
    }

    #[test]
    fn the_last_match_and_the_deeper_file_win() {
        check(
            &[
                (
                    "",
                    "*.bin filter=lfs\nsmall.bin -filter\n/only/here.txt filter=lfs\n# *.md filter=lfs",
                ),
                ("deep", "*.bin !filter\nkept.bin filter=lfs"),
            ],
            &[
                "a.bin",
                "only/here.txt",
                "deep/kept.bin",
                "other/deep/a.bin",
            ],
            &[
                "small.bin",
                "x/small.bin",
                "x/only/here.txt",
                "deep/a.bin",
                "deep/er/a.bin",
                "a.md",
            ],
        );
    }

    #[test]
    fn macros_quotes_and_other_filters_are_understood() {
        check(
            &[(
                "",
                "[attr]big filter=lfs -text\n*.pt big\n\"with space.x\" filter=lfs\n\
                *.enc filter=crypt\n!*.neg filter=lfs\nfolder/ filter=lfs\n",
            )],
            &["a.pt", "with space.x"],
            &["a.enc", "a.neg", "folder/x", "with"],
        );
    }

    #[test]
    fn the_line_of_a_path_matches_that_path_only() {
        for path in ["a.bin", "dir/model.safetensors", "we[ir]d*.x", "q?.y"] {
            check(
                &[("", &track_line(path))],
                &[path],
                &["other", "x/a.bin", "qq.y", "weird.x"],
            );
        }
    }
}
