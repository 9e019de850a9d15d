//! Two repositories that begin alike. Of each step we do the one's and stock git the other's, in
//! turn by chance, so that each goes on with what the other left; they stay alike, and whole.

use std::fs;

use hyprstream_git2db::{
    CommitId, Credentials, RemoteUrl,
    handle::{FetchOptions, Merge, Merged, PushRef, Reset, Tags, Target},
};
use proptest::prelude::*;

use crate::{
    desk::{Desk, cases, lines, metadata},
    support::git::{command, git},
};

const PATHS: [&str; 5] = ["a", "b", "dir/c", "dir/d", "moved/a"];
const BRANCHES: [&str; 3] = ["main", "b1", "b2"];

/// A step: which of the twins is ours, what is done, to which file, branch and line.
type Step = (usize, u8, usize, usize, usize);

struct Twins([Desk; 2]);

impl Twins {
    fn new() -> Self {
        let twins = Self([Desk::new(), Desk::new()]);
        for desk in &twins.0 {
            git(
                desk.dir.path(),
                &["init", "-q", "--bare", "-b", "main", "remote.git"],
            );
            // A commit without a time of its own would be another in each.
            let first = stock(
                desk,
                &[
                    "commit",
                    "-q",
                    "--amend",
                    "--reset-author",
                    "--allow-empty",
                    "-m",
                    "first",
                ],
            );
            assert!(first);
            for path in &PATHS[..4] {
                desk.write(path, lines(path));
            }
            desk.commit("Begin");
        }
        twins
    }

    /// Does a step on both; what was done, if it could be.
    fn step(&self, (ours, act, path, branch, line): Step) -> String {
        let (us, they) = (&self.0[ours], &self.0[1 - ours]);
        let (path, name) = (PATHS[path], BRANCHES[branch]);
        let same = |what: &str, ours: bool, theirs: bool| {
            assert_eq!(ours, theirs, "{what}: ours, and git's");
            format!("{what}: {ours}")
        };
        let is_clean = us.git(&["status", "--porcelain"]).is_empty();
        match act {
            0..=2 => {
                for desk in &self.0 {
                    let mut all: Vec<String> = lines(path).lines().map(str::to_owned).collect();
                    let at = line % all.len();
                    all[at] = format!("line {line} of {name}");
                    desk.write(path, all.join("\n") + "\n");
                }
                format!("write {path}")
            }
            3 => {
                for desk in &self.0 {
                    let _ = fs::remove_file(desk.path(path));
                }
                format!("delete {path}")
            }
            4 => same(
                "add",
                us.tree.add_all().is_ok(),
                stock(they, &["add", "-A"]),
            ),
            5 | 6 => {
                // Mostly with something to commit.
                us.tree.add_all().unwrap();
                assert!(stock(they, &["add", "-A"]));
                let said = format!("by {name} {line}");
                let ours = us.tree.commit(&metadata(&said));
                same(
                    "commit",
                    ours.is_ok(),
                    stock(they, &["commit", "-q", "-m", &said]),
                )
            }
            7 => {
                let ours = us.tree.amend(Some(&metadata("Better")));
                let words = ["commit", "-q", "--amend", "--allow-empty", "-m", "Better"];
                same("amend", ours.is_ok(), stock(they, &words))
            }
            8 => {
                let ours = us.handle.create_branch(name, &us.head(), false);
                same("branch", ours.is_ok(), stock(they, &["branch", "-q", name]))
            }
            9 if name != "main" => {
                let ours = us.handle.delete_branch(name, true);
                same(
                    "branch -D",
                    ours.is_ok(),
                    stock(they, &["branch", "-q", "-D", name]),
                )
            }
            10 => {
                let tag = format!("t{}", line % 4);
                let said = metadata("A tag");
                let said = (line % 2 == 1).then_some(&said);
                let ours = us.handle.create_tag(&tag, &us.head(), said);
                let words: &[&str] = match said {
                    Some(_) => &["tag", "-a", "-m", "A tag", &tag],
                    None => &["tag", &tag],
                };
                same("tag", ours.is_ok(), stock(they, words))
            }
            11 => {
                let tag = format!("t{}", line % 4);
                let ours = us.handle.delete_tag(&tag);
                same("tag -d", ours.is_ok(), stock(they, &["tag", "-d", &tag]))
            }
            12 => {
                let ours = us.tree.restore(&[path], None);
                same(
                    "restore",
                    ours.is_ok(),
                    stock(they, &["restore", "-q", "--", path]),
                )
            }
            13 => {
                let ours = us.tree.remove(&[path], false, true);
                same(
                    "rm",
                    ours.is_ok(),
                    stock(they, &["rm", "-q", "-f", "--", path]),
                )
            }
            14 if path.starts_with('a') => {
                let ours = us.tree.rename(path, "moved/a");
                // git makes no folder for it.
                fs::create_dir_all(they.path("moved")).unwrap();
                let done = same("mv", ours.is_ok(), stock(they, &["mv", path, "moved/a"]));
                let _ = fs::remove_dir(they.path("moved"));
                done
            }
            15 => {
                let Some(parent) = parent(us, "HEAD") else {
                    return String::new();
                };
                let (how, flag) = [
                    (Reset::Soft, "--soft"),
                    (Reset::Mixed, "--mixed"),
                    (Reset::Hard, "--hard"),
                ][line % 3];
                let ours = us.tree.reset(&parent, how);
                same(
                    flag,
                    ours.is_ok(),
                    stock(they, &["reset", "-q", flag, "HEAD~1"]),
                )
            }
            16 | 17 if is_clean => {
                let ours = us.tree.switch(Target::Branch(name), false);
                same(
                    "switch",
                    ours.is_ok(),
                    stock(they, &["switch", "-q", "--no-guess", name]),
                )
            }
            18 if is_clean => {
                let head = us.head();
                let ours = us.tree.switch(Target::Commit(&head), false);
                same(
                    "detach",
                    ours.is_ok(),
                    stock(they, &["switch", "-q", "--detach"]),
                )
            }
            19 | 20 if is_clean => {
                let Ok(tip) = us.handle.branch_tip(name) else {
                    return String::new();
                };
                let ours = merged(&us.tree.merge(&tip, &Merge::new(metadata("Merge"))));
                let theirs = stock(they, &["merge", "-q", "-m", "Merge", tip.as_str()]);
                if !theirs {
                    stock(they, &["merge", "--abort"]);
                }
                same("merge", ours, theirs)
            }
            21 if is_clean => {
                let tip = us.handle.branch_tip(name).ok();
                let Some(tip) = tip.filter(|tip| one_parent(us, tip)) else {
                    return String::new();
                };
                let said = us.handle.commit_info(&tip).unwrap().message;
                let picked = us.tree.cherry_pick(&tip, None, &metadata(&said));
                let theirs = stock(they, &["cherry-pick", tip.as_str()]);
                if !theirs {
                    // In conflict, or there already: git asks, we say so.
                    stock(they, &["cherry-pick", "--abort"]);
                }
                same(
                    "cherry-pick",
                    matches!(picked, Ok(Merged::Committed(_))),
                    theirs,
                )
            }
            22 if is_clean && one_parent(us, &us.head()) => {
                let back = us.tree.revert(&us.head(), None, &metadata("Back"));
                let theirs = stock(they, &["revert", "-n", "HEAD"])
                    && stock(they, &["commit", "-q", "-m", "Back"]);
                if !theirs {
                    stock(they, &["revert", "--abort"]);
                    stock(they, &["reset", "-q", "--hard"]);
                }
                same("revert", matches!(back, Ok(Merged::Committed(_))), theirs)
            }
            23 => {
                let refs = [PushRef::branch(name)];
                let ours = us.handle.push(&remote(us), &refs, &Credentials::None, &());
                let theirs = stock(they, &["push", "-q", "../remote.git", name]);
                same("push", ours.is_ok(), theirs)
            }
            24 => {
                let spec = "+refs/heads/*:refs/remotes/o/*";
                let options = FetchOptions {
                    refspecs: vec![spec.parse().unwrap()],
                    tags: Tags::None,
                    prune: true,
                    ..FetchOptions::default()
                };
                let ours = us
                    .handle
                    .fetch_url(&remote(us), &options, &Credentials::None, &());
                let words = ["fetch", "-q", "--prune", "--no-tags", "../remote.git", spec];
                same("fetch", ours.is_ok(), stock(they, &words))
            }
            25 => {
                let spec = format!("refs/heads/{name}:refs/heads/elsewhere");
                let refs = [PushRef::parse(&spec)];
                let ours = us.handle.push(&remote(us), &refs, &Credentials::None, &());
                let theirs = stock(they, &["push", "-q", "../remote.git", &spec]);
                same("push to another name", ours.is_ok(), theirs)
            }
            26 | 27 => {
                let tag = format!("t{}", line % 4);
                let mut refs = vec![PushRef::tag(&tag)];
                let full = format!("refs/tags/{tag}");
                let mut words = vec!["push", "-q", "--atomic", "../remote.git", &full];
                if act == 27 {
                    refs.push(PushRef::branch(name));
                    words.push(name);
                }
                let ours = us.handle.push(&remote(us), &refs, &Credentials::None, &());
                same("push a tag", ours.is_ok(), stock(they, &words))
            }
            28 if name != "main" => {
                let full = format!("refs/heads/{name}");
                if refs(us, "remote.git").contains(&full) {
                    let refs = [PushRef::delete(&full)];
                    let ours = us.handle.push(&remote(us), &refs, &Credentials::None, &());
                    let theirs = stock(they, &["push", "-q", "../remote.git", &format!(":{full}")]);
                    return same("push to delete", ours.is_ok(), theirs);
                }
                String::new()
            }
            29 if name != "main" => {
                let moved = us.handle.branch_tip("moved").is_ok();
                let (from, to) = if moved {
                    ("moved", name)
                } else {
                    (name, "moved")
                };
                let ours = us.handle.rename_branch(from, to, false);
                let theirs = stock(they, &["branch", "-q", "-m", from, to]);
                same("branch -m", ours.is_ok(), theirs)
            }
            30 if name != "main" => {
                let (upstream, words) = if line % 3 == 0 {
                    (None, vec!["branch", "-q", "--unset-upstream", name])
                } else {
                    (Some("main"), vec!["branch", "-q", "-u", "main", name])
                };
                if upstream.is_none() && !refs(us, "bare.git").contains(&format!("{name} main")) {
                    return String::new();
                }
                let ours = us.handle.set_upstream(name, upstream);
                same("branch -u", ours.is_ok(), stock(they, &words))
            }
            _ => String::new(),
        }
    }
}

/// Stock git in the worktree, at the time of our commits; whether it could.
fn stock(desk: &Desk, words: &[&str]) -> bool {
    let output = command(desk.tree.path())
        .args([
            "-c",
            "merge.directoryRenames=false",
            "-c",
            "core.editor=true",
        ])
        .args(words)
        .env("GIT_AUTHOR_DATE", "1700000000 +0130")
        .env("GIT_COMMITTER_DATE", "1700000000 +0130")
        .output();
    output.unwrap().status.success()
}

fn remote(desk: &Desk) -> RemoteUrl {
    let path = desk.dir.path().canonicalize().unwrap();
    RemoteUrl::local(&path.join("remote.git")).unwrap()
}

/// Also histories that are unrelated, since the first commit was amended, are not merged.
fn merged<E>(result: &Result<Merged, E>) -> bool {
    !matches!(result, Err(_) | Ok(Merged::Conflicts(_)))
}

fn parent(desk: &Desk, of: &str) -> Option<CommitId> {
    let commit = desk.git(&["rev-parse", of]).parse().unwrap();
    desk.handle
        .commit_info(&commit)
        .unwrap()
        .parents
        .first()
        .cloned()
}

fn one_parent(desk: &Desk, commit: &CommitId) -> bool {
    desk.handle.commit_info(commit).unwrap().parents.len() == 1
}

/// The refs of a twin's repository, which stock git finds whole, with their upstreams.
fn refs(desk: &Desk, name: &str) -> String {
    let bare = desk.dir.path().join(name);
    git(&bare, &["fsck", "--strict", "--no-dangling"]);
    let format = "--format=%(objectname) %(refname) %(upstream:short)";
    git(&bare, &["for-each-ref", format])
}

/// What stock git finds in a twin, which it finds whole.
fn state(desk: &Desk) -> [String; 5] {
    desk.check_objects();
    let all = refs(desk, "bare.git");
    let all: Vec<&str> = all
        .lines()
        .filter(|line| !line.contains(" refs/hyprstream/"))
        .collect();
    let head = fs::read_to_string(desk.dir.path().join("bare.git/worktrees/work/HEAD"));
    [
        all.join("\n"),
        refs(desk, "remote.git"),
        desk.git(&["status", "--porcelain=v2", "-uall"]),
        head.unwrap(),
        desk.git(&["ls-files", "--stage"]),
    ]
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn what_we_do_and_what_git_does_are_the_same_and_each_goes_on_with_the_other(
        steps in proptest::collection::vec(
            (0..2_usize, 0..31_u8, 0..PATHS.len(), 0..BRANCHES.len(), 0..24_usize),
            12..36,
        ),
    ) {
        let twins = Twins::new();
        let mut done = Vec::new();
        for step in steps {
            done.push(format!("{step:?} {}", twins.step(step)));
            let [one, other] = [0, 1].map(|twin| state(&twins.0[twin]));
            prop_assert_eq!(one, other, "after {:#?}", done);
        }
    }
}
