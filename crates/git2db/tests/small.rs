//! Checkouts of commits with many small files, which are written and synced together.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    ops::ControlFlow,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use hyprstream_git2db::{
    CommitId, Digest, Include, Limits,
    checkout::{self, Checkout, CheckoutError, FileMode, Source},
    store::{ObjectStore, Verified},
};
use support::Work;

/// More than are put into the store one by one.
const FILES: usize = 400;
/// The test program that this one starts again knows by it what to make.
const ROLE: &str = "HYPRSTREAM_TEST_SMALL_FOLDER";

struct Node {
    work: Work,
    dir: tempfile::TempDir,
    store: ObjectStore,
    commit: CommitId,
}

impl Node {
    fn new() -> Self {
        let work = Work::new();
        for n in 0..FILES {
            // Some alike, some empty, some executable, and one content with both modes.
            let path = format!("folder{}/sub/{n}", n % 7);
            work.write(&path, format!("content {}\n", n / 2).repeat(n % 5));
            if n % 10 == 1 {
                let executable = fs::Permissions::from_mode(0o755);
                fs::set_permissions(work.work().join(path), executable).unwrap();
            }
        }
        let commit = work.commit();
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&dir.path().join("store")).unwrap();
        Self {
            work,
            dir,
            store,
            commit,
        }
    }

    fn materialise(&self, root: &Path) -> Result<Checkout, CheckoutError> {
        materialise(&self.work.origin(), &self.commit, &self.store, root)
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }
}

fn materialise(
    bare: &Path,
    commit: &CommitId,
    store: &ObjectStore,
    root: &Path,
) -> Result<Checkout, CheckoutError> {
    let include = &Include::all();
    let limits = Limits::default();
    checkout::materialise(
        &Source {
            bare,
            commit,
            include,
            limits,
            store,
        },
        root,
    )
}

#[track_caller]
fn is_right(node: &Node, checkout: &Checkout) {
    assert_eq!(checkout.files.len(), FILES);
    for file in &checkout.files {
        let path = checkout.path.join(&file.path);
        let content = fs::read(&path).unwrap();
        assert_eq!(
            content,
            fs::read(node.work.work().join(&file.path)).unwrap()
        );
        assert_eq!(
            (file.sha256.clone(), file.size_bytes),
            (Digest::of(&content), content.len() as u64)
        );
        let bits = if file.mode == FileMode::Executable {
            0o555
        } else {
            0o444
        };
        assert_eq!(
            fs::metadata(&path).unwrap().mode() & 0o7777,
            bits,
            "{}",
            file.path
        );
    }
}

fn tmp_is_empty(root: &Path) {
    // A process that was killed at once made no folder.
    let left: Vec<_> = fs::read_dir(root.join("tmp"))
        .into_iter()
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn many_small_files_are_those_of_git_and_objects_of_the_store() {
    let node = Node::new();
    let checkout = node.materialise(node.root()).unwrap();
    is_right(&node, &checkout);
    tmp_is_empty(node.root());
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    for file in &checkout.files {
        let object = node.store.path(&file.sha256);
        let found = node
            .store
            .verify(&file.sha256, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(found, Ok(Verified::Whole { .. })), "{found:?}");
        assert_eq!(fs::metadata(&object).unwrap().mode() & 0o7777, 0o444);
        let named = match file.mode {
            FileMode::Executable => node.store.executable(&file.sha256).unwrap(),
            _ => object,
        };
        assert_eq!(
            inode(&named),
            inode(&checkout.path.join(&file.path)),
            "{}",
            file.path
        );
    }
    let mut oids: Vec<Digest> = checkout.files.iter().map(|f| f.sha256.clone()).collect();
    oids.sort();
    oids.dedup();
    assert_eq!(node.store.oids().unwrap(), oids);
    // Another root makes links to the same.
    let other = node.materialise(&node.root().join("other")).unwrap();
    assert_eq!(other.files, checkout.files);
    for file in &other.files {
        let [one, two] = [&other, &checkout].map(|c| inode(&c.path.join(&file.path)));
        assert_eq!(one, two, "{}", file.path);
    }
    checkout::remove(node.root(), &checkout.key).unwrap();
    checkout::remove(&node.root().join("other"), &other.key).unwrap();
    let none = std::collections::HashSet::new();
    node.store.gc(&none, std::time::Duration::ZERO).unwrap();
    assert_eq!(node.store.oids().unwrap(), []);
}

#[test]
fn objects_that_came_alone_are_linked_and_damaged_ones_replaced() {
    let node = Node::new();
    let alone = node.store.insert_bytes(b"content 1\ncontent 1\n").unwrap();
    let damaged = Digest::of(b"content 3\n");
    node.store.insert_bytes(b"content 3\n").unwrap();
    let path = node.store.path(&damaged);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"content X\n").unwrap();
    let checkout = node.materialise(node.root()).unwrap();
    is_right(&node, &checkout);
    let of = |oid: &Digest| {
        let file = checkout
            .files
            .iter()
            .find(|f| f.sha256 == *oid && f.mode == FileMode::File);
        fs::metadata(checkout.path.join(&file.unwrap().path))
            .unwrap()
            .ino()
    };
    assert_eq!(
        of(&alone),
        fs::metadata(node.store.path(&alone)).unwrap().ino()
    );
    assert_eq!(
        of(&damaged),
        fs::metadata(node.store.path(&damaged)).unwrap().ino()
    );
    assert_eq!(
        fs::read_dir(node.root().join("store/quarantine"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_blob_that_is_damaged_in_git_leaves_no_checkout() {
    let node = Node::new();
    // Each object in a file of its own, so that one can take the place of another.
    let origin = node.work.origin();
    let unpack = "mv objects/pack/*.pack pack && rm objects/pack/* && git unpack-objects -q < pack";
    let unpacked = Command::new("sh")
        .args(["-c", unpack])
        .current_dir(&origin)
        .status();
    assert!(unpacked.unwrap().success());
    let oid = node.work.git(&["rev-parse", "HEAD:folder2/sub/2"]);
    let object = node
        .work
        .origin()
        .join("objects")
        .join(&oid[..2])
        .join(&oid[2..]);
    let other = node.work.git(&["rev-parse", "HEAD:folder4/sub/4"]);
    let instead = node
        .work
        .origin()
        .join("objects")
        .join(&other[..2])
        .join(&other[2..]);
    fs::remove_file(&object).unwrap();
    fs::copy(instead, object).unwrap();
    let error = node.materialise(node.root()).unwrap_err();
    assert!(error.to_string().contains("repository"), "{error}");
    assert_eq!(checkout::list(node.root()).unwrap(), [""; 0]);
    tmp_is_empty(node.root());
    assert_eq!(node.store.oids().unwrap(), []);
}

#[test]
fn a_store_on_another_file_system_is_done_without() {
    let node = Node::new();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: there is no /dev/shm");
        return;
    };
    let checkout = node.materialise(other.path()).unwrap();
    is_right(&node, &checkout);
}

#[test]
fn a_kill_at_any_time_leaves_nothing_that_is_taken_for_whole() {
    const TEST: &str = "a_kill_at_any_time_leaves_nothing_that_is_taken_for_whole";
    if let Ok(words) = std::env::var(ROLE) {
        let words: Vec<&str> = words.split(' ').collect();
        let store = ObjectStore::open(&Path::new(words[2]).join("store")).unwrap();
        let root = Path::new(words[2]);
        materialise(
            Path::new(words[0]),
            &words[1].parse().unwrap(),
            &store,
            root,
        )
        .unwrap();
        return;
    }
    let node = Node::new();
    let bare = node.work.origin();
    let words = format!(
        "{} {} {}",
        bare.display(),
        node.commit,
        node.root().display()
    );
    let mut killed = 0;
    for milliseconds in (0..200).step_by(8) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--test-threads=1"])
            .env(ROLE, &words)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());
        checkout::clean(node.root()).unwrap();
        tmp_is_empty(node.root());
        for key in checkout::list(node.root()).unwrap() {
            is_right(&node, &checkout::open(node.root(), &key).unwrap().unwrap());
            checkout::remove(node.root(), &key).unwrap();
        }
        for oid in node.store.oids().unwrap() {
            let found = node.store.verify(&oid, &mut |_| ControlFlow::Continue(()));
            assert!(matches!(found, Ok(Verified::Whole { .. })), "{found:?}");
        }
    }
    assert!(killed > 0, "all were done before they were killed");
    is_right(&node, &node.materialise(node.root()).unwrap());
}
