//! A bare repository, a store and a worktree that stock git made, and histories for them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use hyprstream_git2db::{
    CommitId, RepositoryHandle, Worktree,
    commit::{Author, Metadata, Timestamp},
    handle::StatusOptions,
    store::ObjectStore,
};
use proptest::prelude::ProptestConfig;

use crate::support::git::{command, git};

pub struct Desk {
    pub dir: tempfile::TempDir,
    pub handle: RepositoryHandle,
    pub tree: Worktree,
}

impl Desk {
    /// `main` has one commit without files and is checked out.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let handle = bare(dir.path());
        let empty = git(handle.path(), &["mktree"]);
        let first = git(handle.path(), &["commit-tree", &empty, "-m", "first"]);
        git(handle.path(), &["update-ref", "refs/heads/main", &first]);
        let work = dir.path().join("work");
        git(
            handle.path(),
            &["worktree", "add", "-q", work.to_str().unwrap(), "main"],
        );
        let tree = Worktree::open(&handle, &work).unwrap();
        Self { dir, handle, tree }
    }

    /// Stock git with git-lfs, for which a large file and its pointer are the same.
    pub fn with_lfs() -> Self {
        let desk = Self::new();
        desk.git(&["lfs", "install", "--local"]);
        desk
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.path(path)).unwrap()
    }

    /// Stock git in the worktree.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        git(self.tree.path(), args)
    }

    /// Stages all with us and commits.
    #[track_caller]
    pub fn commit(&self, message: &str) -> CommitId {
        self.tree.add_all().unwrap();
        self.tree.commit(&metadata(message)).unwrap()
    }

    /// What stock git says of the worktree and of all objects.
    #[track_caller]
    pub fn check_clean(&self) {
        assert_eq!(self.git(&["status", "--porcelain=v2"]), "");
        assert_eq!(self.tree.status(StatusOptions::default()).unwrap(), []);
        self.check_objects();
    }

    #[track_caller]
    pub fn check_objects(&self) {
        git(self.handle.path(), &["fsck", "--strict", "--no-dangling"]);
    }

    #[track_caller]
    pub fn head(&self) -> CommitId {
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }
}

pub fn bare(dir: &Path) -> RepositoryHandle {
    let store = ObjectStore::open(&dir.join("store")).unwrap();
    RepositoryHandle::init(&dir.join("bare.git"), store).unwrap()
}

pub fn metadata(message: &str) -> Metadata {
    let author = Author {
        name: "A".to_owned(),
        email: "a@example.org".to_owned(),
    };
    Metadata::new(author, message).at(Timestamp {
        seconds: 1_700_000_000,
        offset_minutes: 90,
    })
}

/// Files by path: whether they may be executed, and their content.
pub type Files = BTreeMap<String, (bool, String)>;

/// A commit of a made-up history: parents by their number, time, files.
#[derive(Clone, Debug)]
pub struct Made {
    pub parents: Vec<usize>,
    pub time: i64,
    pub files: Files,
}

/// Brings commits into a repository by `git fast-import`; their names.
#[track_caller]
pub fn import(bare: &Path, commits: &[Made]) -> Vec<CommitId> {
    let mut text = String::new();
    for (number, made) in commits.iter().enumerate() {
        let mark = number + 1;
        write!(
            text,
            "commit refs/made/{mark}\nmark :{mark}\n\
             committer A <a@example.org> {} +0000\ndata 4\nmade\n",
            made.time
        )
        .unwrap();
        for (at, parent) in made.parents.iter().enumerate() {
            let word = if at == 0 { "from" } else { "merge" };
            writeln!(text, "{word} :{}", parent + 1).unwrap();
        }
        text.push_str("deleteall\n");
        for (path, (executable, content)) in &made.files {
            let mode = if *executable { "100755" } else { "100644" };
            let len = content.len();
            write!(text, "M {mode} inline {path}\ndata {len}\n{content}\n").unwrap();
        }
        text.push('\n');
    }
    let marks = bare.join("made-marks");
    let mut child = command(bare)
        .args(["fast-import", "--quiet", "--force"])
        .arg(format!("--export-marks={}", marks.display()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    let marks = fs::read_to_string(marks).unwrap();
    let found: BTreeMap<usize, CommitId> = marks
        .lines()
        .map(|line| {
            let (mark, id) = line.split_once(' ').unwrap();
            (mark[1..].parse().unwrap(), id.parse().unwrap())
        })
        .collect();
    found.into_values().collect()
}

/// What git says, whatever its exit status, which is the second.
#[track_caller]
pub fn try_git(dir: &Path, args: &[&str]) -> (String, bool) {
    let output = command(dir).args(args).output().unwrap();
    (
        String::from_utf8(output.stdout).unwrap(),
        output.status.success(),
    )
}

/// Lines of a file that is like no other.
pub fn lines(name: &str) -> String {
    (0..24).fold(String::new(), |text, line| {
        text + &format!("{name} has its own line {line} {}\n", line * 7919 % 101)
    })
}

/// So many cases, or as many as `PROPTEST_CASES` says.
pub fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => default.cases,
            None => cases,
        },
        failure_persistence: None,
        // Every step of shrinking starts git many times.
        max_shrink_iters: 100,
        ..default
    }
}
