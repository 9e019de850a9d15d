//! Staging, committing, switching and going back, with stock git between.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
};

use hyprstream_git2db::handle::{Merge, Reset, Target, WorktreeError};

use crate::{
    desk::{Desk, metadata},
    support::git::git,
};

/// Brings something of nobody else's in the way.
type Spoil = fn(&Desk);

#[track_caller]
fn check(result: Result<(), WorktreeError>, reason: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
}

#[test]
fn what_is_added_is_what_git_would_add() {
    let desk = Desk::new();
    desk.write("a", "1");
    desk.write("dir/b", "2");
    desk.write("dir/sub/c", "3");
    desk.write("*", "a name like a pattern");
    desk.write(".gitignore", "*.log\n");
    desk.write("x.log", "4");
    symlink("a", desk.path("link")).unwrap();
    desk.tree.add(&["dir/sub", "*", "link"]).unwrap();
    assert_eq!(desk.git(&["ls-files"]), "*\ndir/sub/c\nlink");
    check(desk.tree.add(&["x.log"]), "RefusedContent");
    check(desk.tree.add(&["none"]), "FileNotFound");
    check(desk.tree.add(&["../work/a"]), "FileNotFound");
    desk.tree.unstage(Some(&["*"])).unwrap();
    assert_eq!(desk.git(&["ls-files"]), "dir/sub/c\nlink");
    desk.commit("All");
    desk.check_clean();
    assert_eq!(
        desk.git(&["ls-files"]),
        "*\n.gitignore\na\ndir/b\ndir/sub/c\nlink"
    );
    fs::remove_file(desk.path("dir/b")).unwrap();
    fs::remove_file(desk.path("link")).unwrap();
    fs::create_dir(desk.path("link")).unwrap();
    desk.write("link/in", "a folder now");
    desk.tree.add(&["dir", "link"]).unwrap();
    assert_eq!(
        desk.git(&["ls-files"]),
        "*\n.gitignore\na\ndir/sub/c\nlink/in"
    );
    desk.tree.unstage(None).unwrap();
    assert_eq!(desk.git(&["diff", "--cached", "--name-only"]), "");
    desk.write(".hyprstream/manifest.json", "{}");
    check(desk.tree.add_all(), "RefusedContent");
}

#[test]
fn nothing_and_conflicts_are_not_committed() {
    let desk = Desk::new();
    let commit = |message: &str| desk.tree.commit(&metadata(message)).map(drop);
    check(commit("Nothing"), "NothingToCommit");
    desk.write("a", "1\n");
    let base = desk.commit("Base");
    check(commit(" "), "NothingToCommit");
    desk.write("a", "2\n");
    desk.tree.add(&["a"]).unwrap();
    check(commit(" "), "InvalidMessage");
    let ours = desk.commit("Ours");
    desk.tree
        .switch(Target::NewBranch("side", Some(&base)), false)
        .unwrap();
    desk.write("a", "3\n");
    let theirs = desk.commit("Theirs");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    // Stock git begins a merge, which we conclude.
    let (_, merged) = crate::desk::try_git(desk.tree.path(), &["merge", "-q", "side"]);
    assert!(!merged);
    check(commit("Merge"), "Conflict");
    check(desk.tree.switch(Target::Branch("side"), false), "Conflict");
    check(desk.tree.reset(&base, Reset::Soft), "Conflict");
    desk.write("a", "2 and 3\n");
    desk.tree.add(&["a"]).unwrap();
    let merge = desk.tree.commit(&metadata("Merge")).unwrap();
    let info = desk.handle.commit_info(&merge).unwrap();
    assert_eq!(info.parents, [ours, theirs]);
    desk.check_clean();
    assert!(!desk.git(&["status"]).contains("merging"));
    // And one that is given up.
    desk.tree.switch(Target::Commit(&base), false).unwrap();
    desk.write("a", "4\n");
    let other = desk.commit("Other");
    crate::desk::try_git(desk.tree.path(), &["merge", "-q", "main"]);
    desk.tree.reset(&other, Reset::Hard).unwrap();
    desk.check_clean();
    assert_eq!(desk.read("a"), b"4\n");
}

#[test]
fn amending_replaces_the_last_commit() {
    let desk = Desk::new();
    let first = desk.head();
    desk.write("a", "1");
    let before = desk.commit("Typo\n\nbody");
    desk.write("a", "2");
    desk.tree.add_all().unwrap();
    let kept = desk.tree.amend(None).unwrap();
    let (was, is) = (
        desk.handle.commit_info(&before).unwrap(),
        desk.handle.commit_info(&kept).unwrap(),
    );
    assert_ne!(before, kept);
    assert_eq!((was.message, was.author), (is.message, is.author));
    let said = desk.tree.amend(Some(&metadata("Right"))).unwrap();
    let info = desk.handle.commit_info(&said).unwrap();
    assert_eq!(
        (info.parents, info.message.as_str()),
        (vec![first], "Right\n")
    );
    assert_eq!(desk.git(&["show", "HEAD:a"]), "2");
    desk.check_clean();
}

#[test]
fn switching_keeps_changes_that_are_not_in_the_way_and_refuses_to_lose_others() {
    let desk = Desk::new();
    desk.write("both", "1\n");
    desk.write("only", "1\n");
    desk.write("folder/f", "1\n");
    let first = desk.commit("First");
    desk.tree
        .switch(Target::NewBranch("side", None), false)
        .unwrap();
    desk.write("both", "2\n");
    desk.write("new", "2\n");
    fs::remove_dir_all(desk.path("folder")).unwrap();
    desk.write("folder", "a file now");
    let side = desk.commit("Side");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    desk.check_clean();
    assert!(desk.path("folder/f").exists() && !desk.path("new").exists());

    // What both have stays changed.
    desk.write("only", "changed\n");
    desk.write("untracked", "u");
    desk.tree.switch(Target::Branch("side"), false).unwrap();
    assert_eq!(desk.git(&["status", "--porcelain"]), "M only\n?? untracked");
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    assert_eq!(desk.read("only"), b"changed\n");

    let ways: [(&str, Spoil); 6] = [
        ("both", |desk| desk.write("both", "mine\n")),
        ("both", |desk| {
            desk.write("both", "mine\n");
            desk.tree.add(&["both"]).unwrap();
        }),
        ("new", |desk| desk.write("new", "untracked\n")),
        ("new", |desk| desk.write("new/below", "untracked\n")),
        ("folder", |desk| desk.write("folder/f", "mine\n")),
        ("folder", |desk| desk.write("folder/u", "untracked\n")),
    ];
    for (path, spoil) in ways {
        spoil(&desk);
        let before = desk.git(&["status", "--porcelain=v2", "-uall"]);
        let error = desk.tree.switch(Target::Branch("side"), false).unwrap_err();
        let WorktreeError::LocalChanges { paths } = &error else {
            panic!("{path}: {error}");
        };
        assert!(
            paths.iter().all(|found| found.starts_with(path)),
            "{path}: {paths:?}"
        );
        assert_eq!(desk.git(&["status", "--porcelain=v2", "-uall"]), before);
        // git refuses as well.
        let (_, switched) = crate::desk::try_git(desk.tree.path(), &["switch", "-q", "side"]);
        assert!(!switched, "{path}");
        desk.git(&["reset", "-q", "--hard"]);
        desk.git(&["clean", "-qfd"]);
    }
    // Staged as it is to be, it is not in the way.
    desk.write("both", "2\n");
    desk.tree.add(&["both"]).unwrap();
    desk.tree.switch(Target::Branch("side"), false).unwrap();
    desk.check_clean();
    assert_eq!(desk.head(), side);
    // By force, changes of tracked files go.
    desk.write("both", "mine\n");
    desk.write("staged", "mine\n");
    desk.tree.add(&["staged"]).unwrap();
    desk.tree.switch(Target::Commit(&first), true).unwrap();
    assert_eq!(desk.tree.branch().unwrap(), None);
    desk.check_clean();
    assert!(!desk.path("staged").exists());
}

#[test]
fn a_branch_of_another_worktree_and_a_new_name_that_is_taken_are_refused() {
    let desk = Desk::new();
    let other = desk.dir.path().join("other");
    git(
        desk.handle.path(),
        &[
            "worktree",
            "add",
            "-q",
            "-b",
            "side",
            other.to_str().unwrap(),
            "main",
        ],
    );
    check(
        desk.tree.switch(Target::Branch("side"), false),
        "BranchInUse",
    );
    check(
        desk.tree.switch(Target::NewBranch("side", None), false),
        "ReferenceExists",
    );
    check(
        desk.tree.switch(Target::Branch("none"), false),
        "ReferenceNotFound",
    );
    assert_eq!(desk.tree.branch().unwrap().as_deref(), Some("main"));
    desk.check_clean();
}

#[test]
fn resets_go_as_far_back_as_those_of_git() {
    for (how, flag) in [
        (Reset::Soft, "--soft"),
        (Reset::Mixed, "--mixed"),
        (Reset::Hard, "--hard"),
    ] {
        let state = |ours: bool| {
            let desk = Desk::new();
            desk.write("a", "1");
            desk.write("gone", "1");
            let first = desk.commit("First");
            desk.write("a", "2");
            desk.write("new", "2");
            fs::remove_file(desk.path("gone")).unwrap();
            desk.commit("Second");
            desk.write("a", "3");
            desk.write("staged", "3");
            desk.tree.add(&["staged"]).unwrap();
            desk.write("untracked", "3");
            if ours {
                desk.tree.reset(&first, how).unwrap();
            } else {
                desk.git(&["reset", "-q", flag, first.as_str()]);
            }
            assert_eq!(desk.head(), first);
            desk.git(&["status", "--porcelain=v2", "-uall"])
        };
        assert_eq!(state(true), state(false), "{flag}");
    }
}

#[test]
fn files_are_restored_removed_and_moved() {
    let desk = Desk::new();
    desk.write("a", "1");
    desk.write("dir/b", "1");
    desk.write("dir/c", "1");
    let first = desk.commit("First");
    desk.write("a", "2");
    desk.commit("Second");
    // Out of what is staged.
    desk.write("dir/b", "staged");
    desk.tree.add(&["dir/b"]).unwrap();
    desk.write("dir/b", "later");
    fs::remove_file(desk.path("dir/c")).unwrap();
    desk.tree.restore(&["dir"], None).unwrap();
    assert_eq!(desk.read("dir/b"), b"staged");
    assert_eq!(desk.git(&["status", "--porcelain"]), "M  dir/b");
    // Out of a commit, staged too.
    desk.tree.restore(&["a", "dir"], Some(&first)).unwrap();
    assert_eq!(desk.read("a"), b"1");
    assert_eq!(desk.git(&["status", "--porcelain"]), "M  a");
    check(desk.tree.restore(&["none"], None), "FileNotFound");
    desk.tree.reset(&desk.head(), Reset::Hard).unwrap();

    desk.write("dir/b", "mine");
    check(desk.tree.remove(&["dir"], false, false), "LocalChanges");
    desk.tree.remove(&["dir"], false, true).unwrap();
    assert!(!desk.path("dir").exists());
    desk.tree.remove(&["a"], true, false).unwrap();
    assert_eq!(
        desk.git(&["status", "--porcelain"]),
        "D  a\nD  dir/b\nD  dir/c\n?? a"
    );
    desk.tree.reset(&desk.head(), Reset::Hard).unwrap();
    desk.check_clean();

    desk.tree.rename("dir", "far/away").unwrap();
    desk.tree.rename("a", "far/a").unwrap();
    assert_eq!(
        desk.git(&["status", "--porcelain"]),
        "R  dir/b -> far/away/b\nR  dir/c -> far/away/c\nR  a -> far/a"
            .lines()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(!desk.path("dir").exists());
    check(
        desk.tree.rename("far", "far/in").map(drop),
        "RefusedContent",
    );
    check(desk.tree.rename("far/a", "far/away/b"), "FileExists");
    check(desk.tree.rename("none", "x"), "FileNotFound");
    check(desk.tree.rename("far/a", ".git/x"), "RefusedContent");
    desk.commit("Moved");
    desk.check_clean();
}

#[test]
fn nothing_is_written_while_another_program_holds_the_index() {
    let desk = Desk::new();
    desk.write("a", "1");
    let git_dir = desk.git(&["rev-parse", "--absolute-git-dir"]);
    let lock = std::path::Path::new(&git_dir).join("index.lock");
    fs::write(&lock, "").unwrap();
    let error = desk.tree.add_all().unwrap_err();
    assert!(matches!(error, WorktreeError::Locked { .. }), "{error}");
    assert!(error.is_retriable());
    fs::remove_file(&lock).unwrap();
    desk.commit("Then");
    desk.check_clean();
}

#[test]
fn a_name_that_is_not_utf8_is_refused_and_nothing_changes() {
    let desk = Desk::new();
    desk.write("a", "1");
    let main = desk.commit("Main");
    let odd = desk.tree.path().join(OsStr::from_bytes(b"caf\xe9.txt"));
    desk.git(&["switch", "-q", "-c", "odd"]);
    fs::write(&odd, "content").unwrap();
    check(desk.tree.add_all(), "RefusedContent");
    assert_eq!(desk.git(&["diff", "--cached", "--name-only"]), "");
    desk.git(&["add", "-A"]);
    desk.git(&["commit", "-q", "-m", "Odd"]);
    let tip = desk.head();
    desk.git(&["switch", "-q", "main"]);

    check(
        desk.tree.switch(Target::Branch("odd"), false),
        "RefusedContent",
    );
    check(
        desk.tree.switch(Target::Branch("odd"), true),
        "RefusedContent",
    );
    check(desk.tree.reset(&tip, Reset::Hard), "RefusedContent");
    let error = desk
        .tree
        .merge(&tip, &Merge::new(metadata("Merge")))
        .unwrap_err();
    assert!(error.to_string().contains("caf\\xe9.txt"), "{error}");
    assert_eq!(desk.head(), main);
    assert_eq!(desk.git(&["rev-parse", "--abbrev-ref", "HEAD"]), "main");
    desk.check_clean();

    // Where git has put it, what is not about it goes on, and it is not lost.
    desk.git(&["switch", "-q", "odd"]);
    check(
        desk.tree.switch(Target::Branch("main"), false),
        "RefusedContent",
    );
    desk.write("a", "2");
    let next = desk.commit("Beside it");
    desk.check_clean();
    fs::write(&odd, "changed").unwrap();
    check(desk.tree.reset(&next, Reset::Hard), "RefusedContent");
    check(desk.tree.restore(&["."], None), "RefusedContent");
    check(desk.tree.remove(&["."], false, true), "RefusedContent");
    check(desk.tree.add_all(), "RefusedContent");
    desk.git(&["add", "-A"]);
    desk.tree.unstage(None).unwrap();
    assert_eq!(desk.git(&["diff", "--cached", "--name-only"]), "");
    assert_eq!(fs::read(&odd).unwrap(), b"changed");
    assert_eq!(desk.head(), next);
}
