//! What commits say: bit for bit what stock git writes, and signatures that it accepts.

use std::{fs, process::Command};

use hyprstream_git2db::{
    commit::{self, Author, Change, Content, Timestamp},
    handle::WorktreeError,
};

use crate::{
    desk::{Desk, metadata},
    support::git::{command, git},
};

#[test]
fn a_commit_is_bit_for_bit_the_one_that_git_makes() {
    let desk = Desk::new();
    let parent = desk.head();
    desk.write("a", "1");
    desk.write("dir/b", "2");
    let mut said = metadata("Train longer  \n\n\nIt pays.\n\n")
        .with_trailer("Reviewed-by", "B <b@example.org>");
    said.committer = Some(Author {
        name: "C Ü".to_owned(),
        email: "c@example.org".to_owned(),
    });
    said.committer_time = Some(Timestamp {
        seconds: 1_700_000_500,
        offset_minutes: -480,
    });
    desk.tree.add_all().unwrap();
    let ours = desk.tree.commit(&said).unwrap();
    let tree = git(
        desk.handle.path(),
        &["rev-parse", &format!("{ours}^{{tree}}")],
    );
    let message = "Train longer\n\nIt pays.\n\nReviewed-by: B <b@example.org>\n";
    let output = command(desk.handle.path())
        .args(["commit-tree", &tree, "-p", parent.as_str(), "-m", message])
        .env("GIT_AUTHOR_DATE", "1700000000 +0130")
        .env("GIT_COMMITTER_NAME", "C Ü")
        .env("GIT_COMMITTER_EMAIL", "c@example.org")
        .env("GIT_COMMITTER_DATE", "1700000500 -0800")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        ours.as_str()
    );
    let trailers = desk.git(&["log", "-1", "--format=%(trailers)"]);
    assert_eq!(trailers, "Reviewed-by: B <b@example.org>");
    desk.check_clean();
}

#[test]
fn signed_commits_are_accepted_by_git_and_others_are_not() {
    let desk = Desk::new();
    let key = desk.dir.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let allowed = desk.dir.path().join("allowed");
    fs::write(&allowed, format!("a@example.org {public}")).unwrap();
    let allowed = format!("gpg.ssh.allowedSignersFile={}", allowed.display());
    let verify = |commit: &str| {
        command(desk.handle.path())
            .args(["-c", &allowed, "verify-commit", commit])
            .output()
            .unwrap()
    };
    desk.write("a", "1");
    desk.tree.add_all().unwrap();
    let signed = metadata("Signed").with_trailer("A", "b").signed_with(&key);
    let commit = desk.tree.commit(&signed).unwrap();
    let said = verify(commit.as_str());
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    let amended = desk.tree.amend(None).unwrap();
    assert!(
        !verify(amended.as_str()).status.success(),
        "the signature was of another commit"
    );
    let amended = desk.tree.amend(Some(&signed)).unwrap();
    assert!(verify(amended.as_str()).status.success());

    // Without a worktree.
    let change = Change::Put {
        path: "b".to_owned(),
        content: Content::Bytes(b"2".to_vec()),
        executable: false,
    };
    let bare = desk.handle.path();
    let staged = commit::stage(bare, Some(&amended), &[change], desk.handle.store()).unwrap();
    desk.handle.create_branch("side", &amended, false).unwrap();
    let side = commit::commit_with(bare, "side", &staged, &signed).unwrap();
    assert!(verify(side.as_str()).status.success());
    desk.check_objects();

    desk.write("c", "3");
    desk.tree.add_all().unwrap();
    let unsigned = metadata("No").signed_with(&desk.dir.path().join("none"));
    let error = desk.tree.commit(&unsigned).unwrap_err();
    assert!(matches!(error, WorktreeError::Commit(_)), "{error}");
    assert_eq!(error.reason(), "SigningFailed");
    assert_eq!(desk.head(), amended, "nothing was committed");
    // One that asks for a passphrase asks nobody.
    let locked = desk.dir.path().join("locked");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "secret", "-C", "", "-f"])
        .arg(&locked)
        .status()
        .unwrap();
    assert!(made.success());
    let error = desk
        .tree
        .commit(&metadata("No").signed_with(&locked))
        .unwrap_err();
    assert_eq!(error.reason(), "SigningFailed");
}
