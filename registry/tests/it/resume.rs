//! Uploads that break off and go on.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    Credentials, Digest, RemoteUrl,
    lfs::{Client, LfsError, Options, Pointer, Transfer},
    store::ObjectStore,
};
use parking_lot::Mutex;

use crate::{
    client::{Answer, Workspace, batch, call, noise, oid, size_of},
    program::Program,
    server::{ADMIN, NODE, Server, token},
};

const SIZE: usize = 20_000_000;

/// A way to a server that counts what clients send, and is cut once that is enough.
struct Way {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    behind: Mutex<SocketAddr>,
    passed: AtomicU64,
    limit: AtomicU64,
}

impl Way {
    fn to(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behind: Mutex::new(behind),
            passed: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
        });
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&all);
                std::thread::spawn(move || shared.carry(&client));
            }
        });
        Self { address, shared }
    }

    /// From now on so many bytes get through.
    fn allow(&self, bytes: u64) {
        self.shared.passed.store(0, Ordering::SeqCst);
        self.shared.limit.store(bytes, Ordering::SeqCst);
    }

    fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    fn git_url(&self, path: &str) -> String {
        format!("http://any:{ADMIN}@{}/{path}", self.address)
    }
}

impl Shared {
    fn carry(&self, client: &TcpStream) {
        let Ok(server) = TcpStream::connect(*self.behind.lock()) else {
            return;
        };
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let back = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let before = self.passed.fetch_add(read as u64, Ordering::SeqCst);
            let left = self.limit.load(Ordering::SeqCst).saturating_sub(before);
            let passes = read.min(usize::try_from(left).unwrap_or(usize::MAX));
            if to.write_all(&buffer[..passes]).is_err() || passes < read {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Write);
        let _ = client.shutdown(Shutdown::Both);
        let _ = back.join();
    }
}

/// A store with one object.
struct Sender {
    _dir: tempfile::TempDir,
    store: ObjectStore,
    object: Pointer,
}

impl Sender {
    fn new(size: usize, seed: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let oid = store.insert_bytes(&noise(size, seed)).unwrap();
        let size = size as u64;
        Self {
            _dir: dir,
            store,
            object: Pointer { oid, size },
        }
    }

    /// What a process does that has just been started.
    fn send(&self, way: &Way, attempts: u32) -> Result<Transfer, LfsError> {
        let url = RemoteUrl::parse(&format!("http://{}/git/a/m.git", way.address)).unwrap();
        let options = Options {
            attempts,
            backoff: Duration::from_millis(20),
            ..Options::default()
        };
        let credentials = Credentials::Token(ADMIN.to_owned());
        let client = Client::new(&url, &credentials, options).unwrap();
        client.upload(std::slice::from_ref(&self.object), &self.store, None, &())
    }
}

fn part(root: &Path, oid: &Digest) -> PathBuf {
    root.join("git/a/m.git/hyprstream/parts").join(oid.as_str())
}

#[track_caller]
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// At most 15 % of the object, and the requests around it.
#[track_caller]
fn little(bytes: u64) {
    assert!(bytes <= SIZE as u64 * 15 / 100, "{bytes} bytes came again");
}

#[track_caller]
fn serves(address: SocketAddr, bytes: &[u8]) {
    let url = format!(
        "http://{address}/git/a/m.git/info/lfs/objects/{}",
        oid(bytes)
    );
    assert!(call("GET", &url, NODE, &[], None).body == bytes);
}

#[test]
fn an_upload_that_was_cut_goes_on_there_in_another_process() {
    let (server, sender) = (Server::start(), Sender::new(SIZE, 71));
    let way = Way::to(server.address);
    way.allow(SIZE as u64 * 9 / 10);
    let error = sender.send(&way, 1).unwrap_err();
    assert!(error.is_retriable(), "{error}");
    way.allow(u64::MAX);
    let sent = sender.send(&way, 1).unwrap();
    little(way.passed());
    little(sent.bytes_moved);
    assert_eq!(sent.objects_moved, 1);
    serves(server.address, &noise(SIZE, 71));
    assert!(!part(&server.root(), &sender.object.oid).exists());
    // Nothing is sent of what is there.
    way.allow(u64::MAX);
    assert_eq!(sender.send(&way, 1).unwrap().objects_present, 1);
}

#[test]
fn an_upload_that_is_cut_again_and_again_gets_there_in_one_call() {
    let (server, sender) = (Server::start(), Sender::new(SIZE, 72));
    let way = Way::to(server.address);
    way.allow(SIZE as u64 * 9 / 10);
    let shared = Arc::clone(&way.shared);
    let sending = std::thread::scope(|scope| {
        let sending = scope.spawn(|| sender.send(&way, 100));
        wait_for("it is not cut", || {
            shared.passed.load(Ordering::SeqCst) >= SIZE as u64 * 9 / 10
        });
        way.allow(u64::MAX);
        sending.join().unwrap()
    });
    little(way.passed());
    assert_eq!(sending.unwrap().objects_moved, 1);
    serves(server.address, &noise(SIZE, 72));
}

#[test]
fn a_registry_that_was_killed_goes_on_with_what_it_had() {
    let (dir, sender) = (tempfile::tempdir().unwrap(), Sender::new(SIZE, 73));
    let mut program = Program::start(dir.path(), 0);
    let way = Way::to(program.address);
    let most = SIZE as u64 * 9 / 10;
    way.allow(most);
    sender.send(&way, 1).unwrap_err();
    let file = part(&dir.path().join("root"), &sender.object.oid);
    wait_for("the bytes do not arrive", || {
        size_of(&file) >= most - 100_000
    });
    program.kill();
    let program = Program::start(dir.path(), 0);
    *way.shared.behind.lock() = program.address;
    way.allow(u64::MAX);
    sender.send(&way, 1).unwrap();
    little(way.passed());
    serves(program.address, &noise(SIZE, 73));
}

#[test]
fn a_part_that_was_whole_when_the_registry_was_killed_is_judged_by_its_last_byte() {
    let (server, sender) = (Server::start(), Sender::new(100_000, 74));
    let bytes = noise(100_000, 74);
    patch(&server, "a", &bytes, 0, &bytes[..1000]);
    let file = part(&server.root(), &sender.object.oid);
    std::fs::write(&file, &bytes).unwrap();
    let server = server.restart();
    let way = Way::to(server.address);
    assert_eq!(sender.send(&way, 1).unwrap().bytes_moved, 1);
    serves(server.address, &bytes);
}

fn patch(server: &Server, namespace: &str, whole: &[u8], offset: usize, bytes: &[u8]) -> Answer {
    let size = whole.len();
    let path = format!(
        "/git/{namespace}/m.git/info/lfs/uploads/{}?size={size}",
        oid(whole)
    );
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("content-type", "application/offset+octet-stream"),
        ("upload-offset", &offset.to_string()),
    ];
    call("PATCH", &server.url(&path), ADMIN, &headers, Some(bytes))
}

/// Where an upload stands.
#[track_caller]
fn stands(server: &Server, namespace: &str, whole: &[u8]) -> u64 {
    let size = whole.len();
    let path = format!(
        "/git/{namespace}/m.git/info/lfs/uploads/{}?size={size}",
        oid(whole)
    );
    let headers = [("tus-resumable", "1.0.0")];
    let answer = call("HEAD", &server.url(&path), ADMIN, &headers, None);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("upload-length"), size.to_string());
    answer.header("upload-offset").parse().unwrap()
}

#[test]
fn an_upload_goes_on_in_pieces_from_where_it_stands_and_nowhere_else() {
    let server = Server::start();
    let bytes = noise(10_000, 75);
    assert_eq!(stands(&server, "a", &bytes), 0);
    let first = patch(&server, "a", &bytes, 0, &bytes[..4000]);
    assert_eq!((first.status, first.header("upload-offset")), (204, "4000"));
    assert_eq!(stands(&server, "a", &bytes), 4000);
    assert_eq!(
        patch(&server, "a", &bytes, 3999, &bytes[3999..]).status,
        409
    );
    assert_eq!(
        patch(&server, "a", &bytes, 4001, &bytes[4001..]).status,
        409
    );
    assert_eq!(patch(&server, "a", &bytes, 0, &bytes).status, 409);
    // Another repository knows nothing of it: what it has not sent it must not get.
    assert_eq!(stands(&server, "b", &bytes), 0);
    assert_eq!(
        patch(&server, "b", &bytes, 4000, &bytes[4000..]).status,
        409
    );
    let last = patch(&server, "a", &bytes, 4000, &bytes[4000..]);
    assert_eq!((last.status, last.header("upload-offset")), (204, "10000"));
    assert_eq!(stands(&server, "a", &bytes), 10_000);
    serves(server.address, &bytes);
    let answer = batch(&server, ADMIN, "git/b/m", "download", &oid(&bytes), 10_000);
    assert!(answer.status == 404 || answer.json()["objects"][0]["error"]["code"] == 404);
}

#[test]
fn a_part_with_wrong_bytes_is_thrown_away_and_the_whole_is_taken_anew() {
    let server = Server::start();
    let (bytes, wrong) = (noise(10_000, 76), noise(10_000, 77));
    assert_eq!(patch(&server, "a", &bytes, 0, &wrong[..4000]).status, 204);
    let refused = patch(&server, "a", &bytes, 4000, &bytes[4000..]);
    assert_eq!(refused.status, 422);
    assert!(
        refused.json()["message"]
            .as_str()
            .unwrap()
            .contains("SHA-256")
    );
    assert_eq!(stands(&server, "a", &bytes), 0);
    assert_eq!(patch(&server, "a", &bytes, 0, &bytes).status, 204);
    serves(server.address, &bytes);
}

#[test]
fn what_is_no_upload_of_tus_is_told_what_to_say() {
    let server = Server::start();
    let bytes = noise(10, 78);
    let url = server.url(&format!("/git/a/m.git/info/lfs/uploads/{}", oid(&bytes)));
    let sized = format!("{url}?size=10");
    let version = ("tus-resumable", "1.0.0");
    let kind = ("content-type", "application/offset+octet-stream");
    let ask = |method: &str, url: &str, headers: &[(&str, &str)]| {
        let body = (method == "PATCH").then_some(&bytes[..]);
        call(method, url, ADMIN, headers, body).status
    };
    assert_eq!(ask("HEAD", &sized, &[]), 412);
    assert_eq!(ask("HEAD", &url, &[version]), 411);
    assert_eq!(ask("PATCH", &sized, &[version]), 415);
    assert_eq!(ask("PATCH", &sized, &[version, kind]), 400);
    assert_eq!(
        ask("PATCH", &sized, &[version, kind, ("upload-offset", "11")]),
        409
    );
    assert_eq!(
        ask("PATCH", &sized, &[version, kind, ("upload-offset", "5")]),
        422
    );
    let reader = token("a", false);
    assert_eq!(call("HEAD", &sized, &reader, &[version], None).status, 403);
    assert_eq!(call("HEAD", &sized, "", &[version], None).status, 401);
}

#[test]
fn clients_that_send_one_object_at_once_all_succeed() {
    let (server, sender) = (Server::start(), Sender::new(3_000_000, 79));
    let way = Way::to(server.address);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| sender.send(&way, 20).unwrap());
        }
    });
    serves(server.address, &noise(3_000_000, 79));
    assert!(!part(&server.root(), &sender.object.oid).exists());
    let left = std::fs::read_dir(server.root().join("tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_client_whose_machine_is_gone_keeps_nobody_from_going_on() {
    let server = Server::start();
    let bytes = noise(1_000_000, 80);
    // It sends some and then neither more nor an end.
    let mut silent = TcpStream::connect(server.address).unwrap();
    write!(
        silent,
        "PATCH /git/a/m.git/info/lfs/uploads/{}?size=1000000 HTTP/1.1\r\nhost: x\r\n\
         content-length: 1000000\r\nauthorization: Bearer {ADMIN}\r\ntus-resumable: 1.0.0\r\n\
         content-type: application/offset+octet-stream\r\nupload-offset: 0\r\n\r\n",
        oid(&bytes)
    )
    .unwrap();
    silent.write_all(&bytes[..900_000]).unwrap();
    let file = part(&server.root(), &oid(&bytes).parse().unwrap());
    wait_for("the bytes do not arrive", || size_of(&file) == 900_000);
    assert_eq!(stands(&server, "a", &bytes), 900_000);
    assert_eq!(
        patch(&server, "a", &bytes, 900_000, &bytes[900_000..]).status,
        204
    );
    serves(server.address, &bytes);
}

#[test]
fn what_is_kept_of_uploads_has_an_end_in_bytes_and_in_time() {
    let server = Server::with(|limits| limits.max_unfinished_bytes = 25_000);
    let cut = |namespace: &str, whole: &[u8]| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(
            stream,
            "PATCH /git/{namespace}/m.git/info/lfs/uploads/{}?size={} HTTP/1.1\r\nhost: x\r\n\
             content-length: {}\r\nauthorization: Bearer {ADMIN}\r\ntus-resumable: 1.0.0\r\n\
             content-type: application/offset+octet-stream\r\nupload-offset: 0\r\n\r\n",
            oid(whole),
            whole.len(),
            whole.len(),
        )
        .unwrap();
        stream.write_all(&whole[..10_000]).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        wait_for("it is not kept", || {
            stands(&server, namespace, whole) == 10_000
        });
    };
    let all: Vec<_> = (81..84).map(|seed| noise(20_000, seed)).collect();
    cut("other", &all[0]);
    cut("a", &all[0]);
    cut("a", &all[1]);
    cut("a", &all[2]);
    // The oldest has made room, in its own namespace alone.
    wait_for("the oldest stays", || stands(&server, "a", &all[0]) == 0);
    assert_eq!(stands(&server, "a", &all[1]), 10_000);
    assert_eq!(stands(&server, "other", &all[0]), 10_000);
    // Age is told by the file's time.
    let file = part(&server.root(), &oid(&all[1]).parse().unwrap());
    let file = std::fs::File::options().append(true).open(file).unwrap();
    let old = std::time::SystemTime::now() - Duration::from_hours(25);
    file.set_modified(old).unwrap();
    cut("a", &noise(20_000, 84));
    wait_for("the old one stays", || stands(&server, "a", &all[1]) == 0);
}

#[test]
fn stock_git_lfs_goes_on_too_when_it_is_told_to() {
    let (server, work) = (Server::start(), Workspace::new());
    let way = Way::to(server.address);
    work.model("a", SIZE, 85);
    work.git("a", &["config", "lfs.tustransfers", "true"]);
    work.git("a", &["config", "lfs.transfer.maxretries", "1"]);
    way.allow(SIZE as u64 * 9 / 10);
    let url = way.git_url("git/a/m.git");
    let cut = work.run("a", &["push", "-q", &url, "main"]);
    assert!(!cut.status.success());
    way.allow(u64::MAX);
    work.git("a", &["push", "-q", &url, "main"]);
    little(way.passed());
    serves(server.address, &noise(SIZE, 85));
}
