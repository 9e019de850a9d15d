//! Which files `.gitattributes` give to LFS.
//!
//! Only the attribute `filter` is asked for, by git's own rules: what gitattributes(5) says, and
//! where that is silent, what git's `attr.c` and `dir.c` do. Lines and patterns are read and
//! matched by gitoxide; a property test compares the answers with those of `git check-attr`.
//!
//! Invariant: what a repository writes costs a bounded time. See [`TooCostly`].

#[cfg(test)]
mod tests;
mod worktree;

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
};

use bstr::{BStr, ByteSlice as _};
use gix_attributes::{StateRef, parse::Kind};
use gix_glob::{Pattern, pattern::Mode, wildmatch};
pub(crate) use worktree::is_lfs as is_lfs_in_worktree;

/// The file of a folder that holds its rules.
const ATTRIBUTES: &str = ".gitattributes";
/// Lines of this length and longer are ignored, as by git.
pub(crate) const MAX_LINE_BYTES: usize = 2048;
/// Most `*` in one pattern. The library gives up beyond 64, which would be a silent "no".
const MAX_STARS: usize = 48;
/// Most `**` in one pattern: each may double the time of a match.
const MAX_DOUBLE_STARS: u32 = 6;
/// Most comparisons of a byte for all files of one walk; some seconds.
const MAX_STEPS: u64 = 1 << 29;

/// The rules of all `.gitattributes` of a commit.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// By folder (empty for the root); the last rule first.
    files: HashMap<String, Vec<Rule>>,
    /// Rules that stand before those of all files, and after them.
    first: Vec<Rule>,
    last: Vec<Rule>,
    /// What macros set; the last definition holds.
    macros: HashMap<String, Vec<Assignment>>,
    steps: Cell<u64>,
}

/// The rules cannot be followed in a bounded time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooCostly {
    /// One pattern.
    #[error("line {line} has a pattern with more than 48 `*` or more than 6 `**`")]
    Pattern {
        /// Its line, from 1.
        line: usize,
    },
    /// All together.
    #[error("there are too many rules for so many files: use patterns such as `*.safetensors`")]
    Rules,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// Comparisons for each byte of a name.
    cost: u64,
    assignments: Vec<Assignment>,
}

#[derive(Clone, Debug)]
struct Assignment {
    name: String,
    state: State,
}

/// The value that a file has for an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Set,
    Lfs,
    /// Unset, another value, or `!filter`: as if nothing had been said.
    Other,
}

impl Attributes {
    /// Takes in the `.gitattributes` of `folder`; the root's (`""`) may define macros. A line that
    /// git cannot read is ignored here as there.
    pub(crate) fn add(&mut self, folder: &str, content: &[u8]) -> Result<(), TooCostly> {
        let rules = self.read(folder.is_empty(), content)?;
        self.files.insert(folder.to_owned(), rules);
        Ok(())
    }

    /// Takes in rules that stand before those of all files, and may define macros.
    fn add_first(&mut self, content: &[u8]) -> Result<(), TooCostly> {
        self.first = self.read(true, content)?;
        Ok(())
    }

    /// Takes in rules that stand after those of all files, and may define macros.
    fn add_last(&mut self, content: &[u8]) -> Result<(), TooCostly> {
        self.last = self.read(true, content)?;
        Ok(())
    }

    /// The rules of a file, the last first.
    fn read(&mut self, has_macros: bool, content: &[u8]) -> Result<Vec<Rule>, TooCostly> {
        let mut rules = Vec::new();
        // Line by line, so that one that is too long is left out before it is read.
        let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        for (number, line) in text.split_str("\n").enumerate() {
            // git reads lines as C strings.
            let line = line.split_str("\0").next().unwrap_or_default();
            if line.len() >= MAX_LINE_BYTES {
                continue;
            }
            let Some(Ok((kind, assignments, _))) = gix_attributes::parse(line).next() else {
                continue;
            };
            let Ok(assignments) = assignments
                .map(|found| {
                    found.map(|found| Assignment {
                        name: found.name.as_str().to_owned(),
                        state: state(found.state),
                    })
                })
                .collect::<Result<Vec<_>, _>>()
            else {
                continue;
            };
            match kind {
                Kind::Macro(name) if has_macros => {
                    self.macros.insert(name.as_str().to_owned(), assignments);
                }
                Kind::Macro(_) => {}
                // A pattern of folders matches no file.
                Kind::Pattern(pattern) if pattern.mode.contains(Mode::MUST_BE_DIR) => {}
                Kind::Pattern(pattern) => {
                    let cost = cost(&pattern).ok_or(TooCostly::Pattern { line: number + 1 })?;
                    rules.push(Rule {
                        pattern,
                        cost,
                        assignments,
                    });
                }
            }
        }
        rules.reverse();
        Ok(rules)
    }

    /// Lets what was spent so far not count.
    fn begin(&self) {
        self.steps.set(0);
    }

    /// Whether the file at `path` has `filter=lfs`.
    pub(crate) fn is_lfs(&self, path: &str) -> Result<bool, TooCostly> {
        let mut decided = HashSet::new();
        if let Some(filter) = self.filter(&self.first, path, &mut decided)? {
            return Ok(filter == State::Lfs);
        }
        let mut folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        loop {
            let below = match folder.len() {
                0 => path,
                len => &path[len + 1..],
            };
            if let Some(rules) = self.files.get(folder)
                && let Some(filter) = self.filter(rules, below, &mut decided)?
            {
                return Ok(filter == State::Lfs);
            }
            if folder.is_empty() {
                let filter = self.filter(&self.last, path, &mut decided)?;
                return Ok(filter == Some(State::Lfs));
            }
            folder = folder.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }

    /// What the rules of one file say of `path`, which begins where the file lies.
    fn filter<'a>(
        &'a self,
        rules: &'a [Rule],
        path: &str,
        decided: &mut HashSet<&'a str>,
    ) -> Result<Option<State>, TooCostly> {
        for rule in rules {
            // Without wildcards it fails at its first byte, mostly.
            let bytes = match rule.pattern.first_wildcard_pos {
                Some(_) => 1 + path.len() as u64,
                None => 1,
            };
            self.spend(rule.cost * bytes)?;
            if !rule.matches(path.as_bytes().as_bstr()) {
                continue;
            }
            if let Some(filter) = self.fill(&rule.assignments, decided) {
                return Ok(Some(filter));
            }
        }
        Ok(None)
    }

    /// Decides what is undecided, the last assignment first, and follows macros that are set. The
    /// value of `filter` as soon as it is decided.
    fn fill<'a>(
        &'a self,
        assignments: &'a [Assignment],
        decided: &mut HashSet<&'a str>,
    ) -> Option<State> {
        let mut pending: Vec<&Assignment> = assignments.iter().collect();
        // The last of a list is what comes next.
        while let Some(next) = pending.pop() {
            if !decided.insert(&next.name) {
                continue;
            }
            if next.name == "filter" {
                return Some(next.state);
            }
            if next.state == State::Set
                && let Some(more) = self.macros.get(&next.name)
            {
                pending.extend(more);
            }
        }
        None
    }

    fn spend(&self, steps: u64) -> Result<(), TooCostly> {
        let spent = self.steps.get() + steps;
        self.steps.set(spent);
        if spent > MAX_STEPS {
            return Err(TooCostly::Rules);
        }
        Ok(())
    }
}

impl Rule {
    /// As `match_basename` and `match_pathname` of git's `dir.c`: what stands before the first
    /// wildcard is compared first, and the rest is matched as a pattern of its own.
    fn matches(&self, path: &BStr) -> bool {
        let name_only = self.pattern.mode.contains(Mode::NO_SUB_DIR)
            && !self.pattern.mode.contains(Mode::ABSOLUTE);
        let value = match path.rfind_byte(b'/') {
            Some(slash) if name_only => path[slash + 1..].as_bstr(),
            _ => path,
        };
        if name_only || self.pattern.first_wildcard_pos.is_none() {
            let flags = wildmatch::Mode::NO_MATCH_SLASH_LITERAL;
            return self.pattern.matches(value, flags);
        }
        let literal = self.pattern.first_wildcard_pos.unwrap_or_default();
        let (prefix, pattern) = self.pattern.text.split_at(literal);
        value.strip_prefix(prefix).is_some_and(|rest| {
            gix_glob::wildmatch(
                pattern.as_bstr(),
                rest.as_bstr(),
                wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
            )
        })
    }
}

fn state(state: StateRef<'_>) -> State {
    match state {
        StateRef::Set => State::Set,
        StateRef::Value(value) if value.as_bstr() == "lfs" => State::Lfs,
        StateRef::Value(_) | StateRef::Unset | StateRef::Unspecified => State::Other,
    }
}

/// Comparisons for each byte of a name; `None` if there may be too many.
fn cost(pattern: &Pattern) -> Option<u64> {
    if pattern.first_wildcard_pos.is_none() {
        return Some(1);
    }
    let stars = pattern.text.find_iter("*").count();
    let double = pattern.text.find_iter("**").count() as u32;
    (stars <= MAX_STARS && double <= MAX_DOUBLE_STARS).then(|| (1 + stars as u64) << double)
}

/// The line that `git lfs track` writes for a path, which is escaped; `None` if git would not read
/// so long a line.
pub(crate) fn track_line(path: &str) -> Option<String> {
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
    let line = format!("/{escaped} filter=lfs diff=lfs merge=lfs -text");
    (line.len() < MAX_LINE_BYTES).then_some(line)
}
