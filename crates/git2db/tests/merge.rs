//! Merging on a bare repository, with stock git as the judge.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use hyprstream_git2db::{
    CommitId, Reference,
    commit::Author,
    repo::{self, Merge, MergeError, Merged},
};
use support::Work;

/// A repository whose `main` and `x` begin at one commit.
struct Setup(Work);

impl Setup {
    fn new() -> Self {
        let setup = Self(Work::new());
        setup.0.write("a.txt", "1\n2\n3\n").write("sub/b.txt", "b");
        setup.0.commit();
        setup.0.git(&["push", "-q", "origin", "main:x"]);
        setup
    }

    /// A commit on a branch of the bare repository.
    fn change(&self, branch: &str, file: &str, content: &str) -> CommitId {
        let origin = format!("origin/{branch}");
        self.0.git(&["fetch", "-q", "origin"]);
        self.0.git(&["checkout", "-q", "--detach", &origin]);
        self.0.write(file, content);
        self.0.git(&["add", "-A"]);
        self.0.git(&["commit", "-qm", "change"]);
        self.0
            .git(&["push", "-q", "origin", &format!("HEAD:{branch}")]);
        self.0.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    fn merge(&self, from: &str, expected: Option<&CommitId>) -> Result<Merged, MergeError> {
        let author = Author {
            name: "A".to_owned(),
            email: "a@example.org".to_owned(),
        };
        let merge = Merge {
            into: "main",
            from: &Reference::Branch(from.to_owned()),
            expected,
            message: "Merge",
            author: &author,
        };
        repo::merge(&self.0.origin(), &merge)
    }

    fn main(&self) -> String {
        support::git::git(&self.0.origin(), &["rev-parse", "main"])
    }
}

#[test]
fn a_branch_moves_forward_or_stays_if_no_commit_is_needed() {
    let setup = Setup::new();
    let commit = setup.change("x", "a.txt", "1\n");
    let merged = setup.merge("x", None).unwrap();
    assert_eq!((&merged.after, merged.is_commit), (&commit, false));
    assert_eq!(setup.main(), commit.as_str());
    let again = setup.merge("x", None).unwrap();
    assert_eq!((again.before, again.after), (commit.clone(), commit));
}

#[test]
fn both_sides_are_in_the_commit_line_by_line() {
    let setup = Setup::new();
    let theirs = setup.change("x", "a.txt", "1\n2\n3\n4\n");
    setup.change("main", "sub/c/d.txt", "d");
    let ours = setup.change("main", "a.txt", "0\n1\n2\n3\n");
    let merged = setup.merge("x", Some(&ours)).unwrap();
    assert!(merged.is_commit);
    let git = |arguments: &[&str]| support::git::git(&setup.0.origin(), arguments);
    assert_eq!(setup.main(), merged.after.as_str());
    assert_eq!(git(&["show", "main:a.txt"]), "0\n1\n2\n3\n4");
    assert_eq!(git(&["show", "main:sub/c/d.txt"]), "d");
    let parents = git(&["log", "-1", "--format=%P", "main"]);
    assert_eq!(parents, format!("{ours} {theirs}"));
    git(&["fsck", "--strict"]);
}

#[test]
fn a_conflict_names_its_files_and_moves_nothing() {
    let setup = Setup::new();
    setup.change("x", "sub/b.txt", "x");
    setup.change("x", "a.txt", "x\n");
    setup.change("main", "a.txt", "main\n");
    let ours = setup.change("main", "sub/b.txt", "main");
    match setup.merge("x", None) {
        Err(MergeError::Conflicts { paths }) => assert_eq!(paths, ["a.txt", "sub/b.txt"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(setup.main(), ours.as_str());
}

#[test]
fn what_is_not_as_expected_is_not_merged() {
    let setup = Setup::new();
    let theirs = setup.change("x", "a.txt", "x\n");
    let moved = setup.merge("x", Some(&theirs));
    assert!(
        matches!(moved, Err(MergeError::BranchMoved { .. })),
        "{moved:?}"
    );
    let missing = setup.merge("none", None);
    assert!(
        matches!(missing, Err(MergeError::Missing { .. })),
        "{missing:?}"
    );
    setup.0.git(&["checkout", "-q", "--orphan", "y"]);
    setup.0.git(&["commit", "-qm", "another history"]);
    setup.0.git(&["push", "-q", "origin", "y"]);
    let unrelated = setup.merge("y", None);
    assert!(
        matches!(unrelated, Err(MergeError::Unrelated { .. })),
        "{unrelated:?}"
    );
}
