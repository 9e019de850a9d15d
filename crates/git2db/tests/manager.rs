//! The registry of tracked repositories: threads, processes, kills.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    Git2DB, GitManager, Reference,
    manager::{Adding, Name},
};
use support::{Work, git::git};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(db: &Git2DB) -> Vec<String> {
    let all = db.list().unwrap();
    all.into_iter().map(|t| t.name.to_string()).collect()
}

/// What must hold whatever happened before: what is listed is whole, and nothing else is there.
#[track_caller]
fn check(db: &Git2DB) {
    let listed = db.list().unwrap();
    for tracked in &listed {
        git(&tracked.path, &["fsck", "--strict"]);
    }
    let own: BTreeSet<_> = listed
        .iter()
        .filter(|t| !t.is_referenced)
        .map(|t| t.path.clone())
        .collect();
    let there: BTreeSet<_> = fs::read_dir(db.root().join("repositories"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(own, there);
    assert_eq!(fs::read_dir(db.root().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_repository_is_made_renamed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let made = db.create(name("org/a")).unwrap();
    assert_eq!(db.create(name("org/a")).unwrap_err().reason(), "NameTaken");
    db.create(name("b")).unwrap();
    assert_eq!(names(&db), ["b", "org/a"]);
    let handle = db.repository(&name("org/a")).unwrap();
    assert_eq!(
        db.rename(&name("org/a"), name("b")).unwrap_err().reason(),
        "NameTaken"
    );
    let renamed = db.rename(&name("org/a"), name("c")).unwrap();
    assert_eq!(
        (renamed.id, renamed.path),
        (made.id, handle.path().to_owned())
    );
    assert!(handle.remotes().unwrap().is_empty());
    db.follow(&name("c"), Reference::Tag("v1".into())).unwrap();
    db.mark_fetched(&name("c")).unwrap();
    let seen = Git2DB::open(dir.path()).unwrap().get(&name("c")).unwrap();
    assert_eq!(seen.reference, Reference::Tag("v1".into()));
    assert!(seen.last_fetched.is_some());
    db.remove(&name("c")).unwrap();
    assert_eq!(
        db.remove(&name("c")).unwrap_err().reason(),
        "RepositoryNotFound"
    );
    assert_eq!(names(&db), ["b"]);
    assert!(
        handle.remotes().is_err(),
        "what was removed is not used from the pool"
    );
    check(&db);
}

#[test]
fn a_repository_is_adopted_with_its_bytes_or_referenced_without() {
    let work = Work::new();
    work.write("a", "1").commit();
    let dir = tempfile::tempdir_in(work.dir.path()).unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let referenced = db
        .add(name("work"), &work.work(), Adding::Reference)
        .unwrap();
    assert_eq!(
        referenced.path,
        work.work().join(".git").canonicalize().unwrap()
    );
    let error = db.add(name("x"), &work.work(), Adding::Adopt).unwrap_err();
    assert_eq!(error.reason(), "RefusedContent", "{error}");
    let worktree = work.dir.path().join("tree");
    git(
        &work.origin(),
        &["worktree", "add", "-q", worktree.to_str().unwrap(), "main"],
    );
    let error = db
        .add(name("x"), &work.origin(), Adding::Adopt)
        .unwrap_err();
    assert!(error.to_string().contains("worktrees"), "{error}");
    git(
        &work.origin(),
        &["worktree", "remove", "--force", worktree.to_str().unwrap()],
    );
    let adopted = db.add(name("x"), &work.origin(), Adding::Adopt).unwrap();
    assert!(!work.origin().exists() && adopted.reference == Reference::Branch("main".into()));
    git(
        &adopted.path,
        &["worktree", "add", "-q", worktree.to_str().unwrap(), "main"],
    );
    assert_eq!(db.remove(&name("x")).unwrap_err().reason(), "InUse");
    git(
        &adopted.path,
        &["worktree", "remove", "--force", worktree.to_str().unwrap()],
    );
    db.remove(&name("x")).unwrap();
    db.remove(&name("work")).unwrap();
    work.git(&["fsck", "--strict"]);
    assert!(!adopted.path.exists());
    check(&db);
}

#[test]
fn a_lost_or_newer_list_is_not_taken_for_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let kept = db.create(name("a")).unwrap();
    let list = dir.path().join("repositories.json");
    let text = fs::read_to_string(&list).unwrap();
    fs::remove_file(&list).unwrap();
    assert!(Git2DB::open(dir.path()).is_err() && db.create(name("b")).is_err());
    for broken in ["", "{", &text.replace("\"version\": 1", "\"version\": 2")] {
        fs::write(&list, broken).unwrap();
        assert!(
            db.list().is_err() && db.create(name("b")).is_err(),
            "{broken:?}"
        );
    }
    assert!(kept.path.exists());
    fs::write(&list, text).unwrap();
    assert_eq!(names(&db), ["a"]);
    check(&db);
}

#[test]
fn a_move_that_was_killed_is_finished_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let made = db.create(name("a")).unwrap();
    let list = dir.path().join("repositories.json");
    // As killed after the move and before the list was written again.
    let moving = |id: &str| {
        let text = fs::read_to_string(&list).unwrap();
        let text =
            text.replace(&made.id, id)
                .replacen("\"created\"", "\"moving\": true, \"created\"", 1);
        fs::write(&list, text).unwrap();
    };
    moving(&made.id);
    assert!(names(&db).is_empty(), "nothing half-made is listed");
    Git2DB::open(dir.path()).unwrap();
    assert_eq!(names(&db), ["a"]);
    // As killed before the move. The folder of the other id is nobody's now, as after a removal.
    moving(&"1".repeat(32));
    Git2DB::open(dir.path()).unwrap();
    assert!(names(&db).is_empty());
    check(&db);
}

const CHILD: &str = "GIT2DB_MANAGER_CHILD";

/// What the processes below do, until they are killed or have done it.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let (root, rest) = arguments.split_once('|').unwrap();
    let (who, rounds) = rest.split_once('|').unwrap();
    let db = Git2DB::open(Path::new(root)).unwrap();
    for round in 0..rounds.parse().unwrap() {
        let made = name(&format!("{who}/{round}"));
        db.create(made.clone()).unwrap();
        let renamed = name(&format!("{who}/renamed-{round}"));
        db.rename(&made, renamed.clone()).unwrap();
        if round % 2 == 0 {
            db.remove(&renamed).unwrap();
        }
    }
}

fn spawn(root: &Path, who: &str, rounds: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, format!("{}|{who}|{rounds}", root.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn many_processes_lose_nothing_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let mut children: Vec<_> = (0..6)
        .map(|n| spawn(dir.path(), &format!("p{n}"), 6))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let expected: Vec<_> = (0..6)
        .flat_map(|n| [1, 3, 5].map(|round| format!("p{n}/renamed-{round}")))
        .collect();
    assert_eq!(names(&db), expected);
    check(&db);
}

#[test]
fn a_process_that_is_killed_at_any_time_leaves_what_is_listed_whole() {
    let dir = tempfile::tempdir().unwrap();
    drop(Git2DB::open(dir.path()).unwrap());
    let mut before = 0;
    for round in 0..25_u64 {
        let mut child = spawn(dir.path(), &format!("k{round}"), 1000);
        let folder = dir.path().join("repositories");
        let until = Instant::now() + Duration::from_secs(20);
        // It has begun with its work; then somewhere within the next.
        let prefix = format!("\"k{round}/");
        let list = dir.path().join("repositories.json");
        while !fs::read_to_string(&list)
            .unwrap_or_default()
            .contains(&prefix)
        {
            assert!(Instant::now() < until, "the child does nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let db = Git2DB::open(dir.path()).unwrap();
        check(&db);
        before = before.max(fs::read_dir(&folder).unwrap().count());
    }
    assert!(before > 0, "some repository was made and kept");
}

#[test]
fn the_pool_gives_one_operation_one_repository_and_none_that_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let db = Git2DB::open(dir.path()).unwrap();
    let made = db.create(name("a")).unwrap();
    let handle = db.repository(&name("a")).unwrap();
    let (reused, _) = GitManager::global().reused_and_opened();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert!(handle.remotes().unwrap().is_empty());
                }
            });
        }
    });
    assert!(GitManager::global().reused_and_opened().0 > reused);
    // Another program changes the configuration.
    git(
        &made.path,
        &["remote", "add", "up", "https://example.org/a"],
    );
    assert_eq!(handle.remotes().unwrap()[0].name, "up");
    // Another repository takes the place of this one.
    let other = db.create(name("b")).unwrap();
    fs::remove_dir_all(&made.path).unwrap();
    fs::rename(&other.path, &made.path).unwrap();
    assert!(handle.remotes().unwrap().is_empty());
    fs::remove_dir_all(&made.path).unwrap();
    assert!(handle.remotes().is_err());
}
