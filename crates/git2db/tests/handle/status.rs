//! Our status is that of `git status`, whatever was done to the files.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use hyprstream_git2db::{
    Digest,
    handle::{Change, Conflict, State, StatusOptions, Target},
    lfs::Pointer,
};
use proptest::prelude::*;

use crate::{
    desk::{Desk, cases, lines, try_git},
    support::git::command,
};

/// A status in words of git's: its two letters, where it moved from, the path.
fn ours(desk: &Desk, ignored: bool) -> Vec<String> {
    let options = StatusOptions {
        untracked: true,
        ignored,
    };
    let letter = |change: &Option<Change>| match change {
        None => '.',
        Some(Change::Added) => 'A',
        Some(Change::Modified) => 'M',
        Some(Change::Deleted) => 'D',
        Some(Change::Renamed { .. }) => 'R',
        Some(Change::TypeChanged) => 'T',
    };
    let status = desk.tree.status(options).unwrap();
    let mut found: Vec<String> = status
        .into_iter()
        .map(|file| {
            let (kind, from) = match &file.state {
                State::Untracked => ("??".to_owned(), None),
                State::Ignored => ("!!".to_owned(), None),
                State::Conflicted(conflict) => (
                    match conflict {
                        Conflict::BothDeleted => "DD",
                        Conflict::AddedByUs => "AU",
                        Conflict::DeletedByThem => "UD",
                        Conflict::AddedByThem => "UA",
                        Conflict::DeletedByUs => "DU",
                        Conflict::BothAdded => "AA",
                        Conflict::BothModified => "UU",
                    }
                    .to_owned(),
                    None,
                ),
                State::Tracked { staged, unstaged } => {
                    let from = match staged {
                        Some(Change::Renamed { from }) => Some(from.clone()),
                        _ => None,
                    };
                    (format!("{}{}", letter(staged), letter(unstaged)), from)
                }
            };
            format!("{kind} {} {}", from.unwrap_or_default(), file.path)
        })
        .collect();
    found.sort();
    found
}

fn theirs(desk: &Desk, ignored: bool) -> Vec<String> {
    let mut args = vec!["status", "--porcelain=v2", "-uall", "-z"];
    if ignored {
        args.push("--ignored");
    }
    let (text, fine) = try_git(desk.tree.path(), &args);
    assert!(fine);
    let mut found = Vec::new();
    let mut records = text.split_terminator('\0');
    while let Some(record) = records.next() {
        let fields: Vec<&str> = record.split(' ').collect();
        let rest = |from: usize| fields[from..].join(" ");
        found.push(match fields[0] {
            "1" => format!("{}  {}", fields[1], rest(8)),
            "2" => format!("{} {} {}", fields[1], records.next().unwrap(), rest(9)),
            "u" => format!("{}  {}", fields[1], rest(10)),
            "?" => format!("??  {}", rest(1)),
            _ => format!("!!  {}", rest(1)),
        });
    }
    found.sort();
    found
}

#[track_caller]
fn compare(desk: &Desk) {
    // Ours first: it is not to profit from what git notes in the index.
    for ignored in [false, true] {
        let ours = ours(desk, ignored);
        assert_eq!(ours, theirs(desk, ignored));
    }
}

const PATHS: [&str; 8] = [
    "a",
    "b",
    "dir/c",
    "dir/d",
    "dir/sub/e",
    "x.log",
    "w.bin",
    "dir/v.bin",
];

/// Does something to the file `path`, with stock git or without.
fn act(desk: &Desk, kind: u8, path: &str, text: u8) {
    let place = desk.path(path);
    let is_free = place
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(desk.tree.path()))
        .all(|above| !above.exists() || above.is_dir())
        && !place.is_dir();
    let quiet = |args: &[&str]| {
        try_git(desk.tree.path(), args);
    };
    match kind {
        0..=2 if is_free => {
            let _ = fs::remove_file(&place);
            desk.write(path, format!("{}{text}\n", lines(path)));
        }
        3 => {
            let _ = fs::remove_file(&place);
        }
        4 => quiet(&["add", "-A"]),
        5 if place.exists() => quiet(&["add", path]),
        6 if place.is_file() => {
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        7 if is_free && place.parent().unwrap().is_dir() => {
            let _ = fs::remove_file(&place);
            symlink("target", &place).unwrap();
        }
        8 => quiet(&["mv", "-k", path, &format!("moved-{text}")]),
        9 => quiet(&["reset", "-q", "--", path]),
        10 if place.is_file() => {
            fs::remove_file(&place).unwrap();
            desk.write(&format!("{path}/below"), "a folder now");
        }
        11 => quiet(&["commit", "-q", "-m", "x"]),
        12 => quiet(&["rm", "-q", "--cached", path]),
        _ => {}
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_status_is_that_of_git(
        steps in proptest::collection::vec((0..13_u8, 0..PATHS.len(), 0..3_u8), 1..24),
        through_us in any::<bool>(),
    ) {
        let desk = Desk::new();
        desk.git(&["lfs", "install", "--local"]);
        desk.write(".gitattributes", "*.bin filter=lfs -text\n");
        desk.write(".gitignore", "*.log\n");
        for path in &PATHS[..5] {
            desk.write(path, lines(path));
        }
        desk.write("w.bin", "weights");
        desk.commit("Begin");
        for (kind, path, text) in steps {
            act(&desk, kind, PATHS[path], text);
        }
        compare(&desk);
        // What we stage, or take back, leaves git's view as git's own command would.
        if through_us {
            desk.tree.add_all().unwrap();
            let staged = desk.git(&["write-tree"]);
            desk.git(&["add", "-A"]);
            prop_assert_eq!(desk.git(&["write-tree"]), staged);
        } else {
            desk.tree.unstage(None).unwrap();
            prop_assert_eq!(desk.git(&["diff", "--cached", "--name-only"]), "");
        }
        compare(&desk);
        desk.check_objects();
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn switching_back_and_forth_leaves_what_was_committed(
        first in proptest::collection::vec((0..13_u8, 0..PATHS.len(), 0..3_u8), 1..24),
        second in proptest::collection::vec((0..13_u8, 0..PATHS.len(), 0..3_u8), 1..24),
    ) {
        let desk = Desk::with_lfs();
        desk.write(".gitattributes", "*.bin filter=lfs -text\n");
        let mut commits = Vec::new();
        for steps in [first, second] {
            for (kind, path, text) in steps {
                act(&desk, kind, PATHS[path], text);
            }
            // Ours, so that the store has what is large.
            desk.tree.unstage(None).unwrap();
            desk.write("always", commits.len().to_string());
            commits.push(desk.commit("State"));
        }
        for (round, commit) in commits.iter().cycle().take(4).enumerate() {
            desk.tree.switch(Target::Commit(commit), round % 2 == 1).unwrap();
            prop_assert_eq!(desk.git(&["status", "--porcelain"]), "");
            prop_assert_eq!(desk.head(), commit.clone());
            // Not by what the index notes of the files, but by what is in them.
            let clone = desk.dir.path().join(format!("clone-{round}"));
            let added = command(desk.handle.path())
                .args(["worktree", "add", "-q", "--detach", clone.to_str().unwrap()])
                .arg(commit.as_str())
                .env("GIT_LFS_SKIP_SMUDGE", "1")
                .status()
                .unwrap();
            prop_assert!(added.success());
            desk.git(&["update-index", "--really-refresh"]);
            prop_assert_eq!(listing(desk.tree.path()), listing(&clone));
        }
    }
}

/// Files below a folder with their modes and contents; of large files, their pointers.
fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_symlink() {
                found.push(format!(
                    "{name} -> {}",
                    fs::read_link(&path).unwrap().display()
                ));
            } else if name != ".git" {
                let mode = metadata.permissions().mode() & 0o100;
                let mut content = fs::read(&path).unwrap();
                if path.extension().is_some_and(|end| end == "bin")
                    && !content.starts_with(b"version https://git-lfs")
                {
                    let (oid, size) = (Digest::of(&content), content.len() as u64);
                    content = Pointer { oid, size }.to_string().into_bytes();
                }
                found.push(format!(
                    "{name} {mode} {}",
                    String::from_utf8(content).unwrap()
                ));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_kind_of_conflict_is_told() {
    let desk = Desk::new();
    for path in ["uu", "du", "ud"] {
        desk.write(path, lines(path));
    }
    let base = desk.commit("Base");
    desk.write("uu", "ours\n");
    desk.write("aa", "ours\n");
    desk.write("ud", "ours\n");
    fs::remove_file(desk.path("du")).unwrap();
    desk.commit("Ours");
    desk.git(&["switch", "-q", "-c", "side", base.as_str()]);
    desk.write("uu", "theirs\n");
    desk.write("aa", "theirs\n");
    desk.write("du", "theirs\n");
    fs::remove_file(desk.path("ud")).unwrap();
    desk.commit("Theirs");
    let (_, merged) = try_git(desk.tree.path(), &["merge", "-q", "main"]);
    assert!(!merged);
    compare(&desk);
    assert_eq!(
        ours(&desk, false),
        ["AA  aa", "DU  ud", "UD  du", "UU  uu"],
        "seen from the side"
    );
}
