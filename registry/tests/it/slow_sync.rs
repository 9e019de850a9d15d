//! A disk that takes its time to sync.

use std::{path::Path, process::Command, time::Duration};

use hyprstream_git2db::{
    Credentials, RemoteUrl,
    lfs::{Client, Options, Pointer},
    store::ObjectStore,
};

use crate::{
    client::{Workspace, call, noise, oid},
    program::Program,
    server::{ADMIN, NODE},
};

/// Syncs wait while a file is there.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static int synced(const char *name, int fd) {
    const char *path = getenv("SYNCS_WAIT_WHILE");
    while (path && access(path, F_OK) == 0) usleep(20000);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
"#;

fn shim(dir: &Path) -> std::path::PathBuf {
    let (source, made) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&made, &source])
        .arg("-ldl")
        .status();
    assert!(
        built.unwrap().success(),
        "the linker of Rust is a C compiler"
    );
    made
}

#[test]
fn clients_that_wait_seven_seconds_for_a_sign_of_life_outwait_a_sync_of_twenty() {
    let (dir, work) = (tempfile::tempdir().unwrap(), Workspace::new());
    let slow = dir.path().join("slow");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-registry"));
    command
        .env("LD_PRELOAD", shim(dir.path()))
        .env("SYNCS_WAIT_WHILE", &slow);
    let program = Program::run(command, dir.path(), 0);
    let url = program.git_url("git/a/m.git");
    work.model("a", 1000, 91);
    work.git("a", &["push", "-q", &url, "main"]);
    work.git("a", &["config", "lfs.activitytimeout", "7"]);
    work.git("a", &["config", "lfs.transfer.maxretries", "1"]);
    std::fs::write(work.path("a/weights.bin"), noise(1_000_000, 92)).unwrap();
    work.commit("a");
    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    let ours = Pointer {
        oid: store.insert_bytes(&noise(1_000_000, 93)).unwrap(),
        size: 1_000_000,
    };
    let options = Options {
        attempts: 1,
        stall_timeout: Duration::from_secs(7),
        ..Options::default()
    };
    let remote = RemoteUrl::parse(&program.url("/git/a/m.git")).unwrap();
    let client = Client::new(&remote, &Credentials::Token(ADMIN.to_owned()), options).unwrap();
    let object = |seed| {
        let oid = oid(&noise(1_000_000, seed));
        let path = format!("/git/a/m.git/info/lfs/objects/{oid}");
        call("GET", &program.url(&path), NODE, &[], None)
    };
    std::fs::write(&slow, "").unwrap();
    std::thread::scope(|scope| {
        let stock = scope.spawn(|| work.run("a", &["push", "-q", &url, "main"]));
        let sent = scope.spawn(|| client.upload(&[ours], &store, None, &()));
        std::thread::sleep(Duration::from_secs(20));
        // Nothing is shown before it is durable.
        assert_eq!((object(92).status, object(93).status), (404, 404));
        std::fs::remove_file(&slow).unwrap();
        sent.join().unwrap().unwrap();
        let stock = stock.join().unwrap();
        let said = String::from_utf8_lossy(&stock.stderr).into_owned();
        assert!(stock.status.success(), "{said}");
    });
    assert!(object(92).body == noise(1_000_000, 92));
    assert!(object(93).body == noise(1_000_000, 93));
}
