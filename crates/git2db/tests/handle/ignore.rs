//! Which files are ignored: the same as for stock git, whatever the patterns.

use std::{collections::BTreeSet, fs};

use hyprstream_git2db::handle::{State, StatusOptions, WorktreeError};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::desk::{Desk, cases};

/// Files that git lists, without those that it ignores if `with_rules`.
fn by_git(desk: &Desk, with_rules: bool) -> BTreeSet<String> {
    let mut words = vec!["ls-files", "--others", "-z"];
    if with_rules {
        words.push("--exclude-standard");
    }
    let listed = desk.git(&words);
    listed.split_terminator('\0').map(str::to_owned).collect()
}

fn by_us(desk: &Desk, options: StatusOptions, state: &State) -> BTreeSet<String> {
    let found = desk.tree.status(options).unwrap();
    let those = found.into_iter().filter(|file| file.state == *state);
    those.map(|file| file.path).collect()
}

/// Whether we see what git sees in the worktree.
fn compare(desk: &Desk, shown: &dyn std::fmt::Debug) -> Result<(), TestCaseError> {
    let (all, untracked) = (by_git(desk, false), by_git(desk, true));
    let ignored: BTreeSet<String> = all.difference(&untracked).cloned().collect();
    let options = StatusOptions {
        untracked: true,
        ignored: true,
    };
    let found = by_us(desk, options, &State::Untracked);
    prop_assert_eq!(&found, &untracked, "untracked by {:?}", shown);
    let found = by_us(desk, options, &State::Ignored);
    prop_assert_eq!(&found, &ignored, "ignored by {:?}", shown);
    let found = by_us(desk, StatusOptions::default(), &State::Untracked);
    prop_assert_eq!(&found, &untracked, "without ignored by {:?}", shown);
    for path in ignored.iter().take(3) {
        let added = desk.tree.add(&[path]);
        let is_refused = matches!(added, Err(WorktreeError::Ignored { .. }));
        prop_assert!(
            is_refused,
            "{:?} is added by {:?}: {:?}",
            path,
            shown,
            added
        );
    }
    desk.tree.add_all().unwrap();
    let rest = by_git(desk, false);
    prop_assert_eq!(&rest, &ignored, "what is not added by {:?}", shown);
    Ok(())
}

fn name() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a", "b", "ab", "a b", "a.b", "*", "#a", "!a", "[a]", "A", "\u{fc}", "a\"b", "-", "a ",
        "a]",
    ]);
    vec(part, 1..3).prop_map(|parts| parts.concat())
}

fn path() -> impl Strategy<Value = String> {
    vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn line() -> impl Strategy<Value = String> {
    let head = select(vec![
        "", "", "", "", "!", "!", "/", "#", "\\!", "\\#", " ", "!/",
    ]);
    let part = prop_oneof![
        3 => name(),
        2 => select(vec![
            "*", "?", "**", "**/", "/**", "/**/", "/", "[ab]", "[!a]", "[^b]", "[a-b]", "[]a]",
            "[[:alpha:]]", "[[:space:]]", "[", "\\a", "\\*", "\\[a]", "\\ ", "\\", "\"", "//",
        ]).prop_map(str::to_owned),
    ];
    let body = vec(part, 1..5).prop_map(|parts| parts.concat());
    let end = select(vec!["", "", "", "/", " ", "  ", "\\ ", "\\  ", "\t", "/ "]);
    let line_end = select(vec!["\n", "\n", "\r\n"]);
    (head, body, end, line_end).prop_map(|(h, b, e, l)| format!("{h}{b}{e}{l}"))
}

fn file() -> impl Strategy<Value = String> {
    vec(line(), 0..5).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn what_is_ignored_is_what_git_ignores(
        root in file(),
        nested in vec((path(), file()), 0..3),
        exclude in file(),
        paths in vec(path(), 12),
        is_tracked in vec(any::<bool>(), 12),
    ) {
        let desk = Desk::new();
        // What is a folder already is no file, and the other way round.
        let put = |path: &str, content: &str| {
            let at = desk.path(path);
            fs::create_dir_all(at.parent().unwrap()).and_then(|()| fs::write(at, content)).is_ok()
        };
        for (path, is_tracked) in paths.iter().zip(&is_tracked) {
            if put(path, "x") && *is_tracked && path.len() % 3 == 0 {
                desk.git(&["add", "-f", "--", &format!(":(literal){path}")]);
            }
        }
        put(".gitignore", &root);
        for (folder, content) in &nested {
            put(&format!("{folder}/.gitignore"), content);
        }
        let info = desk.handle.path().join("info");
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("exclude"), &exclude).unwrap();
        compare(&desk, &(&root, &nested, &exclude, &paths))?;
    }
}
