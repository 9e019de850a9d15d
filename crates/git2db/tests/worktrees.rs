//! Worktrees by storage drivers, with stock git and git-lfs as witnesses.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use hyprstream_git2db::{
    CommitId, Digest, Include, Reference, RepositoryHandle,
    handle::worktrees::{Add, Head, Pruned, Start, State, WorktreesError},
    repo,
    storage::{self, Kind, mount},
    store::ObjectStore,
};
use support::{Work, git::git};

const WEIGHTS: &[u8] = &[42; 100_000];

/// A bare repository with a commit of LFS and other files, made by stock git.
struct Bench {
    /// Its repository is the upstream.
    _work: Work,
    dir: tempfile::TempDir,
    repository: RepositoryHandle,
    commit: CommitId,
}

impl Bench {
    fn new() -> Self {
        let work = Work::new();
        work.git(&["lfs", "install", "--local"]);
        work.write(
            ".gitattributes",
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        )
        .write(".gitignore", "*.tmp\n")
        .write("config.json", "{}")
        .write("empty", "")
        .write("folder/deep/notes.txt", "notes")
        .write("model.safetensors", WEIGHTS)
        .write("run.sh", "#!/bin/sh\n");
        std::os::unix::fs::symlink("config.json", work.work().join("link")).unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(work.work().join("run.sh"), executable).unwrap();
        let commit = work.commit();
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&dir.path().join("store")).unwrap();
        let bare = dir.path().join("bare.git");
        let repository = RepositoryHandle::init(&bare, store).unwrap();
        repository.store().insert_bytes(WEIGHTS).unwrap();
        let url = work.origin();
        git(&bare, &["fetch", "-q", url.to_str().unwrap(), "main:main"]);
        Self {
            _work: work,
            dir,
            repository,
            commit,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn detached(&self) -> Start {
        Start::Detached(self.commit.clone())
    }

    #[track_caller]
    fn add(&self, name: &str, start: Start, kind: Kind) -> PathBuf {
        let path = self.at(name);
        let add = Add {
            driver: Some(kind),
            ..Add::new(&path, start)
        };
        let made = self.repository.worktrees().add(&add).unwrap();
        assert_eq!(made.path(), path);
        path
    }

    fn remove(&self, name: &str) {
        self.repository.worktrees().remove(name, true).unwrap();
    }

    /// Nothing is mounted, and no file of worktrees is left.
    #[track_caller]
    fn is_clean(&self) {
        let pruned = self.repository.worktrees().prune().unwrap();
        assert_eq!(pruned.worktrees, [""; 0]);
        let root = self.dir.path().canonicalize().unwrap();
        let left = mount::list()
            .unwrap()
            .into_iter()
            .filter(|m| m.path.starts_with(&root));
        assert_eq!(left.count(), 0);
        for folder in [
            "worktrees",
            "hyprstream/views",
            "hyprstream/checkouts",
            "hyprstream/tmp",
        ] {
            let folder = self.at("bare.git").join(folder);
            let names: Vec<_> = fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            assert!(names.is_empty(), "{names:?}");
        }
    }
}

/// git with git-lfs's filter in the way that it is installed for a user.
fn lfs_git(dir: &Path, args: &[&str]) -> String {
    let filter = |what: &str| format!("filter.lfs.{what}=git-lfs {what} -- %f");
    let process = "filter.lfs.process=git-lfs filter-process";
    let (clean, smudge) = (filter("clean"), filter("smudge"));
    let mut all = vec![
        "-c",
        process,
        "-c",
        &clean,
        "-c",
        &smudge,
        "-c",
        "filter.lfs.required=true",
    ];
    all.extend(args);
    git(dir, &all)
}

#[track_caller]
fn is_clean(worktree: &Path) {
    // Both without a filter, where reading a weight file would show it as modified, and with it.
    assert_eq!(git(worktree, &["status", "--porcelain"]), "");
    assert_eq!(lfs_git(worktree, &["status", "--porcelain"]), "");
    assert_eq!(git(worktree, &["diff-files", "--name-only"]), "");
}

fn drivers() -> Vec<Kind> {
    let probe = storage::probe(&std::env::temp_dir()).unwrap();
    let all = [Kind::Overlay2, Kind::FuseOverlay, Kind::Vfs].into_iter();
    all.filter(|kind| {
        probe
            .driver(*kind)
            .map_err(|why| println!("skipped: {why}"))
            .is_ok()
    })
    .collect()
}

fn git_fails(dir: &Path, args: &[&str]) -> String {
    let output = support::git::command(dir).args(args).output().unwrap();
    assert!(!output.status.success(), "git {args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn stock_git_finds_a_new_worktree_clean_and_works_in_it() {
    for kind in drivers() {
        let bench = Bench::new();
        let path = bench.add("one", Start::Branch("main".into()), kind);
        is_clean(&path);
        assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), WEIGHTS);
        assert_eq!(fs::read(path.join("link")).unwrap(), b"{}");
        assert_eq!(git(&path, &["rev-parse", "HEAD"]), bench.commit.as_str());
        assert_eq!(git(&path, &["branch", "--show-current"]), "main");
        assert_eq!(git(&path, &["diff", "--cached", "--name-only"]), "");
        assert_eq!(
            git(&path, &["ls-files", "-s", "run.sh"]).split(' ').next(),
            Some("100755")
        );

        fs::write(path.join("config.json"), "[]").unwrap();
        fs::write(path.join("new.safetensors"), vec![1; 5000]).unwrap();
        fs::remove_file(path.join("empty")).unwrap();
        assert_eq!(
            lfs_git(&path, &["status", "--porcelain"]),
            "M config.json\n D empty\n?? new.safetensors"
        );
        lfs_git(&path, &["add", "-A"]);
        lfs_git(&path, &["commit", "-q", "-m", "x"]);
        assert_eq!(lfs_git(&path, &["status", "--porcelain"]), "");
        assert!(git(&path, &["show", "HEAD:new.safetensors"]).contains("size 5000"));
        let head = git(&path, &["rev-parse", "HEAD"]);
        let named = repo::resolve_local(bench.repository.path(), &Reference::Branch("main".into()));
        assert_eq!(named.unwrap().unwrap().as_str(), head);
        bench.remove("one");
        assert!(!path.exists());
        bench.is_clean();
    }
}

#[test]
fn git_reads_no_file_to_know_that_a_worktree_is_clean() {
    for kind in drivers() {
        let bench = Bench::new();
        let path = bench.add("one", bench.detached(), kind);
        // Another checkout links the same objects, which changes their change times.
        let two = bench.at("two");
        let other = Add {
            driver: Some(kind),
            include: Include::new(&["*.safetensors"]).unwrap(),
            ..Add::new(&two, bench.detached())
        };
        bench.repository.worktrees().add(&other).unwrap();
        let opened = bench.at("opened");
        let command = format!(
            "strace -f -qq -e trace=openat -o {} git status --porcelain",
            opened.display()
        );
        let traced = Command::new("sh")
            .args(["-c", &command])
            .current_dir(&path)
            .output();
        if traced.unwrap().status.success() {
            let opened = fs::read_to_string(opened).unwrap();
            assert!(!opened.contains("model.safetensors"), "{opened}");
        } else {
            println!("strace is not here: the filter that is missing shows a read file");
        }
        is_clean(&path);
        bench.remove("one");
        bench.remove("two");
        bench.is_clean();
    }
}

#[test]
fn what_is_left_out_is_not_missed() {
    for kind in drivers() {
        let bench = Bench::new();
        let path = bench.at("sparse");
        let include = Include::new(&["config.json", "folder/**", ".gitattributes"]).unwrap();
        let add = Add {
            driver: Some(kind),
            include,
            ..Add::new(&path, bench.detached())
        };
        bench.repository.worktrees().add(&add).unwrap();
        is_clean(&path);
        assert!(!path.join("model.safetensors").exists());
        assert!(git(&path, &["ls-files", "-t"]).contains("S model.safetensors"));
        fs::write(path.join("config.json"), "[]").unwrap();
        git(&path, &["commit", "-q", "-a", "-m", "x"]);
        assert!(git(&path, &["ls-tree", "-r", "HEAD"]).contains("model.safetensors"));
        bench
            .repository
            .worktrees()
            .remove("sparse", false)
            .unwrap();
        bench.is_clean();
    }
}

#[test]
fn a_branch_is_checked_out_once() {
    let bench = Bench::new();
    let worktrees = bench.repository.worktrees();
    let main = || Start::Branch("main".into());
    let one = bench.add("one", main(), Kind::Vfs);
    let error = worktrees
        .add(&Add::new(&bench.at("two"), main()))
        .unwrap_err();
    assert!(matches!(error, WorktreesError::BranchInUse { path, .. } if path == one));
    let dev = || Start::NewBranch {
        name: "dev".into(),
        commit: bench.commit.clone(),
    };
    let two = bench.add("two", dev(), Kind::Vfs);
    assert_eq!(git(&two, &["branch", "--show-current"]), "dev");
    let error = worktrees
        .add(&Add::new(&bench.at("three"), dev()))
        .unwrap_err();
    assert!(
        matches!(error, WorktreesError::BranchExists { .. }),
        "{error}"
    );
    // Stock git knows of ours, and we of stock git's.
    let refused = git_fails(
        bench.repository.path(),
        &["worktree", "add", "../three", "dev"],
    );
    assert!(refused.contains("already"), "{refused}");
    git(
        bench.repository.path(),
        &["worktree", "add", "-q", "-b", "theirs", "../theirs", "main"],
    );
    let theirs = Start::Branch("theirs".into());
    let error = worktrees
        .add(&Add::new(&bench.at("three"), theirs))
        .unwrap_err();
    assert!(
        matches!(error, WorktreesError::BranchInUse { .. }),
        "{error}"
    );
    let invalid = Start::NewBranch {
        name: "a..b".into(),
        commit: bench.commit.clone(),
    };
    for start in [
        Start::Branch("none".into()),
        Start::Detached("1".repeat(40).parse().unwrap()),
        invalid,
    ] {
        let error = worktrees
            .add(&Add::new(&bench.at("three"), start))
            .unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
    }
    assert!(!bench.at("three").exists());
    let all = worktrees.list().unwrap();
    let heads: Vec<_> = all
        .iter()
        .map(|i| (i.name.as_str(), i.head.clone(), i.driver))
        .collect();
    let branch = |name: &str| Some(Head::Branch(name.to_owned()));
    assert_eq!(
        heads,
        [
            ("one", branch("main"), Some(Kind::Vfs)),
            ("theirs", branch("theirs"), None),
            ("two", branch("dev"), Some(Kind::Vfs)),
        ]
    );
    let listed = git(
        bench.repository.path(),
        &["worktree", "list", "--porcelain"],
    );
    for path in [&one, &two] {
        assert!(
            listed.contains(&format!("worktree {}\n", path.display())),
            "{listed}"
        );
    }
    // A wrong note does not let another's folder go.
    let gitdir = bench.at("bare.git/worktrees/theirs/gitdir");
    let right = fs::read(&gitdir).unwrap();
    fs::write(&gitdir, format!("{}\n", one.join(".git").display())).unwrap();
    let error = worktrees.remove("theirs", true).unwrap_err();
    assert_eq!(error.reason(), "BadPath", "{error}");
    fs::write(&gitdir, right).unwrap();
    for name in ["one", "two", "theirs"] {
        worktrees.open(name).unwrap();
        bench.remove(name);
    }
    bench.is_clean();
}

#[test]
fn what_is_not_committed_is_kept_unless_forced() {
    for kind in drivers() {
        let bench = Bench::new();
        let worktrees = bench.repository.worktrees();
        let path = bench.add("one", bench.detached(), kind);
        fs::write(path.join("ignored.tmp"), "").unwrap();
        fs::write(path.join("untracked"), "").unwrap();
        let error = worktrees.remove("one", false).unwrap_err();
        assert!(
            matches!(&error, WorktreesError::Uncommitted { example, .. } if example == "untracked"),
            "{error}"
        );
        fs::remove_file(path.join("untracked")).unwrap();
        fs::remove_file(path.join("folder/deep/notes.txt")).unwrap();
        let error = worktrees.remove("one", false).unwrap_err();
        assert_eq!(
            (error.reason(), error.is_retriable()),
            ("UncommittedChanges", false)
        );
        git(&path, &["checkout", "-q", "folder"]);
        worktrees.lock("one", "mine").unwrap();
        assert!(matches!(
            worktrees.lock("one", "again"),
            Err(WorktreesError::Locked { .. })
        ));
        assert!(git(&path, &["worktree", "list", "--porcelain"]).contains("locked mine"));
        assert!(matches!(
            worktrees.remove("one", true),
            Err(WorktreesError::Locked { .. })
        ));
        worktrees.unlock("one").unwrap();
        worktrees.unlock("one").unwrap();
        assert_eq!(worktrees.info("one").unwrap().locked, None);
        worktrees.remove("one", false).unwrap();
        assert!(matches!(
            worktrees.remove("one", true),
            Err(WorktreesError::NotFound { .. })
        ));
        assert!(matches!(
            worktrees.info("../refs"),
            Err(WorktreesError::NotFound { .. })
        ));
        bench.is_clean();
    }
}

#[test]
fn after_a_reboot_the_files_come_back_with_what_was_written() {
    for kind in drivers()
        .into_iter()
        .filter(|kind| storage::driver(*kind).is_mount())
    {
        let bench = Bench::new();
        let worktrees = bench.repository.worktrees();
        let path = bench.add("one", Start::Branch("main".into()), kind);
        fs::write(path.join("config.json"), "written").unwrap();
        mount::unmount(&path, false).unwrap();
        assert_eq!(worktrees.info("one").unwrap().state, State::Hidden);
        assert!(matches!(
            worktrees.open("one"),
            Err(WorktreesError::NotThere { .. })
        ));
        // Stock git's housekeeping and ours leave it alone.
        git(
            bench.repository.path(),
            &["worktree", "prune", "--expire", "now"],
        );
        assert_eq!(worktrees.prune().unwrap(), Pruned::default());
        let shown = worktrees.mount_all().unwrap();
        assert!(shown.len() == 1 && shown[0].1.is_ok(), "{shown:?}");
        assert_eq!(fs::read(path.join("config.json")).unwrap(), b"written");
        assert_eq!(git(&path, &["status", "--porcelain"]), "M config.json");
        // Its changes are seen although it is not mounted.
        mount::unmount(&path, false).unwrap();
        let error = worktrees.remove("one", false).unwrap_err();
        assert!(
            matches!(error, WorktreesError::Uncommitted { .. }),
            "{error}"
        );
        let open = fs::File::open(path.join("empty")).unwrap();
        let error = worktrees.remove("one", true).unwrap_err();
        assert_eq!((error.reason(), error.is_retriable()), ("InUse", true));
        assert_eq!(worktrees.info("one").unwrap().state, State::Present);
        drop(open);
        bench.remove("one");
        bench.is_clean();
    }
}

#[test]
fn what_a_kill_leaves_is_pruned() {
    for kind in drivers() {
        let bench = Bench::new();
        let worktrees = bench.repository.worktrees();
        let path = bench.add("one", bench.detached(), kind);
        let record = bench.at("bare.git/worktrees/one/hyprstream.json");
        // As it is until the last step.
        let half = fs::read_to_string(&record)
            .unwrap()
            .replace("true", "false");
        fs::write(&record, half).unwrap();
        assert_eq!(worktrees.info("one").unwrap().state, State::Missing);
        let pruned = worktrees.prune().unwrap();
        assert_eq!((pruned.worktrees.len(), pruned.checkouts.len()), (1, 1));
        assert!(!path.exists());
        bench.is_clean();
        // The next of that name is whole.
        is_clean(&bench.add("one", bench.detached(), kind));
        bench.remove("one");
    }
}

#[test]
fn a_path_that_is_taken_and_files_that_are_missing_leave_nothing() {
    for kind in drivers() {
        let bench = Bench::new();
        let worktrees = bench.repository.worktrees();
        let path = bench.at("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("mine"), "mine").unwrap();
        let new = Start::NewBranch {
            name: "dev".into(),
            commit: bench.commit.clone(),
        };
        let add = Add {
            driver: Some(kind),
            ..Add::new(&path, new)
        };
        let error = worktrees.add(&add).unwrap_err();
        assert_eq!(
            (error.reason(), error.is_retriable()),
            ("PathOccupied", false),
            "{error}"
        );
        assert_eq!(fs::read(path.join("mine")).unwrap(), b"mine");
        assert!(git_fails(bench.repository.path(), &["rev-parse", "dev"]).contains("dev"));
        bench
            .repository
            .store()
            .quarantine(&Digest::of(WEIGHTS))
            .unwrap();
        worktrees.prune().unwrap();
        let missing = Add {
            path: &bench.at("other"),
            ..add
        };
        assert_eq!(
            worktrees.add(&missing).unwrap_err().reason(),
            "MissingLFSObject"
        );
        assert!(!bench.at("other").exists());
        bench.is_clean();
    }
}

#[test]
fn threads_make_and_remove_worktrees_at_once() {
    let bench = Bench::new();
    let kind = drivers()[0];
    std::thread::scope(|scope| {
        for n in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..5 {
                    let name = format!("w{n}-{round}");
                    is_clean(&bench.add(&name, bench.detached(), kind));
                    bench.remove(&name);
                    bench.repository.worktrees().prune().unwrap();
                }
            });
        }
    });
    bench.is_clean();
}

#[test]
fn a_hundred_overlays_share_index_and_files() {
    if !drivers().contains(&Kind::Overlay2) {
        return;
    }
    let bench = Bench::new();
    let began = std::time::Instant::now();
    for n in 0..100 {
        bench.add(&format!("w{n}"), bench.detached(), Kind::Overlay2);
    }
    println!("{:?} for each", began.elapsed() / 100);
    let index = |n| bench.at(&format!("bare.git/worktrees/w{n}/index"));
    assert_eq!(
        fs::metadata(index(0)).unwrap().ino(),
        fs::metadata(index(99)).unwrap().ino()
    );
    for n in [0, 50, 99] {
        is_clean(&bench.at(&format!("w{n}")));
    }
    // A change in one changes no other's index.
    fs::write(bench.at("w0/config.json"), "[]").unwrap();
    git(&bench.at("w0"), &["add", "config.json"]);
    assert_eq!(
        git(&bench.at("w0"), &["status", "--porcelain"]),
        "M  config.json"
    );
    is_clean(&bench.at("w1"));
    for n in 0..100 {
        bench.remove(&format!("w{n}"));
    }
    bench.is_clean();
}
