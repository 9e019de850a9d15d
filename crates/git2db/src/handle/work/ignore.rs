//! Which files are ignored, by git's own rules: gitignore(5), and where that is silent, what git's
//! `dir.c` does. libgit2 has rules of its own. A property test compares with stock git.
//!
//! Read are the `.gitignore` of each folder, `info/exclude` and what the repository's own
//! `core.excludesFile` names; no configuration of the machine.

use std::{fs, io, path::Path};

use bstr::ByteSlice as _;
use git2::{Error, Index, Repository};
use gix_glob::wildmatch;

use super::odd;

const NAME: &str = ".gitignore";
/// Most `*` in one pattern. The library gives up beyond 64, which would be a silent "no".
const MAX_STARS: usize = 48;
/// Most `**` in one pattern: each may double the time of a match.
const MAX_DOUBLE_STARS: usize = 6;
/// What an entry of the index has that is not to be in the worktree.
const SKIP_WORKTREE: u16 = 0x4000;

/// The rules that hold for the entries of one folder.
pub(super) struct Ignore<'a> {
    root: &'a Path,
    repo: &'a Repository,
    index: &'a Index,
    /// Those of the repository: what counts less comes first.
    outer: Vec<Vec<Rule>>,
    /// Those of the folders from the root on, with the length of their paths.
    folders: Vec<(usize, Vec<Rule>)>,
}

/// One pattern, as git's `path_pattern`.
struct Rule {
    text: Vec<u8>,
    /// Bytes before the first wildcard.
    literal: usize,
    is_negative: bool,
    folders_only: bool,
    /// It has no slash, and is about names alone.
    is_name: bool,
}

impl<'a> Ignore<'a> {
    /// Those of the repository and of no folder yet.
    pub(super) fn of(
        root: &'a Path,
        repo: &'a Repository,
        index: &'a Index,
    ) -> Result<Self, Error> {
        let configured = repo.config()?.get_path("core.excludesFile").ok();
        let exclude = repo.commondir().join("info").join("exclude");
        let mut outer = Vec::new();
        for path in configured
            .map(|path| root.join(path))
            .iter()
            .chain([&exclude])
        {
            outer.push(rules(path, &read(path, true)?.unwrap_or_default())?);
        }
        Ok(Self {
            root,
            repo,
            index,
            outer,
            folders: Vec::new(),
        })
    }

    /// Goes into a folder, which is not ignored: a path that ends with a slash, or nothing for the
    /// root.
    pub(super) fn enter(&mut self, folder: &[u8]) -> Result<(), Error> {
        let name = [folder, NAME.as_bytes()].concat();
        let path = self.root.join(odd::path(&name));
        let text = match read(&path, false)? {
            Some(text) => text,
            None => self.skipped(&name)?,
        };
        self.folders.push((folder.len(), rules(&path, &text)?));
        Ok(())
    }

    /// Goes out of the folder that was entered last.
    pub(super) fn leave(&mut self) {
        self.folders.pop();
    }

    /// Whether an entry of the folder that was entered last is ignored.
    pub(super) fn is_ignored(&self, path: &[u8], is_folder: bool) -> bool {
        let nearest = self.folders.iter().rev();
        let nearest = nearest.map(|(len, rules)| (&path[*len..], rules));
        let outer = self.outer.iter().rev().map(|rules| (path, rules));
        let decides = nearest.chain(outer).find_map(|(below, rules)| {
            let mut last = rules.iter().rev();
            last.find(|rule| rule.matches(below, is_folder))
        });
        decides.is_some_and(|rule| !rule.is_negative)
    }

    /// Whether the path is ignored, or lies below a folder that is; before any folder was entered.
    pub(super) fn ignores(mut self, path: &str, is_folder: bool) -> Result<bool, Error> {
        self.enter(b"")?;
        for (slash, _) in path.match_indices('/') {
            if self.is_ignored(&path.as_bytes()[..slash], true) {
                return Ok(true);
            }
            self.enter(&path.as_bytes()[..=slash])?;
        }
        Ok(self.is_ignored(path.as_bytes(), is_folder))
    }

    /// What the index has of a file that is not to be in the worktree.
    fn skipped(&self, name: &[u8]) -> Result<Vec<u8>, Error> {
        let entry = self.index.get_path(odd::path(name), 0);
        match entry.filter(|entry| entry.flags_extended & SKIP_WORKTREE != 0) {
            Some(entry) => Ok(self.repo.find_blob(entry.id)?.content().to_vec()),
            None => Ok(Vec::new()),
        }
    }
}

/// The file, if there is one. A link is followed only outside the worktree.
fn read(path: &Path, follows: bool) -> Result<Option<Vec<u8>>, Error> {
    let found = if follows {
        fs::metadata(path)
    } else {
        fs::symlink_metadata(path)
    };
    match found.and_then(|found| found.is_file().then(|| fs::read(path)).transpose()) {
        Ok(text) => Ok(text),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error::from_str(&format!(
            "cannot read {}: {e}",
            path.display()
        ))),
    }
}

/// The patterns of a file, in its order.
fn rules(path: &Path, text: &[u8]) -> Result<Vec<Rule>, Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut rules = Vec::new();
    for (at, line) in text.split_str("\n").enumerate() {
        if line.starts_with(b"#") {
            continue;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // git reads lines as C strings.
        let line = trimmed(line.split_str("\0").next().unwrap_or_default());
        if line.is_empty() {
            continue;
        }
        let stars = line.find_iter("*").count();
        if stars > MAX_STARS || line.find_iter("**").count() > MAX_DOUBLE_STARS {
            return Err(Error::from_str(&format!(
                "line {} of {} has a pattern with more than {MAX_STARS} `*` or more than \
                 {MAX_DOUBLE_STARS} `**`",
                at + 1,
                path.display()
            )));
        }
        rules.push(Rule::parse(line));
    }
    Ok(rules)
}

/// Without the spaces at its end that are not escaped.
fn trimmed(line: &[u8]) -> &[u8] {
    let mut end = None;
    let mut bytes = line.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b' ' => end = end.or(Some(at)),
            b'\\' => {
                if bytes.next().is_none() {
                    return line;
                }
                end = None;
            }
            _ => end = None,
        }
    }
    &line[..end.unwrap_or(line.len())]
}

impl Rule {
    fn parse(line: &[u8]) -> Self {
        let pattern = line.strip_prefix(b"!").unwrap_or(line);
        let text = pattern.strip_suffix(b"/").unwrap_or(pattern);
        let literal = text.find_byteset(b"*?[\\").unwrap_or(text.len());
        Self {
            text: text.to_vec(),
            literal,
            is_negative: line.starts_with(b"!"),
            folders_only: pattern.ends_with(b"/"),
            is_name: !text.contains(&b'/'),
        }
    }

    /// As `match_basename` and `match_pathname` of git's `dir.c`.
    fn matches(&self, below: &[u8], is_folder: bool) -> bool {
        if self.folders_only && !is_folder {
            return false;
        }
        if self.is_name {
            let name = below.rfind_byte(b'/').map_or(below, |at| &below[at + 1..]);
            return if self.literal == self.text.len() {
                name == self.text
            } else {
                let anything = wildmatch::Mode::empty();
                gix_glob::wildmatch(self.text.as_bstr(), name.as_bstr(), anything)
            };
        }
        let (text, literal) = match self.text.strip_prefix(b"/") {
            Some(text) => (text, self.literal - 1),
            None => (self.text.as_slice(), self.literal),
        };
        let (before, pattern) = text.split_at(literal);
        below.strip_prefix(before).is_some_and(|rest| {
            if pattern.is_empty() {
                return rest.is_empty();
            }
            gix_glob::wildmatch(
                pattern.as_bstr(),
                rest.as_bstr(),
                wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
            )
        })
    }
}
