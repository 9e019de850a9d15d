//! Which files a path names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{DataError, lines::reading};

/// What names of files of a folder, or of a pattern, end with.
const ENDINGS: [&str; 4] = [".jsonl", ".jsonl.gz", ".ndjson", ".parquet"];
/// Words by which files are called that are parts of one data set, as Hugging Face's `datasets` has
/// them.
const SPLITS: [&[&str]; 3] = [
    &["train", "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];

/// The files that are read for a path.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// By name.
    pub(super) files: Vec<PathBuf>,
    /// Whether the path is that of a file, and not of several.
    pub(super) is_one: bool,
    /// Names of those that the path names too, but that are for something else.
    pub(super) left_out: Vec<String>,
    /// Whether the path is that of a file which is for something else too.
    pub(super) is_shared: bool,
}

/// Whether a path may stand for several files of a folder: `*` in the last of its names is any text,
/// `?` any letter.
#[must_use]
pub fn is_pattern(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains(['*', '?'])
}

/// The files to read for `path`. Of a folder or a pattern, files that one of `apart` names are left
/// out.
///
/// # Errors
/// Nothing of it can be read, nothing is left, or a folder holds parts of a data set that are learnt
/// from and judged by.
pub(super) fn chosen(path: &Path, apart: &[PathBuf]) -> Result<Chosen, DataError> {
    let refuse = |why: String| DataError::File {
        path: path.to_owned(),
        why,
    };
    let mut others = apart.iter().filter_map(|path| named(path).ok());
    let all = match named(path)? {
        Named::One(file) => {
            let same = real(&file);
            let is_shared = |other| matches!(other, Named::One(other) if real(&other) == same);
            return Ok(Chosen {
                is_shared: others.any(is_shared),
                files: vec![file],
                is_one: true,
                ..Chosen::default()
            });
        }
        Named::Several(files) => files,
    };
    if all.is_empty() {
        let ends = format!("whose name ends with {}", ENDINGS.join(", "));
        return Err(refuse(if is_pattern(path) {
            format!("it fits no file {ends}")
        } else {
            format!("it holds no file {ends}")
        }));
    }
    let others: BTreeSet<PathBuf> = others
        .flat_map(|other| match other {
            Named::One(file) => vec![file],
            Named::Several(files) => files,
        })
        .map(|file| real(&file))
        .collect();
    let (left_out, files): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|file| others.contains(&real(file)));
    let left_out: Vec<String> = left_out.iter().map(|file| name(file)).collect();
    if files.is_empty() {
        return Err(refuse(format!(
            "every file that it names is named for something else of the job too ({}): give data, \
             eval and gates files of their own",
            left_out.join(", ")
        )));
    }
    if !is_pattern(path)
        && let Some(why) = several_splits(&files)
    {
        return Err(refuse(why));
    }
    Ok(Chosen {
        files,
        left_out,
        ..Chosen::default()
    })
}

enum Named {
    One(PathBuf),
    /// By name.
    Several(Vec<PathBuf>),
}

fn named(path: &Path) -> Result<Named, DataError> {
    // A file whose name looks like a pattern is that file.
    let error = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(Named::Several(listed(path, "*")?)),
        Ok(_) => return Ok(Named::One(path.to_owned())),
        Err(error) => error,
    };
    if !is_pattern(path) {
        return Err(reading(path)(error));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.to_string_lossy().contains(['*', '?']) && !folder.is_dir() {
        return Err(DataError::File {
            path: path.to_owned(),
            why: "* and ? may stand in the names of files alone: write the folder as it is called"
                .to_owned(),
        });
    }
    Ok(Named::Several(listed(folder, &name(path))?))
}

/// The files of a folder that the pattern fits, by name.
fn listed(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading(folder))? {
        let path = entry.map_err(reading(folder))?.path();
        let name = name(&path);
        let is_data = ENDINGS.iter().any(|ending| name.ends_with(ending));
        // Names with a dot before them are links and leftovers of mounts (ConfigMaps).
        if is_data && !name.starts_with('.') && fits(pattern, &name) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the pattern fits the name: `*` any text, `?` any letter, all else itself.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where the last star stands, and from where on it may take one letter more.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || *c == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((stood, took)) => {
                    star = Some((stood, took + 1));
                    (at, from) = (stood + 1, took + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// What to write instead, where these files of a folder are called as several parts of one data set.
fn several_splits(files: &[PathBuf]) -> Option<String> {
    let names: Vec<String> = files.iter().map(|file| name(file)).collect();
    let first_of = |split: &[&str]| {
        names.iter().find_map(|name| {
            let lower = name.to_lowercase();
            let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
            let word = words.find(|word| split.contains(word))?;
            Some((name.as_str(), word.to_owned(), lower.starts_with(word)))
        })
    };
    let found: Vec<_> = SPLITS.iter().filter_map(|split| first_of(split)).collect();
    let [(_, word, begins), _, ..] = found.as_slice() else {
        return None;
    };
    let names: Vec<&str> = found.iter().map(|(name, ..)| *name).collect();
    let star = if *begins { "" } else { "*" };
    Some(format!(
        "its files look like parts of a data set that are not all to be learnt from ({}): name one \
         of them, or write {star}{word}* behind the folder for one part, or * for all",
        names.join(", ")
    ))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What two spellings of one file have in common.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_what_a_shell_would_say() {
        for (pattern, name, expected) in [
            ("train-*.parquet", "train-00000-of-00002.parquet", true),
            ("train-*.parquet", "test-00000-of-00002.parquet", false),
            ("*", "a.jsonl", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*b", "abab", true),
            ("*b*b", "aba", false),
            ("a*", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// The names that are read for `path` in a folder of these files, and those left out.
    #[track_caller]
    fn check(
        files: &[&str],
        path: &str,
        apart: &[&str],
        expected: Result<(&[&str], &[&str]), &str>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let at = |path: &&str| folder.path().join(path);
        let apart: Vec<PathBuf> = apart.iter().map(at).collect();
        match (chosen(&at(&path), &apart), expected) {
            (Ok(found), Ok((read, left_out))) => {
                let files: Vec<String> = found.files.iter().map(|file| name(file)).collect();
                assert_eq!(files, read);
                assert_eq!(found.left_out, left_out);
            }
            (Err(error), Err(expected)) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{error}");
            }
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn what_is_for_eval_and_gates_is_not_learnt_from() {
        let files = ["a.jsonl", "train.jsonl", "valid.jsonl", "README.md"];
        check(
            &files,
            ".",
            &["valid.jsonl"],
            Ok((&["a.jsonl", "train.jsonl"], &["valid.jsonl"])),
        );
        check(
            &files,
            "*.jsonl",
            &["./valid.jsonl", "none.txt", "a*"],
            Ok((&["train.jsonl"], &["a.jsonl", "valid.jsonl"])),
        );
        // Whoever names a file has it.
        check(&files, "train.jsonl", &["."], Ok((&["train.jsonl"], &[])));
        check(&files, ".", &["."], Err("give data, eval and gates files"));
    }

    #[test]
    fn a_file_is_known_to_be_for_two_things_where_both_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.jsonl");
        fs::write(&file, "").unwrap();
        let shared = |apart: &Path| chosen(&file, &[apart.to_owned()]).unwrap().is_shared;
        assert!(shared(&folder.path().join("./a.jsonl")));
        assert!(!shared(folder.path()), "which leaves it out");
    }

    #[test]
    fn a_folder_of_several_splits_is_refused_with_what_to_write() {
        let hub = [
            "test-00000-of-00001.parquet",
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
        ];
        check(&hub, ".", &[], Err("write train* behind the folder"));
        check(&hub, "train-*", &[], Ok((&hub[1..], &[])));
        check(&hub, "*", &[], Ok((&hub, &[])));
        check(&hub, ".", &["test-*"], Ok((&hub[1..], &[hub[0]])));
        let own = ["sql_train.jsonl", "sql_dev.jsonl"];
        check(&own, ".", &[], Err("write *train* behind the folder"));
        check(&hub[..1], ".", &[], Ok((&hub[..1], &[])));
        check(
            &["contest.jsonl", "train.jsonl"],
            ".",
            &[],
            Ok((&["contest.jsonl", "train.jsonl"], &[])),
        );
    }

    #[test]
    fn a_pattern_that_fits_nothing_or_stands_in_a_folder_says_so() {
        check(&["a.jsonl"], "b*", &[], Err("it fits no file whose name"));
        check(&[], "*/a.jsonl*", &[], Err("names of files alone"));
        check(&[], "none", &[], Err("cannot be read"));
        check(
            &["a*.jsonl", "ab.jsonl"],
            "a*.jsonl",
            &[],
            Ok((&["a*.jsonl"], &[])),
        );
    }
}
