//! Trees and checkouts of repositories made with real git and git-lfs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use hyprstream_git2db::{
    CommitId, Digest, Include, RepoError,
    checkout::{self, Checkout, CheckoutError, FileMode, Source},
    lfs::Pointer,
    store::ObjectStore,
    tree::{self, EntryKind, Limits, Refusal, TreeError},
};
use support::{Work, git::git};

/// A repository with real LFS files, and a store with their objects.
struct Node {
    work: Work,
    root: tempfile::TempDir,
    store: ObjectStore,
}

impl Node {
    fn new() -> Self {
        let work = Work::new();
        work.git(&["lfs", "install", "--local"]);
        work.write(
            ".gitattributes",
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        );
        let root = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&root.path().join("store")).unwrap();
        Self { work, root, store }
    }

    fn put_object(&self, content: &[u8]) -> Digest {
        self.store.insert_bytes(content).unwrap()
    }

    fn materialise(&self, commit: &CommitId, include: &Include) -> Result<Checkout, CheckoutError> {
        let bare = self.work.origin();
        let (limits, store) = (Limits::default(), &self.store);
        let source = Source {
            bare: &bare,
            commit,
            include,
            limits,
            store,
        };
        checkout::materialise(&source, self.root.path())
    }

    fn walk(&self, commit: &CommitId) -> Result<Vec<tree::Entry>, TreeError> {
        let limits = Limits {
            max_blob_bytes: 1000,
            max_entries: 100,
            ..Limits::default()
        };
        tree::walk(&self.work.origin(), commit, &Include::all(), &limits)
    }

    #[track_caller]
    fn refusal(&self, commit: &CommitId) -> Refusal {
        match self.walk(commit) {
            Err(TreeError::Refused { refusal, .. }) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn folder(&self, name: &str) -> Vec<PathBuf> {
        fs::read_dir(self.root.path().join(name))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_checkout_equals_that_of_git_and_is_hard_linked() {
    let node = Node::new();
    let weights = vec![7; 5000];
    node.work
        .write("model.safetensors", &weights)
        .write("config.json", "{}")
        .write("deep/er/file.txt", "x")
        .write("empty", "")
        .write("run.sh", "#!/bin/sh\n");
    let run = node.work.work().join("run.sh");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../config.json", node.work.work().join("deep/link")).unwrap();
    let commit = node.work.commit();
    let pointer = node.work.git(&["show", "HEAD:model.safetensors"]);
    let pointer = Pointer::parse(pointer.as_bytes()).unwrap();
    assert_eq!(pointer.oid, node.put_object(&weights));
    let entries = node.walk(&commit).unwrap();
    assert_eq!(tree::pointers(&entries), [pointer.clone()]);

    let checkout = node.materialise(&commit, &Include::all()).unwrap();
    let difference = std::process::Command::new("diff")
        .args(["-r", "--exclude=.git"])
        .args([&node.work.work(), &checkout.path])
        .output()
        .unwrap();
    assert!(
        difference.status.success(),
        "{}",
        String::from_utf8_lossy(&difference.stdout)
    );
    let paths: Vec<_> = checkout.files.iter().map(|f| f.path.as_str()).collect();
    let expected = [
        ".gitattributes",
        "config.json",
        "deep/er/file.txt",
        "deep/link",
        "empty",
        "model.safetensors",
        "run.sh",
    ];
    assert_eq!(paths, expected);
    for file in &checkout.files {
        let path = checkout.path.join(&file.path);
        let (content, bits) = match file.mode {
            FileMode::Symlink => (
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
                0o777,
            ),
            FileMode::File => (fs::read(&path).unwrap(), 0o444),
            FileMode::Executable => (fs::read(&path).unwrap(), 0o555),
        };
        assert_eq!(file.sha256, Digest::of(&content), "{}", file.path);
        assert_eq!(file.size_bytes, content.len() as u64, "{}", file.path);
        assert_eq!(mode(&path), bits, "{}", file.path);
        if file.mode == FileMode::File {
            let object = fs::metadata(node.store.path(&file.sha256)).unwrap();
            assert_eq!(
                object.ino(),
                fs::metadata(&path).unwrap().ino(),
                "{}",
                file.path
            );
        }
    }
    assert_eq!(mode(&checkout.path), 0o755);
    assert_eq!(mode(&checkout.path.join("deep")), 0o755);
    assert_eq!(
        checkout::open(node.root.path(), &checkout.key).unwrap(),
        Some(checkout.clone())
    );
    assert_eq!(
        checkout::list(node.root.path()).unwrap(),
        [checkout.key.clone()]
    );
    assert_eq!(
        node.materialise(&commit, &Include::all()).unwrap(),
        checkout
    );
    assert!(node.folder("tmp").is_empty() && node.folder("trash").is_empty());
}

#[test]
fn an_executable_file_with_the_same_content_as_a_plain_one_has_its_own_mode() {
    let node = Node::new();
    node.work.write("plain", "same").write("tool", "same");
    let tool = node.work.work().join("tool");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let commit = node.work.commit();
    let checkout = node.materialise(&commit, &Include::all()).unwrap();
    assert_eq!(mode(&checkout.path.join("plain")), 0o444);
    assert_eq!(mode(&checkout.path.join("tool")), 0o555);
}

#[test]
fn two_commits_share_what_they_have_in_common() {
    let node = Node::new();
    node.put_object(b"weights");
    node.work
        .write("model.safetensors", "weights")
        .write("config.json", "1");
    let first = node.work.commit();
    node.work.write("config.json", "2");
    let second = node.work.commit();
    let first = node.materialise(&first, &Include::all()).unwrap();
    let second = node.materialise(&second, &Include::all()).unwrap();
    let inode = |c: &Checkout, name: &str| fs::metadata(c.path.join(name)).unwrap().ino();
    assert_eq!(
        inode(&first, "model.safetensors"),
        inode(&second, "model.safetensors")
    );
    assert_ne!(inode(&first, "config.json"), inode(&second, "config.json"));
}

#[test]
fn only_included_files_are_needed_and_made() {
    let node = Node::new();
    node.work
        .write("model.safetensors", "weights")
        .write("config.json", "{}")
        .write("a/b.md", "");
    let commit = node.work.commit();
    let include = Include::new(&["*.json", "a/**"]).unwrap();
    let checkout = node.materialise(&commit, &include).unwrap();
    let paths: Vec<_> = checkout.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["a/b.md", "config.json"]);
    let error = node.materialise(&commit, &Include::all()).unwrap_err();
    let expected = Digest::of(b"weights");
    assert!(
        matches!(&error, CheckoutError::MissingObject { path, oid }
            if path == "model.safetensors" && *oid == expected),
        "{error}"
    );
    assert_eq!(error.reason(), "MissingLFSObject");
    assert!(
        node.folder("tmp").is_empty(),
        "nothing is left of the attempt"
    );
    node.put_object(b"weights");
    node.materialise(&commit, &Include::all()).unwrap();
}

#[test]
fn twenty_at_once_get_one_checkout() {
    let node = Node::new();
    node.put_object(b"weights");
    node.work.write("model.safetensors", "weights");
    for i in 0..20 {
        node.work.write(&format!("f{i}"), format!("{i}"));
    }
    let commit = node.work.commit();
    let inodes = std::sync::Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let checkout = node.materialise(&commit, &Include::all()).unwrap();
                inodes
                    .lock()
                    .unwrap()
                    .insert(fs::metadata(&checkout.path).unwrap().ino());
            });
        }
    });
    assert_eq!(inodes.into_inner().unwrap().len(), 1);
    assert!(node.folder("trash").is_empty());
}

#[test]
fn what_killed_processes_left_is_not_taken_for_a_checkout_and_is_cleaned() {
    let node = Node::new();
    node.work.write("a", "1");
    let commit = node.work.commit();
    let key = checkout::key(&commit, &Include::all());
    let root = node.root.path();
    // Renamed, but not yet marked; half built; half removed.
    fs::create_dir_all(root.join("checkouts").join(&key)).unwrap();
    fs::create_dir_all(root.join("tmp").join(format!("{key}.abc/d"))).unwrap();
    fs::create_dir_all(root.join("trash").join("x/checkout")).unwrap();
    assert_eq!(checkout::open(root, &key).unwrap(), None);
    assert!(checkout::list(root).unwrap().is_empty());
    checkout::clean(root).unwrap();
    for name in ["checkouts", "tmp", "trash"] {
        assert!(node.folder(name).is_empty(), "{name}");
    }
    // Without cleaning it is replaced.
    fs::create_dir_all(root.join("checkouts").join(&key).join("stale")).unwrap();
    let checkout = node.materialise(&commit, &Include::all()).unwrap();
    assert!(checkout.path.join("a").exists() && !checkout.path.join("stale").exists());
    checkout::clean(root).unwrap();
    assert!(checkout::open(root, &key).unwrap().is_some());
}

#[test]
fn a_removed_checkout_frees_its_objects_and_can_be_made_again() {
    let node = Node::new();
    node.put_object(b"weights");
    node.work.write("model.safetensors", "weights");
    let commit = node.work.commit();
    let checkout = node.materialise(&commit, &Include::all()).unwrap();
    let gc = || node.store.gc(&HashSet::new(), Duration::ZERO).unwrap();
    assert_eq!(gc().files, 0);
    checkout::remove(node.root.path(), &checkout.key).unwrap();
    checkout::remove(node.root.path(), &checkout.key).unwrap();
    assert!(!checkout.path.exists());
    assert_eq!(
        checkout::open(node.root.path(), &checkout.key).unwrap(),
        None
    );
    assert!(node.folder("trash").is_empty());
    assert_eq!(gc().files, 2);
    node.put_object(b"weights");
    node.materialise(&commit, &Include::all()).unwrap();
}

#[test]
fn lfs_is_decided_by_attributes_and_pointer_together() {
    let node = Node::new();
    let pointer = Pointer {
        oid: Digest::of(b"weights"),
        size: 7,
    }
    .to_string();
    node.work.write("model.safetensors", "weights");
    node.work.write("text.md", &pointer);
    node.work
        .write("off/.gitattributes", "*.safetensors -filter\n");
    node.work.write("off/model.safetensors", "plain");
    let commit = node.work.commit();
    let entries = node.walk(&commit).unwrap();
    let kind = |path: &str| &entries.iter().find(|e| e.path == path).unwrap().kind;
    assert!(
        matches!(kind("model.safetensors"), EntryKind::Lfs { pointer, .. } if pointer.size == 7)
    );
    assert!(matches!(kind("text.md"), EntryKind::Blob { .. }));
    assert!(matches!(
        kind("off/model.safetensors"),
        EntryKind::Blob { size: 5, .. }
    ));
}

/// A commit with entries that `git add` would not make: mode, name, content.
fn forge(node: &Node, entries: &[(&str, &str, &[u8])]) -> CommitId {
    let origin = node.work.origin();
    let dir = node.root.path().join("forged");
    let mut tree = Vec::new();
    for (mode, name, content) in entries {
        let oid = if *mode == "160000" {
            "1".repeat(40)
        } else if *mode == "40000" {
            String::from_utf8(content.to_vec()).unwrap()
        } else {
            fs::write(&dir, content).unwrap();
            git(
                &origin,
                &["hash-object", "-w", "--no-filters", dir.to_str().unwrap()],
            )
        };
        tree.extend(format!("{mode} {name}\0").into_bytes());
        tree.extend((0..20).map(|i| u8::from_str_radix(&oid[2 * i..2 * i + 2], 16).unwrap()));
    }
    fs::write(&dir, tree).unwrap();
    let args = [
        "hash-object",
        "-w",
        "-t",
        "tree",
        "--literally",
        dir.to_str().unwrap(),
    ];
    let tree = git(&origin, &args);
    git(&origin, &["commit-tree", "-m", "forged", &tree])
        .parse()
        .unwrap()
}

#[test]
fn what_is_dangerous_is_refused() {
    let node = Node::new();
    for (entries, expected) in [
        (&[("120000", "l", &b"/etc"[..])][..], "leads out"),
        (&[("120000", "l", b"../x")], "leads out"),
        (&[("120000", "l", b"l")], "not valid"),
        (&[("120000", "l", b"")], "not valid"),
        (&[("120000", "l", &[b'x'; 5000])], "not valid"),
        (&[("160000", "sub", b"")], "submodules"),
        (&[("100644", "big", &[0; 1001])], "git lfs track"),
        (&[("100644", ".GIT", b"x")], ".git"),
        (&[("100644", "git~1", b"x")], ".git"),
        (&[("100644", "a\\b", b"x")], "backslash"),
        (&[("100644", "..", b"x")], "'..'"),
        (&[("100644", ".HyprStream", b"x")], ".hyprstream"),
        (&[("100644", "a", b"1"), ("120000", "a", b"b")], "twice"),
        (&[("010644", "fifo", b"x")], "mode"),
    ] {
        let commit = forge(&node, entries);
        let refusal = node.refusal(&commit);
        assert!(
            refusal.to_string().contains(expected),
            "{entries:?}: {refusal}"
        );
        let error = node.materialise(&commit, &Include::all());
        if !matches!(refusal, Refusal::HugeBlob { .. }) {
            assert_eq!(error.unwrap_err().reason(), "RefusedContent");
        }
    }
    assert!(node.folder("tmp").is_empty());
}

#[test]
fn a_folder_of_a_dangerous_name_and_a_link_in_place_of_a_folder_are_refused() {
    let node = Node::new();
    let inner = forge(&node, &[("100644", "config", b"x")]);
    let origin = node.work.origin();
    let tree = git(&origin, &["rev-parse", &format!("{inner}^{{tree}}")]);
    let commit = forge(&node, &[("40000", ".git", tree.as_bytes())]);
    assert!(matches!(node.refusal(&commit), Refusal::Name(_)));
    let commit = forge(
        &node,
        &[("120000", "d", b"e"), ("40000", "d", tree.as_bytes())],
    );
    assert!(matches!(node.refusal(&commit), Refusal::Duplicate));
    let commit = forge(&node, &[("40000", "d", tree.as_bytes())]);
    assert!(node.walk(&commit).is_ok());
}

#[test]
fn a_pointer_with_extensions_is_refused() {
    let node = Node::new();
    let attributes: &[u8] = b"*.bin filter=lfs\n";
    let oid = "1".repeat(64);
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\next-0-x sha256:{oid}\noid sha256:{oid}\nsize 1\n"
    );
    let commit = forge(
        &node,
        &[
            ("100644", ".gitattributes", attributes),
            ("100644", "a.bin", pointer.as_bytes()),
        ],
    );
    assert!(matches!(node.refusal(&commit), Refusal::PointerExtension));
}

#[test]
fn a_tree_with_too_many_entries_is_refused() {
    let node = Node::new();
    for i in 0..101 {
        node.work.write(&format!("f{i}"), "");
    }
    let commit = node.work.commit();
    assert!(matches!(
        node.refusal(&commit),
        Refusal::TooManyEntries(100)
    ));
}

#[test]
fn a_commit_that_is_not_there_is_an_error_of_its_own() {
    let node = Node::new();
    let missing: CommitId = "1".repeat(40).parse().unwrap();
    let error = node.walk(&missing).unwrap_err();
    assert!(
        matches!(error, TreeError::Repo(RepoError::CommitMissing { .. })),
        "{error}"
    );
}

#[test]
fn a_store_on_another_file_system_is_copied_from() {
    let node = Node::new();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: there is no /dev/shm");
        return;
    };
    if fs::metadata(other.path()).unwrap().dev() == fs::metadata(node.root.path()).unwrap().dev() {
        eprintln!("skipped: /dev/shm is not a file system of its own");
        return;
    }
    node.put_object(b"weights");
    node.work
        .write("model.safetensors", "weights")
        .write("tool", "x");
    let tool = node.work.work().join("tool");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let commit = node.work.commit();
    let (bare, include) = (node.work.origin(), Include::all());
    let (limits, store) = (Limits::default(), &node.store);
    let source = Source {
        bare: &bare,
        commit: &commit,
        include: &include,
        limits,
        store,
    };
    let checkout = checkout::materialise(&source, other.path()).unwrap();
    assert_eq!(
        fs::read(checkout.path.join("model.safetensors")).unwrap(),
        b"weights"
    );
    assert_eq!(mode(&checkout.path.join("model.safetensors")), 0o444);
    assert_eq!(mode(&checkout.path.join("tool")), 0o555);
}
