//! Many worktrees of one commit.

use std::{fs, path::Path, time::Instant};

use hyprstream_git2db::{
    RepositoryHandle,
    handle::worktrees::{Add, Start},
    storage::{Kind, probe},
    store::ObjectStore,
};

use crate::{Plan, Row, disk_bytes, seconds, support::git::git};

const COUNT: usize = 100;

pub(crate) fn measure(plan: &Plan) -> Vec<Row> {
    let folder = plan.folder.join("worktrees");
    fs::create_dir(&folder).unwrap();
    if let Err(why) = probe(&folder).unwrap().driver(Kind::Overlay2) {
        println!("| {COUNT} worktrees | not measured: {why} | | |");
        return Vec::new();
    }
    let store = ObjectStore::open(&folder.join("store")).unwrap();
    let repository = RepositoryHandle::init(&folder.join("bare.git"), store).unwrap();
    let work = folder.join("work");
    git(&folder, &["init", "-q", "-b", "main", "work"]);
    for n in 0..20 {
        fs::write(work.join(format!("f{n}")), vec![n; 100_000]).unwrap();
    }
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-q", "-m", "x"]);
    git(&work, &["push", "-q", "../bare.git", "main"]);
    let commit: hyprstream_git2db::CommitId = git(&work, &["rev-parse", "HEAD"]).parse().unwrap();

    let worktrees = repository.worktrees();
    let add = |name: &str| {
        let path = folder.join(name);
        let add = Add {
            driver: Some(Kind::Overlay2),
            ..Add::new(&path, Start::Detached(commit.clone()))
        };
        worktrees.add(&add).unwrap();
    };
    add("first");
    let before = disk_bytes(&folder);
    let before_content = content_bytes(&folder);
    let began = Instant::now();
    for n in 0..COUNT {
        add(&format!("w{n}"));
    }
    let ours_seconds = began.elapsed().as_secs_f64() / COUNT as f64;
    let ours = disk_bytes(&folder) - before;
    let ours_content = content_bytes(&folder) - before_content;
    let status = Instant::now();
    for n in 0..COUNT {
        assert_eq!(
            git(&folder.join(format!("w{n}")), &["status", "--porcelain"]),
            ""
        );
    }
    let ours_status = status.elapsed().as_secs_f64() / COUNT as f64;

    let before = disk_bytes(&folder);
    let before_content = content_bytes(&folder);
    let began = Instant::now();
    for n in 0..COUNT {
        let name = format!("../git{n}");
        git(
            repository.path(),
            &["worktree", "add", "-q", "--detach", &name, "main"],
        );
    }
    let git_seconds = began.elapsed().as_secs_f64() / COUNT as f64;
    let theirs = disk_bytes(&folder) - before;
    let theirs_content = content_bytes(&folder) - before_content;
    let status = Instant::now();
    for n in 0..COUNT {
        git(&folder.join(format!("git{n}")), &["status", "--porcelain"]);
    }
    let git_status = status.elapsed().as_secs_f64() / COUNT as f64;

    for info in worktrees.list().unwrap() {
        worktrees.remove(&info.name, true).unwrap();
    }
    let milliseconds = |what: &str, ours: f64, git: f64| {
        let mut row = seconds(what, vec![ours], vec![git]);
        row.ours = format!("{:.1} ms", ours * 1000.0);
        row.git = format!("{:.1} ms", git * 1000.0);
        row
    };
    vec![
        milliseconds(
            "one of 100 worktrees by overlay2, 20 files of 100 kB",
            ours_seconds,
            git_seconds,
        )
        .at_most(0.01, "10 ms"),
        milliseconds("`git status` in one", ours_status, git_status),
        crate::mebibytes("disk of all 100, in blocks", ours, theirs)
            .at_most(f64::from(1 << 20), "1 MiB"),
        Row {
            what: "bytes in their files, each inode once".to_owned(),
            ours: format!("{:.0} KiB", ours_content as f64 / 1024.0),
            git: format!("{:.0} KiB", theirs_content as f64 / 1024.0),
            ratio: Some(ours_content as f64 / theirs_content as f64),
            value: ours_content as f64,
            goal: None,
        },
    ]
}

/// Sizes of files below a folder and not below its mounts, each inode once.
fn content_bytes(folder: &Path) -> u64 {
    let mut find = std::process::Command::new("find");
    find.arg(folder)
        .args(["-xdev", "-type", "f", "-printf", "%i %s\\n"]);
    let text = String::from_utf8(find.output().unwrap().stdout).unwrap();
    let sizes = text.lines().filter_map(|line| line.split_once(' '));
    let sizes: std::collections::HashMap<&str, &str> = sizes.collect();
    sizes
        .values()
        .map(|size| size.parse::<u64>().unwrap())
        .sum()
}
