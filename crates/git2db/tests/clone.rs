//! Clones into a registry: what comes, what is continued, and what is not listed.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    num::NonZeroU32,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    Cancel, Git2DB, Progress, Reference, RemoteUrl, Watch,
    lfs::{self, Pointer},
    manager::Name,
};
use support::{LfsServer, Request, Response, Server, Work, git::git, lfs::ranged};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(37)).collect()
}

fn options() -> lfs::Options {
    lfs::Options {
        backoff: Duration::from_millis(1),
        ..lfs::Options::default()
    }
}

/// A working copy with two large files, whose LFS objects git-lfs would keep beside it.
fn with_lfs(work: &Work) -> [(Pointer, Vec<u8>); 2] {
    work.write(
        ".gitattributes",
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    );
    let made =
        [("one.bin", content(300_000)), ("two.bin", content(500_000))].map(|(path, bytes)| {
            let pointer = Pointer {
                oid: hyprstream_git2db::Digest::of(&bytes),
                size: bytes.len() as u64,
            };
            work.write(path, pointer.to_string());
            let oid = pointer.oid.as_str();
            let folder = work
                .origin()
                .join("lfs/objects")
                .join(&oid[..2])
                .join(&oid[2..4]);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(oid), &bytes).unwrap();
            (pointer, bytes)
        });
    work.write("config.json", "{}").commit();
    made
}

/// git over HTTP with LFS beside it; `hook` may answer first.
fn serve(
    work: &Work,
    hook: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
) -> Server {
    let root = work.dir.path().to_owned();
    let objects = with_lfs(work).map(|(pointer, bytes)| (pointer.oid.to_string(), bytes));
    let objects = Mutex::new(objects.into_iter().collect());
    Server::start(move |request| {
        if let Some(response) = hook(request) {
            return response;
        }
        if request.path.contains("/info/lfs/") || request.path.starts_with("/obj/") {
            support::lfs::answer(request, &objects)
        } else {
            support::git::backend(&root, request)
        }
    })
}

fn url(server: &Server) -> RemoteUrl {
    RemoteUrl::parse(&server.url("/origin.git")).unwrap()
}

#[track_caller]
fn check(db: &Git2DB) {
    for tracked in db.list().unwrap() {
        git(&tracked.path, &["fsck", "--strict"]);
    }
    assert_eq!(fs::read_dir(db.root().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_clone_is_what_git_would_make_with_its_large_files_in_the_store() {
    let work = Work::new();
    let server = serve(&work, |_| None);
    work.git(&["tag", "v1"]);
    work.git(&["checkout", "-q", "-b", "dev"]);
    work.write("config.json", "{1}").commit();
    work.git(&["push", "-q", "--no-verify", "origin", "--tags"]);
    let db = Git2DB::open(&work.dir.path().join("db")).unwrap();
    let bytes = Mutex::new((0, 0));
    let watch = Watch {
        on_progress: |progress| match progress {
            Progress::Git { bytes_done, .. } => bytes.lock().unwrap().0 = bytes_done,
            Progress::Objects { bytes_done, .. } => bytes.lock().unwrap().1 = bytes_done,
            _ => {}
        },
        cancel: Cancel::new(),
    };
    let cloned = db
        .clone_from(name("a"), url(&server))
        .exclude(["two.*"])
        .run(&watch)
        .unwrap();
    let (of_git, of_objects) = *bytes.lock().unwrap();
    assert!(of_git > 0 && of_objects == 300_000);
    assert_eq!(
        (cloned.objects.objects_moved, cloned.objects.bytes_moved),
        (1, 300_000)
    );
    let path = &cloned.tracked.path;
    assert_eq!(cloned.tracked.reference, Reference::Branch("main".into()));
    assert_eq!(cloned.tracked.url, Some(url(&server)));
    assert_eq!(git(path, &["rev-parse", "HEAD"]), cloned.commit.as_str());
    assert_eq!(git(path, &["symbolic-ref", "HEAD"]), "refs/heads/main");
    let refs = git(path, &["for-each-ref", "--format=%(refname)"]);
    let expected = [
        "refs/heads/main",
        "refs/remotes/origin/dev",
        "refs/remotes/origin/main",
        "refs/tags/v1",
    ];
    assert_eq!(refs.lines().collect::<Vec<_>>(), expected);
    // Another that names the rest has just that to bring.
    let again = db
        .clone_from(name("b"), url(&server))
        .tag("v1")
        .run(&())
        .unwrap();
    assert_eq!(
        (again.objects.objects_moved, again.objects.objects_present),
        (1, 1)
    );
    assert_eq!(
        git(&again.tracked.path, &["rev-parse", "HEAD"]),
        again.commit.as_str()
    );
    let taken = db.clone_from(name("a"), url(&server)).run(&()).unwrap_err();
    assert_eq!(taken.reason(), "NameTaken");
    // And git clones from it.
    git(
        work.dir.path(),
        &["clone", "-q", path.to_str().unwrap(), "from-ours"],
    );
    check(&db);
}

#[test]
fn depth_brings_so_many_commits_over_http_and_by_path_with_large_files() {
    let work = Work::new();
    for n in 0..5 {
        work.write("n", n.to_string()).commit();
    }
    let server = serve(&work, |_| None);
    git(
        &work.origin(),
        &["config", "uploadpack.allowAnySHA1InWant", "true"],
    );
    let commit = work
        .git(&["rev-parse", "HEAD~1"])
        .parse::<hyprstream_git2db::CommitId>()
        .unwrap();
    let db = Git2DB::open(&work.dir.path().join("db")).unwrap();
    let two = NonZeroU32::new(2).unwrap();
    for (n, url) in [url(&server), RemoteUrl::local(&work.origin()).unwrap()]
        .into_iter()
        .enumerate()
    {
        let count = |tracked: &hyprstream_git2db::manager::Tracked| {
            git(&tracked.path, &["rev-list", "--count", "HEAD"])
        };
        let cloned = db
            .clone_from(name(&format!("b{n}")), url.clone())
            .branch("main")
            .depth(two)
            .run(&())
            .unwrap();
        assert_eq!(count(&cloned.tracked), "2");
        assert_eq!(
            cloned.objects.objects_moved + cloned.objects.objects_present,
            2
        );
        let cloned = db
            .clone_from(name(&format!("c{n}")), url.clone())
            .commit(commit.clone())
            .depth(two)
            .run(&())
            .unwrap();
        assert_eq!(
            (count(&cloned.tracked).as_str(), &cloned.commit),
            ("2", &commit)
        );
        let whole = db
            .clone_from(name(&format!("d{n}")), url)
            .commit(commit.clone())
            .without_lfs()
            .run(&())
            .unwrap();
        assert_eq!(count(&whole.tracked), "5");
        check(&db);
    }
}

#[test]
fn what_does_not_exist_is_not_listed_and_can_be_had_later() {
    let work = Work::new();
    let db = Git2DB::open(&work.dir.path().join("db")).unwrap();
    let url = RemoteUrl::local(&work.origin()).unwrap();
    let error = db.clone_from(name("a"), url.clone()).run(&()).unwrap_err();
    assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
    let [(lost, bytes), _] = with_lfs(&work);
    let oid = lost.oid.as_str();
    let file = work
        .origin()
        .join("lfs/objects")
        .join(&oid[..2])
        .join(&oid[2..4])
        .join(oid);
    fs::write(&file, "wrong").unwrap();
    let error = db.clone_from(name("a"), url.clone()).run(&()).unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch", "{error}");
    assert!(db.list().unwrap().is_empty() && !db.store().contains(&lost.oid));
    fs::write(&file, bytes).unwrap();
    db.clone_from(name("a"), url.clone()).run(&()).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = db.clone_from(name("b"), url).run(&cancel).unwrap_err();
    assert_eq!(error.reason(), "Cancelled", "{error}");
    assert_eq!(db.list().unwrap().len(), 1);
    assert!(fs::read_dir(db.root().join("clones")).unwrap().count() <= 2);
    check(&db);
}

const CHILD: &str = "GIT2DB_CLONE_CHILD";

/// The clone that is killed below.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let (root, url) = arguments.split_once('|').unwrap();
    let db = Git2DB::open(Path::new(root)).unwrap();
    let url = RemoteUrl::parse(url).unwrap();
    db.clone_from(name("a"), url)
        .lfs_options(options())
        .run(&())
        .unwrap();
}

#[test]
fn a_killed_clone_is_continued_where_it_was_and_never_listed_before() {
    let work = Work::new();
    let gets = AtomicUsize::new(0);
    let whole = content(500_000);
    let server = serve(&work, move |request| {
        let large = lfs::Pointer {
            oid: hyprstream_git2db::Digest::of(&whole),
            size: 500_000,
        };
        let get = request.method == "GET" && request.path.ends_with(large.oid.as_str());
        (get && gets.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
            let mut response = ranged(request, &whole);
            response.declared = Some(whole.len());
            response.body.truncate(200_000);
            response.pause = Duration::from_mins(1);
            response
        })
    });
    let root = work.dir.path().join("db");
    let db = Git2DB::open(&root).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, format!("{}|{}", root.display(), url(&server)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = root
        .join("store/parts")
        .join(hyprstream_git2db::Digest::of(&content(500_000)).as_str());
    let until = Instant::now() + Duration::from_mins(1);
    while fs::metadata(&part).map_or(0, |found| found.len()) < 200_000 {
        assert!(Instant::now() < until, "the child does not download");
        std::thread::sleep(Duration::from_millis(10));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(Git2DB::open(&root).unwrap().list().unwrap().is_empty());
    let packs = |server: &Server| {
        let all = server.requests();
        all.iter()
            .filter(|r| r.path.ends_with("git-upload-pack"))
            .count()
    };
    let before = packs(&server);
    let cloned = db
        .clone_from(name("a"), url(&server))
        .lfs_options(options())
        .run(&())
        .unwrap();
    assert_eq!(packs(&server), before, "the git objects were there");
    assert!(
        cloned.objects.bytes_moved <= 300_000 + 300_000,
        "{:?}",
        cloned.objects
    );
    let last = server.requests();
    assert!(
        last.iter()
            .any(|r| r.header("range") == Some("bytes=200000-499999"))
    );
    assert_eq!(fs::read_dir(root.join("clones")).unwrap().count(), 0);
    check(&db);
}

#[test]
fn an_interrupted_push_of_large_files_sends_again_only_what_did_not_arrive() {
    let server = {
        let puts = AtomicUsize::new(0);
        LfsServer::with_hook(move |request| {
            let put = request.method == "PUT";
            // The second object fails until the attempts are used up, then works.
            (put && (1..6).contains(&puts.fetch_add(1, Ordering::SeqCst)))
                .then(|| Response::new(503))
        })
    };
    let dir = tempfile::tempdir().unwrap();
    let store = hyprstream_git2db::store::ObjectStore::open(dir.path()).unwrap();
    let objects = [content(1000), content(2000)].map(|bytes| Pointer {
        oid: store.insert_bytes(&bytes).unwrap(),
        size: bytes.len() as u64,
    });
    let options = lfs::Options {
        parallel: 1,
        ..options()
    };
    let client = lfs::Client::new(
        &server.url(),
        &hyprstream_git2db::Credentials::None,
        options,
    )
    .unwrap();
    let error = client.upload(&objects, &store, None, &()).unwrap_err();
    assert!(error.is_retriable(), "{error}");
    let sent = client.upload(&objects, &store, None, &()).unwrap();
    assert_eq!((sent.objects_present, sent.objects_moved), (1, 1));
}

#[test]
fn a_repository_with_sha_256_is_refused_by_its_path_too() {
    let work = Work::new();
    let new = work.dir.path().join("new.git");
    git(
        work.dir.path(),
        &["init", "-q", "--bare", "--object-format=sha256", "new.git"],
    );
    let db = Git2DB::open(&work.dir.path().join("db")).unwrap();
    let url = RemoteUrl::local(&new).unwrap();
    let error = db.clone_from(name("a"), url).run(&()).unwrap_err();
    assert_eq!(error.reason(), "RefusedContent", "{error}");
    assert!(error.to_string().contains("SHA-256") && !error.is_retriable());
}
