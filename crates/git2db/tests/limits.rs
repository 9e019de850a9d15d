//! Repositories and servers that would take memory, disk or time without end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    CommitId, Credentials, Include, Limits, Pace, Reference, RemoteError, RemoteUrl,
    lfs::{Client, LfsError, Options, Pointer},
    remote,
    repo::{self, Fetch, History},
    store::ObjectStore,
    tree::{self, Refusal, TreeError},
};
use support::{
    GitServer, LfsServer, Work,
    git::{backend, command, git},
    http::Request,
    lfs,
};

/// A pace that a test can wait for.
const HASTY: Pace = Pace {
    min_bytes_per_second: 1000,
    window: Duration::from_millis(500),
    patience: Duration::from_millis(500),
    deadline: Duration::from_mins(1),
};

fn fetch(
    url: &RemoteUrl,
    bare: &Path,
    commit: &CommitId,
    limits: &Limits,
) -> Result<(), RemoteError> {
    let fetch = Fetch {
        url,
        reference: &Reference::Head,
        commit,
        history: History::Whole,
        credentials: &Credentials::None,
    };
    repo::fetch_commit_within(bare, &fetch, limits, &())
}

fn bare(dir: &tempfile::TempDir) -> PathBuf {
    let bare = dir.path().join("bare.git");
    repo::init_bare(&bare).unwrap();
    bare
}

#[track_caller]
fn refusal(work: &Work, commit: &CommitId, limits: &Limits) -> (String, Refusal) {
    match tree::walk(&work.origin(), commit, &Include::all(), limits) {
        Err(TreeError::Refused { path, refusal }) => (path, refusal),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_pack_with_too_many_bytes_or_objects_is_refused_and_leaves_nothing() {
    let work = Work::new();
    let noise: Vec<u8> = (0..400_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let commit = work.write("noise", &noise).write("b", "2").commit();
    let server = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let bare = bare(&dir);
    let small = [
        Limits {
            max_pack_bytes: 100_000,
            ..Limits::default()
        },
        Limits {
            max_pack_objects: 2,
            ..Limits::default()
        },
    ];
    for limits in small {
        let error = fetch(&server.url("origin.git"), &bare, &commit, &limits).unwrap_err();
        assert_eq!(error.reason(), "RefusedContent", "{error}");
        assert!(!error.is_retriable());
        assert!(error.to_string().contains("the limit"), "{error}");
        let packs = fs::read_dir(bare.join("objects/pack")).unwrap().count();
        assert_eq!(packs, 0, "the half pack is gone");
    }
    let full = Limits {
        min_free_bytes: u64::MAX,
        ..Limits::default()
    };
    let error = fetch(&server.url("origin.git"), &bare, &commit, &full).unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    fetch(
        &server.url("origin.git"),
        &bare,
        &commit,
        &Limits::default(),
    )
    .unwrap();
}

#[test]
fn attributes_paths_and_links_beyond_the_limits_are_refused_by_name() {
    let work = Work::new();
    let limits = Limits::default();
    let rules = "*.bin filter=lfs\n".repeat((2 << 20) / 17);
    let commit = work.write(".gitattributes", rules).commit();
    let refused = refusal(&work, &commit, &limits);
    assert_eq!(
        refused,
        (
            ".gitattributes".to_owned(),
            Refusal::HugeAttributes(1 << 20)
        )
    );
    work.git(&["rm", "-q", "-f", ".gitattributes"]);

    let deep = vec!["d".repeat(250); 3].join("/");
    let commit = work.write(&format!("{deep}/file"), "x").commit();
    let short = Limits {
        max_path_bytes: 700,
        ..limits
    };
    let (path, why) = refusal(&work, &commit, &short);
    assert_eq!((path.len(), why), (200, Refusal::LongPath(700)));
    let few = Limits {
        max_paths_bytes: 1500,
        ..limits
    };
    assert_eq!(refusal(&work, &commit, &few).1, Refusal::LongPaths(1500));
    let target = "x/".repeat(700);
    std::os::unix::fs::symlink(target, work.work().join("link")).unwrap();
    let commit = work.commit();
    let links = Limits {
        max_paths_bytes: 3200,
        ..limits
    };
    assert_eq!(refusal(&work, &commit, &links).1, Refusal::LongPaths(3200));
}

/// A tree whose 300 bytes stand for a hundred thousand paths of 16 KB.
#[test]
fn paths_that_a_few_trees_multiply_are_refused() {
    let work = Work::new();
    work.write("f", "x").commit();
    let blob = work.git(&["rev-parse", "HEAD:f"]);
    let mut tree = String::new();
    for depth in 0..64 {
        let kind = if depth == 0 {
            "100644 blob"
        } else {
            "040000 tree"
        };
        let id = if depth == 0 { &blob } else { &tree };
        let line = |n: u8| format!("{kind} {id}\t{n}{}\n", "p".repeat(250));
        let lines = (0..10).map(line).collect::<Vec<_>>().concat();
        tree = with_input(&work.work(), &["mktree"], lines.as_bytes());
    }
    let commit = work.git(&["commit-tree", "-m", "x", &tree]);
    work.git(&["push", "-q", "origin", &format!("{commit}:refs/heads/bomb")]);
    let (_, why) = refusal(&work, &commit.parse().unwrap(), &Limits::default());
    assert!(matches!(why, Refusal::LongPath(_)), "{why}");
}

fn with_input(dir: &Path, args: &[&str], input: &[u8]) -> String {
    let mut child = command(dir)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const CHILD: &str = "GIT2DB_TEST_FETCH";

/// The process whose memory [`a_pack_that_inflates_takes_no_memory_and_is_refused`] looks at.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let [url, commit, root] = arguments.split('|').collect::<Vec<_>>().try_into().unwrap();
    let (url, commit) = (RemoteUrl::parse(url).unwrap(), commit.parse().unwrap());
    let bare = Path::new(root).join("child.git");
    repo::init_bare(&bare).unwrap();
    let error = fetch(&url, &bare, &commit, &Limits::default()).unwrap_err();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let packs = fs::read_dir(bare.join("objects/pack")).unwrap().count();
    let answer = format!("{}|{error}|{peak}|{packs}", error.reason());
    fs::write(Path::new(root).join("answer"), answer).unwrap();
}

#[test]
fn a_pack_that_inflates_takes_no_memory_and_is_refused() {
    let work = Work::new();
    let mut zeros = vec![0; 160 << 20];
    work.write("zeros", &zeros).commit();
    zeros.push(1);
    let commit = work.write("zeros", &zeros).commit();
    drop(zeros);
    let origin = work.origin();
    git(
        &origin,
        &[
            "-c",
            "pack.threads=1",
            "-c",
            "gc.auto=0",
            "repack",
            "-q",
            "-a",
            "-d",
            "-f",
        ],
    );
    let deltas = git(&origin, &["count-objects", "-v"]);
    let pack: u64 = deltas
        .lines()
        .find_map(|line| line.strip_prefix("size-pack: "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(pack < 2048, "a pack of {pack} KiB");
    let server = GitServer::start(work.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let arguments = format!(
        "{}|{commit}|{}",
        server.url("origin.git"),
        dir.path().display()
    );
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, arguments)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the process lives");
    let answer = fs::read_to_string(dir.path().join("answer")).unwrap();
    let [reason, text, peak, packs] = answer.split('|').collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(reason, "RefusedContent", "{text}");
    assert!(text.contains("is larger than 67108864 bytes"), "{text}");
    let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak < 256 << 10, "{peak} KiB");
    assert_eq!(packs, "0", "the pack is gone");
}

/// A server that answers a request and then sends its body a byte at a time, for as long as
/// anybody listens, where `slow` says so.
struct Drip {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drip {
    fn start(
        answer: impl Fn(&Request) -> (Vec<u8>, String) + Send + Sync + 'static,
        slow: fn(&Request) -> bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let _ = drip(stream.unwrap(), &answer, slow, &stopped);
            }
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }

    fn url(&self) -> RemoteUrl {
        RemoteUrl::parse(&format!("http://127.0.0.1:{}/origin.git", self.port)).unwrap()
    }
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn drip(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request) -> (Vec<u8>, String),
    slow: fn(&Request) -> bool,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = Vec::new();
    let head = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
        if text.ends_with(b"\r\n\r\n") {
            break String::from_utf8_lossy(&text).into_owned();
        }
    };
    let mut first = head.lines().next().unwrap().split(' ');
    let method = first.next().unwrap().to_owned();
    let target = first.next().unwrap().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let headers: Vec<(String, String)> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
    };
    if let Some(len) = request.header("content-length").map(str::to_owned) {
        request.body = vec![0; len.parse().unwrap()];
        stream.read_exact(&mut request.body)?;
    }
    let (body, kind) = answer(&request);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    if !slow(&request) {
        return stream.write_all(&body);
    }
    for byte in body.chunks(1) {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        stream.write_all(byte)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn slow_git(work: &Work, slow: fn(&Request) -> bool) -> Drip {
    let root = work.dir.path().to_owned();
    Drip::start(
        move |request| {
            let response = backend(&root, request);
            let kind = response
                .headers
                .iter()
                .find(|(name, _)| name == "Content-Type");
            (response.body.clone(), kind.unwrap().1.clone())
        },
        slow,
    )
}

#[test]
fn a_byte_now_and_then_is_no_answer_to_git_in_any_phase() {
    let work = Work::new();
    let noise: Vec<u8> = (0..20_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let commit = work.write("noise", &noise).commit();
    let limits = Limits {
        pace: HASTY,
        ..Limits::default()
    };
    let phases: [fn(&Request) -> bool; 2] = [|r| r.method == "GET", |r| r.method == "POST"];
    for slow in phases {
        let server = slow_git(&work, slow);
        let dir = tempfile::tempdir().unwrap();
        let bare = bare(&dir);
        let begin = Instant::now();
        let error = fetch(&server.url(), &bare, &commit, &limits).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(error.to_string().contains("too slow"), "{error}");
        assert!(error.is_retriable() && error.reason() == "UpstreamError");
        let packs = fs::read_dir(bare.join("objects/pack")).unwrap().count();
        assert_eq!(packs, 0, "the half pack is gone");
    }
}

#[test]
fn a_fetch_ends_at_its_deadline_at_whatever_rate() {
    let work = Work::new();
    let commit = work.write("a", "1").commit();
    let pace = Pace {
        min_bytes_per_second: 0,
        deadline: Duration::from_millis(300),
        ..Pace::default()
    };
    let limits = Limits {
        pace,
        ..Limits::default()
    };
    let server = slow_git(&work, |_| true);
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&server.url(), &bare(&dir), &commit, &limits).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
    assert!(error.is_retriable());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.git", silent.local_addr().unwrap());
    let url = RemoteUrl::parse(&url).unwrap();
    let error = remote::list_within(&url, &Credentials::None, &limits, &()).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[test]
fn a_byte_now_and_then_is_no_lfs_object_and_what_came_is_kept() {
    let content = vec![7; 100_000];
    let slow = Drip::start(move |_| (content.clone(), "x".to_owned()), |_| true);
    let port = slow.port;
    let server = LfsServer::with_hook(move |request| {
        let mut response = request
            .path
            .ends_with("/objects/batch")
            .then(|| lfs::answer(request, &std::sync::Mutex::default()))?;
        let batch: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let oid = batch["objects"][0]["oid"].clone();
        let href = format!("http://127.0.0.1:{port}/x");
        let answer = serde_json::json!({"objects": [{
            "oid": oid, "size": 100_000, "actions": {"download": {"href": href}}
        }]});
        response.body = serde_json::to_vec(&answer).unwrap();
        Some(response)
    });
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let options = Options {
        pace: HASTY,
        ..Options::default()
    };
    let client = Client::new(&server.url(), &Credentials::None, options).unwrap();
    let oid = hyprstream_git2db::Digest::of(&vec![7; 100_000]);
    let object = Pointer { oid, size: 100_000 };
    let begin = Instant::now();
    let error = client
        .download(std::slice::from_ref(&object), &store, &())
        .unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(matches!(error, LfsError::Upstream { .. }) && error.is_retriable());
    assert!(error.to_string().contains("too slow"), "{error}");
    let part = dir.path().join("parts").join(object.oid.as_str());
    assert!(fs::metadata(part).unwrap().len() > 0);
}

#[test]
fn a_batch_answer_that_drips_is_given_up_on() {
    let slow = Drip::start(|_| (vec![b' '; 10_000], "x".to_owned()), |_| true);
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let options = Options {
        pace: HASTY,
        ..Options::default()
    };
    let client = Client::new(&slow.url(), &Credentials::None, options).unwrap();
    let oid = "1".repeat(64).parse().unwrap();
    let error = client
        .download(&[Pointer { oid, size: 1 }], &store, &())
        .unwrap_err();
    assert!(error.to_string().contains("too slow"), "{error}");
    assert!(error.is_retriable());
}
