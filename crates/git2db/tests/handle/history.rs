//! Log, differences and files of a commit are those of git.

use hyprstream_git2db::{
    CommitId, RepositoryHandle,
    handle::{DifferenceKind, HistoryError, LogRange},
};
use proptest::prelude::*;

use crate::{
    desk::{Desk, Files, Made, bare, cases, import, lines},
    support::git::git,
};

fn file(path: &str, version: u8) -> (String, (bool, String)) {
    let content = format!("{}version {version}\n", lines(path));
    (path.to_owned(), (version % 5 == 4, content))
}

/// A history in which commits follow one or two earlier ones and change a file each.
fn histories() -> impl Strategy<Value = Vec<Made>> {
    let step = (
        any::<u16>(),
        any::<u16>(),
        any::<bool>(),
        0..4_i64,
        0..3_usize,
        0..3_u8,
    );
    proptest::collection::vec(step, 2..16).prop_map(|steps| {
        let mut made: Vec<Made> = Vec::new();
        for (number, (first, second, merge, time, path, version)) in steps.into_iter().enumerate() {
            let mut parents = Vec::new();
            if number > 0 {
                // Mostly the last one, so that lines are long.
                parents.push(number - 1 - usize::from(first) % number.min(3));
                let other = usize::from(second) % number;
                if merge && !parents.contains(&other) {
                    parents.push(other);
                }
            }
            let mut files: Files = parents.first().map_or_else(
                || [file("a", 0), file("dir/b", 0), file("dir/c", 0)].into(),
                |&parent| made[parent].files.clone(),
            );
            let latest = parents.iter().map(|&parent| made[parent].time).max();
            let path = ["a", "dir/b", "new"][path];
            if let Some(&other) = parents.get(1).filter(|_| version == 0) {
                // A merge that takes a file from its other side.
                match made[other].files.get(path) {
                    Some(theirs) => files.insert(path.to_owned(), theirs.clone()),
                    None => files.remove(path),
                };
            } else if version == 2 && path == "new" {
                files.remove(path);
            } else {
                let (path, content) = file(path, version);
                files.insert(path, content);
            }
            made.push(Made {
                parents,
                time: latest.unwrap_or(1_600_000_000) + time,
                files,
            });
        }
        made
    })
}

#[track_caller]
fn compare_log(handle: &RepositoryHandle, range: &LogRange) {
    let (ours, theirs) = logs(handle, range);
    assert_eq!(ours, theirs, "{range:?}");
}

/// Ours and git's.
fn logs(handle: &RepositoryHandle, range: &LogRange) -> (Vec<String>, Vec<String>) {
    let ours: Vec<String> = handle
        .log(range)
        .unwrap()
        .map(|commit| commit.unwrap().id.to_string())
        .collect();
    let mut args = vec!["log".to_owned(), "--format=%H".to_owned()];
    args.extend(range.first_parent.then(|| "--first-parent".to_owned()));
    args.extend(range.limit.map(|limit| format!("-n{limit}")));
    args.extend(range.from.iter().map(ToString::to_string));
    args.extend(range.without.iter().map(|commit| format!("^{commit}")));
    args.push("--".to_owned());
    args.extend(range.path.clone());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let theirs = git(handle.path(), &args);
    (ours, theirs.lines().map(str::to_owned).collect())
}

/// With a path and commits to leave out, git judges a merge by its second parent, which its walk may
/// or may not have found to be left out by then: whether it shows the merge depends on that order. All
/// else is the same.
fn compare_log_beside_merges(handle: &RepositoryHandle, range: &LogRange) {
    let (ours, theirs) = logs(handle, range);
    let without_merges = |ids: Vec<String>| -> Vec<String> {
        let is_merge = |id: &String| {
            let parents = git(handle.path(), &["rev-parse", &format!("{id}^@")]);
            parents.lines().count() > 1
        };
        ids.into_iter().filter(|id| !is_merge(id)).collect()
    };
    let (ours, theirs) = (without_merges(ours), without_merges(theirs));
    assert_eq!(ours, theirs, "{range:?}");
}

/// Status, modes, blobs and paths as `git diff --raw -M` writes them.
fn our_diff(handle: &RepositoryHandle, from: &CommitId, to: &CommitId) -> Vec<String> {
    let mut lines: Vec<String> = handle
        .diff(Some(from), Some(to), None)
        .unwrap()
        .into_iter()
        .map(|found| {
            let (letter, old) = match &found.kind {
                DifferenceKind::Added => ('A', None),
                DifferenceKind::Removed => ('D', None),
                DifferenceKind::Modified => ('M', None),
                DifferenceKind::TypeChanged => ('T', None),
                DifferenceKind::Renamed { from } => ('R', Some(from.clone())),
            };
            let side = |version: &Option<hyprstream_git2db::handle::FileVersion>| match version {
                Some(version) => (format!("{:06o}", version.mode), version.blob.clone()),
                None => ("000000".to_owned(), "0".repeat(40)),
            };
            let (before, after) = (side(&found.before), side(&found.after));
            let old = old.map(|old| format!("{old} ")).unwrap_or_default();
            format!(
                "{} {} {} {} {letter} {old}{}",
                before.0, after.0, before.1, after.1, found.path
            )
        })
        .collect();
    lines.sort();
    lines
}

fn their_diff(handle: &RepositoryHandle, from: &CommitId, to: &CommitId) -> Vec<String> {
    let args = [
        "diff",
        "--raw",
        "-M",
        "--no-abbrev",
        from.as_str(),
        to.as_str(),
    ];
    let mut lines: Vec<String> = git(handle.path(), &args)
        .lines()
        .map(|line| {
            let (head, paths) = line[1..].split_once('\t').unwrap();
            let fields: Vec<&str> = head.split(' ').collect();
            let letter = &fields[4][..1];
            let paths = paths.replace('\t', " ");
            format!("{} {letter} {paths}", fields[..4].join(" "))
        })
        .collect();
    lines.sort();
    lines
}

/// Two states of files: changed, deleted, moved and new ones.
fn states() -> impl Strategy<Value = (Files, Files)> {
    let before = proptest::collection::vec(0..3_u8, 7);
    let after = proptest::collection::vec((0..7_u8, 0..5_u8), 7);
    (before, after).prop_map(|(before, after)| {
        let paths = ["a", "b", "dir/c", "dir/d", "dir/sub/e", "f.txt", "g"];
        let mut states = (Files::new(), Files::new());
        for ((path, old), (act, new)) in paths.iter().zip(before).zip(after) {
            let (_, was) = file(path, old);
            states.0.insert((*path).to_owned(), was.clone());
            match act {
                0 | 1 => states.1.insert((*path).to_owned(), was),
                2 => states.1.insert((*path).to_owned(), file(path, new).1),
                3 => states.1.insert(format!("moved/{path}"), was),
                4 => states.1.insert(format!("moved-{path}"), file(path, new).1),
                5 => states
                    .1
                    .insert(format!("new-{path}"), file(&format!("n{path}"), new).1),
                _ => None,
            };
        }
        states
    })
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn a_log_is_that_of_git(
        history in histories(),
        cut in any::<u16>(),
        limit in 0..6_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let handle = bare(dir.path());
        let commits = import(handle.path(), &history);
        let last = commits.last().unwrap().clone();
        let other = commits[usize::from(cut) % commits.len()].clone();
        let all = LogRange { from: vec![last.clone()], ..LogRange::default() };
        compare_log(&handle, &all);
        compare_log(&handle, &LogRange { limit: Some(limit), ..all.clone() });
        compare_log(&handle, &LogRange { first_parent: true, ..all.clone() });
        compare_log(&handle, &LogRange { without: vec![other.clone()], ..all.clone() });
        for path in ["a", "dir", "new", "dir/c", "none"] {
            let path = Some(path.to_owned());
            compare_log(&handle, &LogRange { path: path.clone(), ..all.clone() });
            compare_log(&handle, &LogRange { path: path.clone(), first_parent: true, ..all.clone() });
            let without = vec![other.clone()];
            let range = LogRange { path, without, first_parent: true, ..all.clone() };
            compare_log_beside_merges(&handle, &range);
        }
        // Bases, too: any of several is one.
        let ours = handle.merge_base(&last, &other).unwrap();
        let theirs = crate::desk::try_git(
            handle.path(),
            &["merge-base", "--all", last.as_str(), other.as_str()],
        ).0;
        let is_base = |base: &CommitId| theirs.lines().any(|line| line == base.as_str());
        prop_assert!(ours.as_ref().map_or(theirs.is_empty(), is_base));
    }

    #[test]
    fn a_difference_is_that_of_git((before, after) in states()) {
        let dir = tempfile::tempdir().unwrap();
        let handle = bare(dir.path());
        let made = |parents, files| Made { parents, time: 1_600_000_000, files };
        let commits = import(handle.path(), &[made(vec![], before), made(vec![0], after)]);
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (&commits[from], &commits[to]);
            prop_assert_eq!(our_diff(&handle, from, to), their_diff(&handle, from, to));
        }
    }
}

#[test]
fn a_difference_counts_the_bytes_that_users_see() {
    let desk = Desk::new();
    let first = desk.head();
    desk.write(".gitattributes", "*.bin filter=lfs\n");
    desk.write("a.bin", vec![1; 5000]);
    desk.write("b.bin", vec![2; 6000]);
    let second = desk.commit("Two");
    desk.write("a.bin", vec![3; 7000]);
    std::fs::rename(desk.path("b.bin"), desk.path("c.bin")).unwrap();
    let third = desk.commit("Three");
    let bytes = |from, to, path| {
        let found = desk.handle.diff(Some(from), Some(to), path).unwrap();
        let sizes = |version: Option<hyprstream_git2db::handle::FileVersion>| {
            version.map(|version| (version.bytes, version.pointer.is_some()))
        };
        found
            .into_iter()
            .map(|f| (f.path, f.kind, sizes(f.before), sizes(f.after)))
            .collect::<Vec<_>>()
    };
    let moved = DifferenceKind::Renamed {
        from: "b.bin".to_owned(),
    };
    assert_eq!(
        bytes(&second, &third, None),
        [
            (
                "a.bin".to_owned(),
                DifferenceKind::Modified,
                Some((5000, true)),
                Some((7000, true))
            ),
            (
                "c.bin".to_owned(),
                moved,
                Some((6000, true)),
                Some((6000, true))
            ),
        ]
    );
    assert_eq!(
        bytes(&first, &second, Some("a.bin")),
        [(
            "a.bin".to_owned(),
            DifferenceKind::Added,
            None,
            Some((5000, true))
        )]
    );
    // A large file that is deleted beside a new one has not moved there: pointers look alike.
    std::fs::remove_file(desk.path("c.bin")).unwrap();
    desk.write("d.bin", vec![9; 6000]);
    let fourth = desk.commit("Four");
    let kinds: Vec<_> = bytes(&third, &fourth, None)
        .into_iter()
        .map(|found| found.1)
        .collect();
    assert_eq!(kinds, [DifferenceKind::Removed, DifferenceKind::Added]);
}

#[test]
fn files_of_a_commit_are_shown_and_what_is_none_is_named() {
    let desk = Desk::new();
    desk.write("dir/a", "text");
    std::os::unix::fs::symlink("dir/a", desk.path("link")).unwrap();
    let commit = desk.commit("Files");
    let shown = desk.handle.show(&commit, "dir/a").unwrap();
    assert_eq!(
        (shown.blob.as_slice(), shown.mode),
        (&b"text"[..], 0o100_644)
    );
    assert_eq!(desk.handle.show(&commit, "link").unwrap().mode, 0o120_000);
    let mut read = String::new();
    let mut reader = desk.handle.load_file(&commit, "dir/a").unwrap();
    std::io::Read::read_to_string(&mut reader, &mut read).unwrap();
    assert_eq!(read, "text");
    let reason = |error: HistoryError| error.reason();
    assert_eq!(
        reason(desk.handle.show(&commit, "dir").unwrap_err()),
        "FileNotFound"
    );
    assert_eq!(
        reason(desk.handle.show(&commit, "none").unwrap_err()),
        "FileNotFound"
    );
    assert_eq!(
        reason(desk.handle.load_file(&commit, "link").unwrap_err()),
        "FileNotFound"
    );
    for path in ["link", "dir", "none", "../bare.git/HEAD", "/etc/passwd"] {
        assert_eq!(
            reason(desk.tree.load_file(path).unwrap_err()),
            "FileNotFound",
            "{path}"
        );
    }
    // Revisions.
    assert_eq!(desk.handle.resolve("main").unwrap(), commit);
    assert_eq!(desk.handle.resolve(&commit.as_str()[..10]).unwrap(), commit);
    assert_ne!(desk.handle.resolve("main~1").unwrap(), commit);
    for wrong in ["none", "main~9", "main:dir", "main^{tree}", "a..b", ""] {
        let error = desk.handle.resolve(wrong).unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{wrong}: {error}");
    }
    let unknown: CommitId = "0123456789012345678901234567890123456789".parse().unwrap();
    assert_eq!(
        reason(desk.handle.commit_info(&unknown).unwrap_err()),
        "ReferenceNotFound"
    );
}
