//! Merges are those of git, and a conflict leaves everything as it was.

use std::collections::BTreeSet;

use hyprstream_git2db::{
    CommitId,
    handle::{Conflict, FastForward, Merge, MergeError, Merged, Target, WorktreeError},
};
use proptest::prelude::*;

use crate::{
    desk::{Desk, Files, Made, bare, cases, import, lines, metadata, try_git},
    support::git::git,
};

fn merge() -> Merge {
    Merge::new(metadata("Merge"))
}

/// Changes one side: of a file, or whether there is one.
fn change(files: &mut Files, act: u8, path: &str, line: usize) {
    match act {
        0..=3 => {
            if let Some((_, content)) = files.get_mut(path) {
                let mut all: Vec<String> = content.lines().map(ToOwned::to_owned).collect();
                let at = line % all.len();
                all[at] = format!("{} and changed {act}", all[at]);
                *content = all.join("\n") + "\n";
            }
        }
        4 => {
            files.remove(path);
        }
        5 => {
            files.insert(
                format!("new-{path}"),
                (false, lines(&format!("{path}{line}"))),
            );
        }
        6 => {
            if let Some((executable, _)) = files.get_mut(path) {
                *executable = !*executable;
            }
        }
        7 => {
            if let Some(content) = files.remove(path) {
                files.insert(format!("moved-{path}"), content);
            }
        }
        _ => {
            files.insert(path.to_owned(), (false, lines(&format!("other {line} "))));
        }
    }
}

fn sides() -> impl Strategy<Value = (bool, Files, Files, Files)> {
    let act = || proptest::collection::vec((0..9_u8, 0..5_usize, 0..24_usize), 0..6);
    (any::<bool>(), act(), act()).prop_map(|(moves, ours, theirs)| {
        let paths = ["a", "b", "c", "d", "e"];
        let base: Files = paths
            .iter()
            .map(|path| ((*path).to_owned(), (false, lines(path))))
            .collect();
        let apply = |acts: Vec<(u8, usize, usize)>| {
            let mut files = base.clone();
            for (act, path, line) in acts {
                let act = if act == 7 && !moves { 4 } else { act };
                change(&mut files, act, paths[path], line);
            }
            files
        };
        let (ours, theirs) = (apply(ours), apply(theirs));
        (moves, base, ours, theirs)
    })
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_merge_is_that_of_git((renames, base, ours, theirs) in sides()) {
        let dir = tempfile::tempdir().unwrap();
        let handle = bare(dir.path());
        // At times of their own, so that no commit is another one.
        let made = |parents, time, files| Made { parents, time, files };
        let commits = import(
            handle.path(),
            &[made(vec![], 1, base), made(vec![0], 2, ours), made(vec![0], 3, theirs)],
        );
        handle.create_branch("main", &commits[1], false).unwrap();
        let (said, fine) = try_git(
            handle.path(),
            &[
                "-c", "merge.directoryRenames=false", "merge-tree", "--write-tree",
                "--name-only", "--no-messages", commits[1].as_str(), commits[2].as_str(),
            ],
        );
        let mut said = said.lines();
        let tree = said.next().unwrap();
        let options = Merge { renames, fast_forward: FastForward::Never, ..merge() };
        match handle.merge("main", &commits[2], &options).unwrap() {
            Merged::Committed(commit) => {
                prop_assert!(fine, "git finds a conflict");
                prop_assert_eq!(git(handle.path(), &["rev-parse", &format!("{commit}^{{tree}}")]), tree);
                prop_assert_eq!(handle.branch_tip("main").unwrap(), commit.clone());
                let parents = handle.commit_info(&commit).unwrap().parents;
                prop_assert_eq!(parents, vec![commits[1].clone(), commits[2].clone()]);
            }
            Merged::Conflicts(files) => {
                prop_assert!(!fine, "git finds no conflict: {files:?}");
                prop_assert_eq!(handle.branch_tip("main").unwrap(), commits[1].clone());
                if !renames {
                    // With renames, git counts the other names of a file differently.
                    let ours: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
                    prop_assert_eq!(ours, said.collect::<BTreeSet<_>>());
                }
            }
            other => prop_assert!(false, "{other:?}"),
        }
        git(handle.path(), &["fsck", "--strict", "--no-dangling"]);
    }
}

/// A base and two branches, `main` with the second commit and `side` with the third.
fn forked(desk: &Desk) -> (CommitId, CommitId, CommitId) {
    desk.write("a", lines("a"));
    let base = desk.commit("Base");
    desk.tree
        .switch(Target::NewBranch("side", None), false)
        .unwrap();
    desk.write("side", "side\n");
    let side = desk.commit("Side");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    desk.write("main", "main\n");
    let main = desk.commit("Main");
    (base, main, side)
}

#[test]
fn fast_forwards_are_taken_demanded_and_avoided() {
    let desk = Desk::new();
    let (base, main, side) = forked(&desk);
    desk.handle.create_branch("behind", &base, false).unwrap();
    let only = Merge {
        fast_forward: FastForward::Only,
        ..merge()
    };
    let never = Merge {
        fast_forward: FastForward::Never,
        ..merge()
    };
    assert_eq!(
        desk.handle.merge("side", &base, &merge()).unwrap(),
        Merged::UpToDate
    );
    let error = desk.handle.merge("side", &main, &only).unwrap_err();
    assert!(
        matches!(error, MergeError::NotFastForward { .. }),
        "{error}"
    );
    let Merged::Committed(commit) = desk.handle.merge("behind", &side, &never).unwrap() else {
        panic!("it is committed");
    };
    let info = desk.handle.commit_info(&commit).unwrap();
    assert_eq!(info.parents, [base.clone(), side.clone()]);
    desk.handle.create_branch("behind", &base, true).unwrap();
    let merged = desk.handle.merge("behind", &side, &only).unwrap();
    assert_eq!(merged, Merged::FastForward(side.clone()));
    assert_eq!(desk.handle.branch_tip("behind").unwrap(), side);
    // What somebody expects elsewhere, or works on, stays.
    let expecting = Merge {
        expected: Some(base),
        ..merge()
    };
    let error = desk.handle.merge("side", &main, &expecting).unwrap_err();
    assert!(
        matches!(error, MergeError::Moved { .. }) && error.is_retriable(),
        "{error}"
    );
    let error = desk.handle.merge("main", &side, &merge()).unwrap_err();
    assert!(matches!(error, MergeError::CheckedOut { .. }), "{error}");
    let error = desk.handle.merge("none", &side, &merge()).unwrap_err();
    assert_eq!(error.reason(), "ReferenceNotFound");
    desk.check_clean();
}

#[test]
fn merges_at_the_same_time_lose_nothing() {
    let desk = Desk::new();
    let base = desk.head();
    desk.handle.create_branch("target", &base, false).unwrap();
    let sides: Vec<CommitId> = (0..6)
        .map(|side| {
            desk.tree.switch(Target::Commit(&base), false).unwrap();
            desk.write(&format!("file-{side}"), "x");
            desk.commit("Side")
        })
        .collect();
    std::thread::scope(|scope| {
        for side in &sides {
            let handle = desk.handle.clone();
            scope.spawn(move || {
                loop {
                    match handle.merge("target", side, &merge()) {
                        Ok(Merged::Committed(_) | Merged::FastForward(_)) => return,
                        Err(MergeError::Moved { .. }) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    let files = git(desk.handle.path(), &["ls-tree", "--name-only", "target"]);
    assert_eq!(files.lines().count(), sides.len());
    for side in &sides {
        let args = ["merge-base", "--is-ancestor", side.as_str(), "target"];
        git(desk.handle.path(), &args);
    }
    desk.check_objects();
}

#[test]
fn histories_without_a_common_commit_are_not_merged() {
    let desk = Desk::new();
    let tree = desk.git(&["rev-parse", "HEAD^{tree}"]);
    let other: CommitId = desk
        .git(&["commit-tree", &tree, "-m", "other"])
        .parse()
        .unwrap();
    desk.handle.create_branch("other", &other, false).unwrap();
    let error = desk
        .handle
        .merge("other", &desk.head(), &merge())
        .unwrap_err();
    assert_eq!(error.reason(), "UnrelatedHistories");
}

#[test]
fn the_files_of_a_worktree_follow_a_merge_or_nothing_changes() {
    let desk = Desk::new();
    let (_, main, side) = forked(&desk);
    desk.write("side", "untracked\n");
    let error = desk.tree.merge(&side, &merge()).unwrap_err();
    let MergeError::Worktree(WorktreeError::LocalChanges { paths }) = &error else {
        panic!("{error}");
    };
    assert_eq!(paths, &["side"]);
    assert_eq!(desk.head(), main);
    std::fs::remove_file(desk.path("side")).unwrap();
    desk.write("untracked", "stays");
    // Somebody else changes the branch in this moment.
    let lock = desk.handle.path().join("refs/heads/main.lock");
    std::fs::write(&lock, "").unwrap();
    let error = desk.tree.merge(&side, &merge()).unwrap_err();
    assert!(matches!(error, MergeError::Moved { .. }), "{error}");
    assert_eq!(desk.git(&["status", "--porcelain"]), "?? untracked");
    std::fs::remove_file(&lock).unwrap();
    // Stock git is not done.
    desk.git(&["merge", "-q", "--no-commit", "side"]);
    let error = desk.tree.merge(&side, &merge()).unwrap_err();
    assert_eq!(error.reason(), "Conflict");
    let error = desk.tree.switch(Target::Branch("side"), false).unwrap_err();
    assert!(matches!(error, WorktreeError::Unfinished { .. }), "{error}");
    desk.git(&["merge", "--abort"]);
    let Merged::Committed(commit) = desk.tree.merge(&side, &merge()).unwrap() else {
        panic!("it is committed");
    };
    assert_eq!(desk.head(), commit);
    assert_eq!(desk.read("side"), b"side\n");
    assert_eq!(desk.git(&["status", "--porcelain"]), "?? untracked");
    desk.check_objects();
}

#[test]
fn large_files_conflict_as_a_whole() {
    let desk = Desk::with_lfs();
    desk.write(
        ".gitattributes",
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    );
    // Contents of one size: their pointers differ in one line.
    desk.write("a.bin", "0000");
    desk.write("b.bin", "0000");
    let base = desk.commit("Base");
    desk.write("a.bin", "1111");
    let main = desk.commit("Main");
    desk.tree
        .switch(Target::NewBranch("side", Some(&base)), false)
        .unwrap();
    desk.write("a.bin", "2222");
    desk.write("b.bin", "2222");
    let side = desk.commit("Side");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    let Merged::Conflicts(files) = desk.tree.merge(&side, &merge()).unwrap() else {
        panic!("they conflict");
    };
    assert_eq!(files.len(), 1);
    let digest = |side: &Option<hyprstream_git2db::handle::Version>| {
        side.as_ref().unwrap().pointer.clone().unwrap().oid
    };
    let of = |content: &[u8]| hyprstream_git2db::Digest::of(content);
    assert_eq!(
        (files[0].path.as_str(), files[0].kind),
        ("a.bin", Conflict::BothModified)
    );
    assert_eq!(digest(&files[0].base), of(b"0000"));
    assert_eq!(digest(&files[0].ours), of(b"1111"));
    assert_eq!(digest(&files[0].theirs), of(b"2222"));
    assert_eq!((desk.head(), desk.read("a.bin")), (main, b"1111".to_vec()));
    desk.check_clean();
    // Taken from one side, the rest comes along.
    desk.tree.restore(&["a.bin"], Some(&side)).unwrap();
    desk.tree.commit(&metadata("Theirs")).unwrap();
    let Merged::Committed(_) = desk.tree.merge(&side, &merge()).unwrap() else {
        panic!("both have the same");
    };
    assert_eq!(desk.read("b.bin"), b"2222");
    assert_eq!(
        desk.tree
            .status(hyprstream_git2db::handle::StatusOptions::default())
            .unwrap(),
        []
    );
}

#[test]
fn large_files_that_are_replaced_have_not_moved() {
    let desk = Desk::with_lfs();
    desk.write(
        ".gitattributes",
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    );
    desk.write("old.bin", "0000");
    let base = desk.commit("Base");
    desk.tree.rename("old.bin", "new.bin").unwrap();
    desk.write("new.bin", "1111");
    desk.commit("Replaced");
    desk.tree
        .switch(Target::NewBranch("side", Some(&base)), false)
        .unwrap();
    std::fs::remove_file(desk.path("old.bin")).unwrap();
    let side = desk.commit("Removed");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    let merged = desk.tree.merge(&side, &merge()).unwrap();
    assert!(matches!(merged, Merged::Committed(_)), "{merged:?}");
    assert_eq!(desk.git(&["ls-files"]), ".gitattributes\nnew.bin");
    desk.check_clean();
}

#[test]
fn reverts_and_cherry_picks_are_those_of_git() {
    let desk = Desk::new();
    let (base, main, side) = forked(&desk);
    let Merged::Committed(merged) = desk.tree.merge(&side, &merge()).unwrap() else {
        panic!("it is committed");
    };
    desk.write("a", "all new\n");
    let changed = desk.commit("Change");
    // git's own results, on branches of its own.
    let tree_of = |name: &str| {
        git(
            desk.handle.path(),
            &["rev-parse", &format!("{name}^{{tree}}")],
        )
    };
    let theirs = |name: &str, args: &[&str]| {
        desk.git(&["switch", "-q", "-c", name, "main"]);
        desk.git(args);
        desk.git(&["switch", "-q", "main"]);
        tree_of(name)
    };
    let one = theirs("one", &["revert", "--no-edit", changed.as_str()]);
    let two = theirs("two", &["revert", "--no-edit", "-m", "1", merged.as_str()]);
    for name in ["r1", "r2", "pick"] {
        desk.handle.create_branch(name, &changed, false).unwrap();
    }
    let said = metadata("Back");
    let revert = |name, commit, parent| desk.handle.revert(name, commit, parent, &said);
    assert!(matches!(
        revert("r1", &changed, None).unwrap(),
        Merged::Committed(_)
    ));
    assert_eq!(tree_of("r1"), one);
    assert!(matches!(
        revert("r2", &merged, Some(1)).unwrap(),
        Merged::Committed(_)
    ));
    assert_eq!(tree_of("r2"), two);
    let error = revert("r2", &merged, None).unwrap_err();
    assert!(matches!(error, MergeError::WhichParent { .. }), "{error}");
    let error = revert("r2", &merged, Some(3)).unwrap_err();
    assert!(matches!(error, MergeError::NoParent { .. }), "{error}");
    // Taken back already, there is nothing to do.
    assert_eq!(revert("r1", &changed, None).unwrap(), Merged::UpToDate);

    desk.handle.create_branch("onto", &base, false).unwrap();
    let picked = desk
        .handle
        .cherry_pick("onto", &main, None, &metadata("Picked"))
        .unwrap();
    let Merged::Committed(picked) = picked else {
        panic!("it is committed");
    };
    let info = desk.handle.commit_info(&picked).unwrap();
    let original = desk.handle.commit_info(&main).unwrap();
    assert_eq!((info.author, info.parents), (original.author, vec![base]));
    assert_eq!(
        git(
            desk.handle.path(),
            &["diff", "--name-only", "onto~1", "onto"]
        ),
        "main"
    );
    // A conflict moves nothing.
    desk.write("a", "other\n");
    let last = desk.commit("Other");
    let Merged::Conflicts(files) = desk.tree.revert(&changed, None, &said).unwrap() else {
        panic!("it conflicts");
    };
    assert_eq!(files[0].path, "a");
    assert_eq!(desk.head(), last);
    desk.check_clean();
}
