//! A clone of large files, and the next commit of which one changed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use hyprstream_git2db::{
    Credentials, Include, Limits, Reference, RemoteUrl, RepositoryHandle,
    handle::worktrees::{Add, Start},
    lfs, remote, repo,
    storage::probe,
    store::ObjectStore,
    tree,
};

use crate::{
    Plan, Row, disk_bytes, mebibytes,
    process::{Taken, run, written_bytes},
    seconds,
    support::{Server, git::backend, git::git, lfs::answer},
};

const FILES: usize = 5;
/// Most bytes of an answer's head.
const HEAD_BYTES: u64 = 256;

pub(crate) fn measure(plan: &Plan) -> Vec<Row> {
    let origin = plan.folder.join("origin");
    fs::create_dir(&origin).unwrap();
    git(
        &origin,
        &["init", "-q", "--bare", "-b", "main", "model.git"],
    );
    git(&origin, &["init", "-q", "-b", "main", "work"]);
    let objects = Arc::default();
    // What the server sent, heads of answers counted as if they were long.
    let sent: Arc<AtomicU64> = Arc::default();
    let server = Server::start({
        let (objects, root, sent) = (Arc::clone(&objects), origin.clone(), Arc::clone(&sent));
        move |request| {
            let path = request.path.as_str();
            let is_lfs = path.ends_with("/objects/batch") || path.starts_with("/obj/");
            let response = if is_lfs {
                answer(request, &objects)
            } else {
                backend(&root, request)
            };
            let bytes = response.body.len() as u64 + HEAD_BYTES;
            sent.fetch_add(bytes, Ordering::Relaxed);
            response
        }
    });
    let url = server.url("/model.git");
    let work = origin.join("work");
    fs::write(
        work.join(".gitattributes"),
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    )
    .unwrap();
    for n in 0..FILES {
        put(&work, n, n as u64, plan.weight_bytes, &objects);
    }
    commit(&work);
    let kept = plan.folder.join("kept");
    let fetched = |side: &str, round: &str| {
        let folder = kept.join(side);
        sent.store(0, Ordering::Relaxed);
        let taken = run(&[side, folder.to_str().unwrap(), &url, round]);
        (taken, sent.load(Ordering::Relaxed))
    };
    let (mut ours, mut theirs) = (vec![], vec![]);
    let mut came = [0, 0];
    for _ in 0..plan.rounds {
        for (side, taken, at) in [("git", &mut theirs, 1), ("ours", &mut ours, 0)] {
            let folder = kept.join(side);
            if folder.exists() {
                forget(side, &folder);
            }
            fs::create_dir_all(&folder).unwrap();
            rustix::fs::sync();
            let (one, bytes) = fetched(side, "1");
            taken.push(one);
            came[at] = bytes.max(came[at]);
        }
    }
    let size = |side: &str| disk_bytes(&kept.join(side));
    let first = [size("ours"), size("git")];
    put(&work, 0, 99, plan.weight_bytes, &objects);
    commit(&work);
    let next = ["ours", "git"].map(|side| fetched(side, "2"));
    let second = [size("ours"), size("git")];
    forget("ours", &kept.join("ours"));

    let times = |taken: &[Taken]| taken.iter().map(|taken| taken.seconds).collect();
    let changed = plan.weight_bytes as f64;
    let content = changed * FILES as f64;
    let most = |taken: &[Taken]| taken.iter().map(|taken| taken.memory_bytes).max().unwrap();
    let written = |taken: &[Taken]| taken.iter().map(|taken| taken.written_bytes).max().unwrap();
    let total = (FILES * plan.weight_bytes) >> 20;
    let what = format!("clone and checkout of {total} MiB in {FILES} LFS files");
    vec![
        seconds(&what, times(&ours), times(&theirs)).at_most_of_git(0.25),
        mebibytes("its peak memory", most(&ours), most(&theirs))
            .at_most(f64::from(20 << 20), "20 MiB"),
        mebibytes("bytes that it fetched", came[0], came[1])
            .at_most(1.02 * content, "1.02 times the content"),
        mebibytes("bytes that it wrote", written(&ours), written(&theirs))
            .at_most(1.05 * content, "1.05 times the content"),
        mebibytes("disk after it", first[0], first[1])
            .at_most(1.05 * content, "1.05 times the content"),
        seconds(
            "the next commit, one file changed",
            vec![next[0].0.seconds],
            vec![next[1].0.seconds],
        ),
        mebibytes("bytes that it fetched", next[0].1, next[1].1)
            .at_most(1.02 * changed, "1.02 times the file"),
        mebibytes(
            "bytes that it wrote",
            next[0].0.written_bytes,
            next[1].0.written_bytes,
        ),
        mebibytes(
            "disk that it took",
            second[0] - first[0],
            second[1] - first[1],
        )
        .at_most(1.02 * changed, "1.02 times the file"),
    ]
}

/// A file of bytes that no compression shrinks, on the server and as a pointer in the repository.
fn put(
    work: &Path,
    n: usize,
    seed: u64,
    bytes: usize,
    objects: &Mutex<std::collections::HashMap<String, Vec<u8>>>,
) {
    let content = noise(seed, bytes);
    let oid = hyprstream_git2db::Digest::of(&content);
    let pointer = lfs::Pointer {
        oid: oid.clone(),
        size: content.len() as u64,
    };
    fs::write(work.join(format!("w{n}.bin")), pointer.to_string()).unwrap();
    objects.lock().unwrap().insert(oid.to_string(), content);
}

/// Bytes that no compression shrinks, in eights.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

fn commit(work: &Path) {
    // Without a filter: what is written is the pointer.
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", "x"]);
    git(work, &["push", "-q", "../model.git", "HEAD:main"]);
}

fn forget(side: &str, folder: &Path) {
    if side == "ours" {
        let repository = open(folder);
        for info in repository.worktrees().list().unwrap() {
            repository.worktrees().remove(&info.name, true).unwrap();
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

fn open(folder: &Path) -> RepositoryHandle {
    let store = ObjectStore::open(&folder.join("store")).unwrap();
    RepositoryHandle::init(&folder.join("bare.git"), store).unwrap()
}

/// One side, in a process of its own.
pub(crate) fn side(words: &[String]) {
    let [side, folder, url, round] = words else {
        panic!("side NAME FOLDER URL ROUND");
    };
    let folder = Path::new(folder);
    if side == "git" {
        theirs(folder, url, round);
    } else {
        ours(folder, url, round);
    }
    println!("{}", written_bytes());
}

fn ours(folder: &Path, url: &str, round: &str) {
    let repository = open(folder);
    let url = RemoteUrl::parse(url).unwrap();
    let (credentials, reference) = (Credentials::None, Reference::Branch("main".to_owned()));
    let commit = remote::resolve(&url, &reference, &credentials).unwrap();
    let fetch = repo::Fetch {
        url: &url,
        reference: &reference,
        commit: &commit,
        history: repo::History::None,
        credentials: &credentials,
    };
    repo::fetch_commit(repository.path(), &fetch, &()).unwrap();
    let entries = tree::walk(
        repository.path(),
        &commit,
        &Include::all(),
        &Limits::default(),
    )
    .unwrap();
    let client = lfs::Client::new(&url, &credentials, lfs::Options::default()).unwrap();
    client
        .download(&tree::pointers(&entries), repository.store(), &())
        .unwrap();
    let path = folder.join(format!("tree{round}"));
    let add = Add {
        driver: Some(probe(folder).unwrap().best().kind()),
        ..Add::new(&path, Start::Detached(commit))
    };
    repository.worktrees().add(&add).unwrap();
}

fn theirs(folder: &Path, url: &str, round: &str) {
    let run = |words: &[&str], dir: &Path| {
        let mut git = Command::new("git");
        for (name, value) in [
            ("process", "git-lfs filter-process"),
            ("clean", "git-lfs clean -- %f"),
            ("smudge", "git-lfs smudge -- %f"),
            ("required", "true"),
        ] {
            git.args(["-c", &format!("filter.lfs.{name}={value}")]);
        }
        git.args(["-c", "lfs.locksverify=false"])
            .args(words)
            .current_dir(dir);
        assert!(git.stdout(Stdio::null()).status().unwrap().success());
    };
    match round {
        "1" => run(&["clone", "-q", "--depth=1", url, "tree"], folder),
        _ => run(&["pull", "-q"], &folder.join("tree")),
    }
}
