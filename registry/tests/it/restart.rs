//! Ends at the worst moment.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    client::{Workspace, ask, call, noise, size_of, upstream},
    program::Program,
    server::{ADMIN, Server, token},
    upstream::{Door, Mode},
};
use hyprstream_contract::registry::{MirrorState, MirrorStatus};

#[test]
fn a_mirror_goes_on_where_a_killed_one_ended() {
    let (dir, work, origin) = (
        tempfile::tempdir().unwrap(),
        Workspace::new(),
        Server::start(),
    );
    let commit = work.model("a", 4_000_000, 1);
    work.git(
        "a",
        &["push", "-q", &origin.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    let door = Door::open(origin.address, true);
    door.set(Mode::StallAfter(3_000_000));
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let mut program = Program::start(dir.path(), 0);
    let port = program.address.port();
    let start = Instant::now();
    let wait = |program: &Program, done: &dyn Fn(&MirrorStatus) -> bool| loop {
        let status = ask(&program.address, &source, &commit, &[]);
        if done(&status) {
            break status;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    wait(&program, &|status| status.bytes_done >= 2_500_000);
    program.kill();
    door.set(Mode::Pass);
    let before = door.bytes();
    let program = Program::start(dir.path(), port);
    let status = wait(&program, &|status| status.state == MirrorState::Ready);
    assert_eq!(status.bytes_done, 4_000_000);
    let again = door.bytes() - before;
    assert!(again < 2_000_000, "{again} bytes came again");
    work.git(
        "",
        &[
            "clone",
            "-q",
            &program.git_url(&format!("{}.git", status.repository)),
            "b",
        ],
    );
    assert_eq!(work.read("b/weights.bin"), noise(4_000_000, 1));
}

#[test]
fn a_kill_in_the_middle_of_a_push_is_healed_by_the_next_push() {
    let (dir, work) = (tempfile::tempdir().unwrap(), Workspace::new());
    work.model("a", 1_000_000, 2);
    std::fs::write(work.path("a/large.dat"), noise(30_000_000, 3)).unwrap();
    let commit = work.commit("a");
    let mut program = Program::start(dir.path(), 0);
    let port = program.address.port();
    let url = program.git_url("git/a/m.git");
    let mut push = work
        .command("a", &["push", "-q", &url, "main"])
        .spawn()
        .unwrap();
    let objects = dir.path().join("root/git/a/m.git/objects");
    let start = Instant::now();
    // The pack comes into a folder of its own.
    let incoming = || {
        let entries = std::fs::read_dir(&objects).ok()?;
        let packs = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("tmp_"));
        let size = packs
            .flat_map(|folder| std::fs::read_dir(folder.path().join("pack")))
            .flatten()
            .flatten()
            .map(|file| size_of(&file.path()))
            .sum::<u64>();
        (size > 1_000_000).then_some(())
    };
    while incoming().is_none() && push.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
    program.kill();
    assert!(!push.wait().unwrap().success());
    // A lock such as a killed git leaves.
    let lock = dir.path().join("root/git/a/m.git/refs/heads/main.lock");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    std::fs::write(&lock, "").unwrap();
    let old = std::time::SystemTime::now() - Duration::from_mins(1);
    std::fs::File::options()
        .append(true)
        .open(&lock)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let program = Program::start(dir.path(), port);
    work.git("a", &["push", "-q", &url, "main"]);
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.git("b", &["rev-parse", "HEAD"]), commit);
    assert_eq!(work.read("b/weights.bin"), noise(1_000_000, 2));
    work.git("b", &["fsck", "--strict"]);
    drop(program);
}

#[test]
fn the_term_signal_ends_it_at_once_when_nothing_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(dir.path(), 0);
    assert_eq!(
        call("GET", &program.url("/healthz"), "", &[], None).status,
        200
    );
    // A reader of events does not hold it up.
    let url = program.url("/api/v1/events?after=0");
    let page = call("GET", &url, ADMIN, &[], None).json();
    let url = program.url(&format!("/api/v1/events?after={}", page["last"]));
    let waiting = std::thread::spawn(move || call("GET", &url, ADMIN, &[], None).status);
    std::thread::sleep(Duration::from_millis(200));
    let pid = program.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let start = Instant::now();
    assert!(program.child.wait().unwrap().success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(waiting.join().unwrap(), 200);
}

#[test]
fn the_token_command_prints_a_token_that_opens_its_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), 0);
    let print = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hyprstream-registry"))
            .args(["token", "--signing-key-file"])
            .arg(dir.path().join("key"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let status = |token: &str| {
        let url = program.url("/git/a/m.git/info/refs?service=git-receive-pack");
        call("GET", &url, token, &[], None).status
    };
    assert_eq!(
        status(&print(&["--namespace", "a", "--write", "--ttl", "1h"])),
        200
    );
    assert_eq!(status(&print(&["--namespace", "a"])), 403);
    assert_eq!(status(&print(&["--namespace", "b", "--write"])), 403);
    assert_eq!(status(&token("a", true)), 200);
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_takes_it_once_there_is_space() {
    let (dir, work, origin) = (
        tempfile::tempdir().unwrap(),
        Workspace::new(),
        Server::start(),
    );
    let commit = work.model("a", 8_000_000, 4);
    work.git(
        "a",
        &["push", "-q", &origin.git_url(ADMIN, "git/a/m.git"), "main"],
    );
    std::fs::write(work.path("a/large.dat"), noise(8_000_000, 5)).unwrap();
    work.commit("a");
    let program = Program::start_with_small_disk(dir.path(), 64, 58);
    let url = program.git_url("git/a/m.git");
    let push = || work.run("a", &["push", &url, "main"]);

    // First without the LFS object, so that git itself runs into the end of the disk.
    let pack = work
        .command("a", &["push", &url, "main"])
        .env("GIT_LFS_SKIP_PUSH", "1")
        .output();
    let pack = pack.unwrap();
    let complaint = String::from_utf8_lossy(&pack.stderr).into_owned();
    assert!(
        !pack.status.success() && complaint.contains("No space left"),
        "{complaint}"
    );
    let objects = program.own_file(dir.path(), "git/a/m.git/objects");
    let leftovers = || {
        let entries = std::fs::read_dir(&objects).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp_"))
            .count()
    };
    assert_eq!(leftovers(), 0);
    let lfs = push();
    let complaint = String::from_utf8_lossy(&lfs.stderr).into_owned();
    assert!(
        !lfs.status.success() && complaint.contains("no space is left"),
        "{complaint}"
    );

    let door = Door::open(origin.address, true);
    let source = upstream(&door.url("git/a/m.git"), "default", None);
    let start = Instant::now();
    let wait = |state: MirrorState| loop {
        let status = ask(&program.address, &source, &commit, &[]);
        if status.state == state {
            break status;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{status:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let error = wait(MirrorState::Failed).error.unwrap();
    assert_eq!(
        (error.reason.as_str(), error.retriable),
        ("DiskFull", true),
        "{error}"
    );

    std::fs::remove_file(program.own_file(dir.path(), "filler")).unwrap();
    wait(MirrorState::Ready);
    let pushed = push();
    assert!(
        pushed.status.success(),
        "{}",
        String::from_utf8_lossy(&pushed.stderr)
    );
    work.git("", &["clone", "-q", &url, "b"]);
    assert_eq!(work.read("b/weights.bin"), noise(8_000_000, 4));
    assert_eq!(work.read("b/large.dat"), noise(8_000_000, 5));
}
