//! A commit of many small files.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use hyprstream_git2db::{
    CommitId, Include, Limits,
    checkout::{self, Source},
    store::ObjectStore,
};

use crate::{Plan, Row, seconds, support::git::git};

pub(crate) fn measure(plan: &Plan) -> Vec<Row> {
    let bare = plan.folder.join("small.git");
    let commit = make(&bare, plan.files);
    let (mut ours, mut again, mut theirs) = (vec![], vec![], vec![]);
    // Nothing is removed before the end: for minutes ext4 passes over what was, inode by inode,
    // when it makes files.
    for round in 0..plan.rounds {
        theirs.push(git_checkout(plan, &bare, round));
        let node = plan.folder.join(format!("node{round}"));
        let store = ObjectStore::open(&node.join("store")).unwrap();
        let checkout = |root: &str| {
            let source = Source {
                bare: &bare,
                commit: &commit,
                include: &Include::all(),
                limits: Limits {
                    max_entries: 2 * plan.files,
                    ..Limits::default()
                },
                store: &store,
            };
            let began = Instant::now();
            checkout::materialise(&source, &node.join(root)).unwrap();
            began.elapsed().as_secs_f64()
        };
        ours.push(checkout("first"));
        again.push(checkout("second"));
    }
    let files = plan.files;
    vec![
        seconds(
            &format!("checkout of {files} small files, verified and synced"),
            ours,
            theirs.clone(),
        )
        .at_most_of_git(2.5),
        seconds("the same, contents in the store already", again, theirs),
    ]
}

fn git_checkout(plan: &Plan, bare: &Path, round: usize) -> f64 {
    let tree = plan.folder.join(format!("tree{round}"));
    fs::create_dir(&tree).unwrap();
    let (work_tree, index) = (tree.to_str().unwrap().to_owned(), plan.folder.join("index"));
    let began = Instant::now();
    let status = Command::new("git")
        .arg("--git-dir")
        .arg(bare)
        .args(["--work-tree", &work_tree, "checkout", "-q", "-f", "main"])
        .env("GIT_INDEX_FILE", &index)
        .current_dir(&tree)
        .status();
    let took = began.elapsed().as_secs_f64();
    assert!(status.unwrap().success());
    fs::remove_file(index).unwrap();
    // What it left to be written is not ours to wait for.
    rustix::fs::sync();
    took
}

/// A packed repository of one commit, a hundred files to a folder.
fn make(bare: &Path, files: usize) -> CommitId {
    let above = bare.parent().unwrap();
    git(
        above,
        &["init", "-q", "--bare", "-b", "main", bare.to_str().unwrap()],
    );
    let mut import = Command::new("git")
        .arg("--git-dir")
        .arg(bare)
        .args(["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text =
        String::from("commit refs/heads/main\ncommitter A <a@example.org> 0 +0000\ndata 1\nx\n");
    for n in 0..files {
        let content = format!("file {n}\n").repeat(10 + n % 40);
        let (folder, length) = (n / 100, content.len());
        write!(
            text,
            "M 644 inline d{folder}/f{n}\ndata {length}\n{content}\n"
        )
        .unwrap();
    }
    import
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(import.wait().unwrap().success());
    git(bare, &["rev-parse", "main"]).parse().unwrap()
}
