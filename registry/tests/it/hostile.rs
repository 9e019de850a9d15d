//! Packs that are small and say that they are huge, against the program itself.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    client::{Workspace, call},
    program::Program,
    server::token,
};

const MEBI: u64 = 1 << 20;
/// What a pack makes of itself.
const HUGE: u64 = 3 << 30;
/// What one makes of itself that is unpacked to its end, which takes time.
const LARGE: u64 = 1 << 30;
/// Types of objects in packs.
const COMMIT: u8 = 1;
const TREE: u8 = 2;
const BLOB: u8 = 3;
const OFFSET_DELTA: u8 = 6;
/// Most that a delta copies at once.
const COPY: u64 = 0xff_ffff;

/// Bits as deflate writes them: the lowest of a byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    byte: u8,
    used: u8,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        self.byte |= u8::from(bit) << self.used;
        self.used += 1;
        if self.used == 8 {
            self.bytes.push(self.byte);
            (self.byte, self.used) = (0, 0);
        }
    }

    /// The bits of a code, its first one first.
    fn code(&mut self, code: &str) {
        for bit in code.bytes() {
            self.push(bit == b'1');
        }
    }
}

/// A zlib stream of this many zeros, a sixtieth of a percent as long.
fn zeros(count: u64) -> Vec<u8> {
    let mut bits = Bits::default();
    // The last block, with fixed codes: a zero, and copies of it, 258 at a time.
    bits.code("110");
    let literal = "00110000";
    let (copies, rest) = ((count - 1) / 258, (count - 1) % 258);
    bits.code(literal);
    for _ in 0..copies {
        bits.code("1100010100000");
    }
    for _ in 0..rest {
        bits.code(literal);
    }
    bits.code("0000000");
    while bits.used != 0 {
        bits.push(false);
    }
    // Adler-32 of zeros.
    let sum = (u32::try_from(count % 65521).unwrap() << 16) | 1;
    [&[0x78, 0x9c], &bits.bytes[..], &sum.to_be_bytes()].concat()
}

/// A zlib stream of a few bytes as they are.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    let (mut low, mut high) = (1_u32, 0_u32);
    for byte in bytes {
        low = (low + u32::from(*byte)) % 65521;
        high = (high + low) % 65521;
    }
    let sum = (high << 16) | low;
    [
        &[0x78, 0x01, 1],
        &length.to_le_bytes()[..],
        &(!length).to_le_bytes(),
        bytes,
        &sum.to_be_bytes(),
    ]
    .concat()
}

/// The head of an object in a pack.
fn head(kind: u8, mut size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut byte = kind << 4 | (size & 15) as u8;
    size >>= 4;
    while size > 0 {
        out.push(byte | 0x80);
        byte = (size & 0x7f) as u8;
        size >>= 7;
    }
    out.push(byte);
    out
}

/// A number as deltas write it.
fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

/// How far back a base lies, as packs write it.
fn back(mut distance: usize) -> Vec<u8> {
    let mut out = vec![(distance & 0x7f) as u8];
    while distance > 0x7f {
        distance = (distance >> 7) - 1;
        out.insert(0, 0x80 | (distance & 0x7f) as u8);
    }
    out
}

/// An object of zeros.
fn object(kind: u8, size: u64) -> Vec<u8> {
    [head(kind, size), zeros(size)].concat()
}

/// A file of 16 MiB, and one of `HUGE` that is made of it by copies.
fn delta() -> Vec<Vec<u8>> {
    let base = object(BLOB, COPY);
    let copies = HUGE / COPY;
    let mut edits = [number(COPY), number(copies * COPY)].concat();
    for _ in 0..copies {
        edits.extend([0xf0, 0xff, 0xff, 0xff]);
    }
    let size = edits.len() as u64;
    let head = head(OFFSET_DELTA, size);
    let delta = [head, back(base.len()), stored(&edits)].concat();
    vec![base, delta]
}

/// A pack of these objects.
fn pack(objects: &[Vec<u8>]) -> Vec<u8> {
    let count = u32::try_from(objects.len()).unwrap();
    let mut pack = [b"PACK", &2_u32.to_be_bytes()[..], &count.to_be_bytes()].concat();
    pack.extend(objects.concat());
    let mut sum = Command::new("sha1sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sum.stdin.take().unwrap().write_all(&pack).unwrap();
    let said = sum.wait_with_output().unwrap().stdout;
    pack.extend(hex::decode(&said[..40]).unwrap());
    pack
}

/// The most that a process below another has had in memory, in bytes.
struct Peak {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Peak {
    fn of_children(of: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut highest = 0;
                while !stop.load(Ordering::SeqCst) {
                    highest = highest.max(highest_below(of));
                    std::thread::sleep(Duration::from_millis(2));
                }
                highest
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn highest_below(root: u32) -> u64 {
    let mut highest = 0;
    let mut of = vec![root];
    while let Some(parent) = of.pop() {
        let threads = fs::read_dir(format!("/proc/{parent}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let Ok(child) = child.parse() else { continue };
                highest = highest.max(high_water(child));
                of.push(child);
            }
        }
    }
    highest
}

/// The most that a process had in memory, in bytes.
fn high_water(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

/// Pushes a pack to a branch; what the client is told.
fn push(program: &Program, pack: &[u8]) -> String {
    let commands = format!(
        "{} {} refs/heads/main\0 report-status side-band-64k agent=test",
        "0".repeat(40),
        "1".repeat(40)
    );
    let mut body = format!("{:04x}{commands}0000", commands.len() + 4).into_bytes();
    body.extend(pack);
    let kind = [("content-type", "application/x-git-receive-pack-request")];
    let url = program.url("/git/team-a/m.git/git-receive-pack");
    let answer = call("POST", &url, &token("team-a", true), &kind, Some(&body));
    assert_eq!(answer.status, 200);
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Tells that it is over when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_small_pack_that_says_it_is_huge_is_refused_and_harms_nobody() {
    let (dir, work) = (tempfile::tempdir().unwrap(), Workspace::new());
    let program = Program::start(dir.path(), 0);
    work.model("a", 1000, 91);
    for repository in ["team-a/m", "team-b/n"] {
        let url = program.git_url(&format!("git/{repository}.git"));
        work.git("a", &["push", "-q", &url, "main"]);
    }
    let others = program.git_url("git/team-b/n.git");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an assertion fails.
        let end = End(&done);
        let other = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(50));
                let refs = work.git("", &["ls-remote", &others]);
                assert!(refs.contains("refs/heads/main"), "{refs}");
                answers += 1;
            }
            answers
        });
        for (what, objects, words) in [
            ("a commit", vec![object(COMMIT, HUGE)], "Out of memory"),
            ("a tree", vec![object(TREE, HUGE)], "Out of memory"),
            ("a difference", delta(), "Out of memory"),
            // A file is streamed. There is no commit of that name.
            (
                "a file",
                vec![object(BLOB, LARGE)],
                "missing necessary objects",
            ),
        ] {
            let pack = pack(&objects);
            assert!((pack.len() as u64) < LARGE / 25, "{what}: {}", pack.len());
            let peak = Peak::of_children(program.child.id());
            let said = push(&program, &pack);
            let peak = peak.end();
            assert!(said.contains(words), "{what}: {said}");
            assert!(said.contains("ng refs/heads/main"), "{what}: {said}");
            assert!(peak < 512 * MEBI, "{what}: {} MiB", peak / MEBI);
        }
        drop(end);
        assert!(other.join().unwrap() > 0);
    });
    let own = high_water(program.child.id());
    assert!(own > 0 && own < 256 * MEBI, "{} MiB", own / MEBI);
    // The same process, and nothing is left of the packs.
    let head = work.git("a", &["rev-parse", "main"]);
    let url = program.git_url("git/team-a/m.git");
    let refs = work.git("", &["ls-remote", &url, "refs/heads/main"]);
    assert!(refs.starts_with(head.trim()), "{refs}");
    let repository = dir.path().join("root/git/team-a/m.git/objects");
    let kept: u64 = fs::read_dir(repository.join("pack"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept < MEBI, "{kept} bytes of packs");
}
