//! Killed processes, full disks, silent servers, foreign repositories.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    Cancel, CommitId, Credentials, Include, Progress, Reference, RemoteUrl, RepoError, Timeouts,
    Watch,
    checkout::{self, Source},
    lfs::{Client, Options, Pointer},
    remote,
    repo::{self, Fetch, History},
    store::ObjectStore,
    tree::Limits,
};
use support::{GitServer, LfsServer, Work, lfs};

fn client(url: &RemoteUrl) -> Client {
    let options = Options {
        backoff: Duration::from_millis(1),
        ..Options::default()
    };
    Client::new(url, &Credentials::None, options).unwrap()
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(37)).collect()
}

const CHILD: &str = "GIT2DB_TEST_CHILD";

/// The process that [`a_killed_download_is_continued_by_another_process`] kills.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let [url, oid, size, root] = arguments.split('|').collect::<Vec<_>>().try_into().unwrap();
    let pointer = Pointer {
        oid: oid.parse().unwrap(),
        size: size.parse().unwrap(),
    };
    let store = ObjectStore::open(Path::new(root)).unwrap();
    client(&RemoteUrl::parse(url).unwrap())
        .download(&[pointer], &store, &())
        .unwrap();
}

#[test]
fn a_killed_download_is_continued_by_another_process() {
    let big = content(1_000_000);
    let whole = big.clone();
    let gets = AtomicUsize::new(0);
    let server = LfsServer::with_hook(move |request| {
        let get = request.method == "GET";
        (get && gets.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
            let mut response = lfs::ranged(request, &whole);
            response.declared = Some(whole.len());
            response.body.truncate(400_000);
            response.pause = Duration::from_mins(1);
            response
        })
    });
    let pointer = server.put(&big);
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let url = server.url();
    let arguments = format!(
        "{url}|{}|{}|{}",
        pointer.oid,
        pointer.size,
        dir.path().display()
    );
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(CHILD, arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = dir.path().join("parts").join(pointer.oid.as_str());
    let until = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&part).map_or(0, |found| found.len()) < 400_000 {
        assert!(Instant::now() < until, "the child does not download");
        std::thread::sleep(Duration::from_millis(10));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(!store.contains(&pointer.oid));
    let moved = client(&url)
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    assert_eq!(moved.bytes_moved, 600_000);
    assert_eq!(fs::read(store.path(&pointer.oid)).unwrap(), big);
    assert_eq!(
        server.downloads()[1].header("range"),
        Some("bytes=400000-999999")
    );
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, said aloud, where mounting is not permitted.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "git2db-test"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: mounting a tmpfs is not permitted");
            return None;
        }
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[test]
fn an_object_larger_than_the_disk_is_refused_before_it_is_fetched() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return;
    };
    let server = LfsServer::start();
    let pointer = server.put(&content(8 << 20));
    let store = ObjectStore::open(&disk.path("store")).unwrap();
    let error = client(&server.url())
        .download(&[pointer], &store, &())
        .unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    assert!(server.downloads().is_empty());
}

#[test]
fn a_disk_that_fills_up_keeps_the_part_and_goes_on_once_there_is_space() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return;
    };
    let server = LfsServer::start();
    let big = content(3 << 20);
    let pointer = server.put(&big);
    let store = ObjectStore::open(&disk.path("store")).unwrap();
    let filler = disk.path("filler");
    let watch = Watch {
        on_progress: |progress| {
            if matches!(progress, Progress::Objects { bytes_done, .. } if bytes_done > 1 << 20) {
                // As much as fits; the error is what it is for.
                let _ = fs::write(&filler, vec![0; 4 << 20]);
            }
        },
        cancel: Cancel::default(),
    };
    let error = client(&server.url())
        .download(&[pointer.clone()], &store, &watch)
        .unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    assert!(!store.contains(&pointer.oid));
    let part = disk.path("store/parts").join(pointer.oid.as_str());
    let kept = fs::metadata(&part).unwrap().len();
    assert!(kept > 1 << 20, "{kept}");
    fs::remove_file(&filler).unwrap();
    let moved = client(&server.url())
        .download(&[pointer.clone()], &store, &())
        .unwrap();
    assert_eq!(moved.bytes_moved, (3 << 20) - kept);
    assert_eq!(fs::read(store.path(&pointer.oid)).unwrap(), big);
}

#[test]
fn a_full_disk_stops_a_fetch_and_leaves_nothing_half_of_a_checkout() {
    let Some(disk) = SmallDisk::mount("2m") else {
        return;
    };
    let work = Work::new();
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(3_000_000)
    .collect();
    let commit = work.write("noise.bin", &noise).write("a", "1").commit();
    let server = GitServer::start(work.dir.path());
    let bare = disk.path("b.git");
    repo::init_bare(&bare).unwrap();
    let (url, reference) = (server.url("origin.git"), Reference::Head);
    let credentials = Credentials::None;
    let fetch = Fetch {
        url: &url,
        reference: &reference,
        commit: &commit,
        history: History::None,
        credentials: &credentials,
    };
    let error = repo::fetch_commit(&bare, &fetch, &()).unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    assert!(!repo::has_commit(&bare, &commit).unwrap());
    let packs = fs::read_dir(bare.join("objects/pack")).unwrap().count();
    assert_eq!(packs, 0, "the half pack is gone");

    // A checkout whose store is elsewhere has to copy.
    let elsewhere = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(elsewhere.path()).unwrap();
    let materialise = |origin: &Path, commit: &CommitId| {
        let (include, limits) = (Include::all(), Limits::default());
        let source = Source {
            bare: origin,
            commit,
            include: &include,
            limits,
            store: &store,
        };
        checkout::materialise(&source, &disk.path("node"))
    };
    let error = materialise(&work.origin(), &commit).unwrap_err();
    assert_eq!(error.reason(), "DiskFull", "{error}");
    assert_eq!(fs::read_dir(disk.path("node/tmp")).unwrap().count(), 0);
    assert!(checkout::list(&disk.path("node")).unwrap().is_empty());
    let small = work.write("noise.bin", "less").commit();
    materialise(&work.origin(), &small).unwrap();
}

#[test]
fn a_silent_server_is_given_up_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.git", listener.local_addr().unwrap());
    let url = RemoteUrl::parse(&url).unwrap();
    hyprstream_git2db::set_timeouts(Timeouts {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(2),
    });
    let start = Instant::now();
    let error = remote::resolve(&url, &Reference::Head, &Credentials::None).unwrap_err();
    assert!(
        error.to_string().contains("did not answer in time"),
        "{error}"
    );
    assert!(error.is_retriable());
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );

    let options = Options {
        attempts: 2,
        backoff: Duration::from_millis(1),
        stall_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(dir.path()).unwrap();
    let pointer = Pointer {
        oid: "1".repeat(64).parse().unwrap(),
        size: 1,
    };
    let client = Client::new(&url, &Credentials::None, options).unwrap();
    let error = client.download(&[pointer], &store, &()).unwrap_err();
    assert_eq!(error.reason(), "UpstreamError", "{error}");
    drop(listener);
}

#[test]
fn a_repository_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a repository away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    std::os::unix::fs::chown(&bare, Some(65534), Some(65534)).unwrap();
    let commit: CommitId = "1".repeat(40).parse().unwrap();
    let error = repo::has_commit(&bare, &commit).unwrap_err();
    assert!(matches!(error, RepoError::NotOurs { .. }), "{error}");
    assert!(error.to_string().contains("belongs to another user"));
}

/// `openssl s_server` with a certificate that nobody signed, ended with the value.
struct Tls(std::process::Child);

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_certificate_that_nobody_signed_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .current_dir(dir.path())
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
        ])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-keyout", "key", "-out", "cert"])
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = Command::new("openssl")
        .current_dir(dir.path())
        .args(["s_server", "-quiet", "-www", "-key", "key", "-cert", "cert"])
        .args(["-accept", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Tls(server);
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "openssl s_server does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let url = RemoteUrl::parse(&format!("https://localhost:{port}/a.git")).unwrap();
    let token = Credentials::Token("t0ken".to_owned());
    let error = remote::resolve(&url, &Reference::Head, &token).unwrap_err();
    assert!(error.to_string().contains("is not trusted"), "{error}");
    assert!(!error.is_retriable());

    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    let pointer = Pointer {
        oid: "1".repeat(64).parse().unwrap(),
        size: 1,
    };
    let error = client(&url).download(&[pointer], &store, &()).unwrap_err();
    assert_eq!(error.reason(), "HostUnreachable", "{error}");
}
