//! Files that are LFS pointers, and those that only look so, in repositories of real git-lfs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;

use hyprstream_git2db::{
    CommitId, Credentials, Digest, Include, RemoteUrl,
    checkout::{self, Source},
    commit::{self, Author},
    lfs::Pointer,
    store::ObjectStore,
    tree::{self, Entry, EntryKind, Limits, Refusal, TreeError},
};
use support::{LfsServer, Work, git::backend, http::Server, lfs};

fn walk(work: &Work, commit: &CommitId) -> Result<Vec<Entry>, TreeError> {
    tree::walk(&work.origin(), commit, &Include::all(), &Limits::default())
}

#[track_caller]
fn refused(work: &Work, commit: &CommitId) -> (String, Refusal) {
    match walk(work, commit) {
        Err(TreeError::Refused { path, refusal }) => (path, refusal),
        other => panic!("not refused: {other:?}"),
    }
}

fn pointer(content: &[u8]) -> Pointer {
    Pointer {
        oid: Digest::of(content),
        size: content.len() as u64,
    }
}

#[test]
fn what_git_lfs_track_gives_to_lfs_in_a_folder_with_a_space_is_an_lfs_object() {
    let work = Work::new();
    work.git(&["lfs", "install", "--local"]);
    work.git(&["lfs", "track", "sub dir/*.safetensors"]);
    let commit = work.write("sub dir/model.safetensors", "weights").commit();
    let attributes = work.git(&["show", "HEAD:.gitattributes"]);
    assert!(attributes.contains("sub[[:space:]]dir"), "{attributes}");
    let entries = walk(&work, &commit).unwrap();
    assert_eq!(tree::pointers(&entries), [pointer(b"weights")]);
}

#[test]
fn a_pointer_in_place_of_weights_that_is_not_given_to_lfs_is_refused_by_name() {
    let work = Work::new();
    let text = pointer(b"weights").to_string();
    for name in ["a b/model.safetensors", "model.GGUF", "config.json"] {
        let commit = work.write(name, &text).commit();
        let (path, refusal) = refused(&work, &commit);
        assert_eq!((path.as_str(), &refusal), (name, &Refusal::StrayPointer));
        assert!(refusal.to_string().contains("git lfs track"), "{refusal}");
        fs::remove_file(work.work().join(name)).unwrap();
    }
    // A text about pointers is a text.
    let commit = work.write("docs/pointer.txt", &text).commit();
    let entries = walk(&work, &commit).unwrap();
    assert!(
        entries
            .iter()
            .all(|entry| matches!(entry.kind, EntryKind::Blob { .. }))
    );
}

#[test]
fn a_pointer_of_size_zero_is_an_empty_file_whatever_its_name() {
    let work = Work::new();
    work.write(".gitattributes", "*.bin filter=lfs\n");
    for (name, oid) in [
        ("empty.bin", Digest::of(b"")),
        ("odd.bin", Digest::of(b"x")),
    ] {
        work.write(name, Pointer { oid, size: 0 }.to_string());
    }
    let commit = work.commit();
    assert_eq!(tree::pointers(&walk(&work, &commit).unwrap()), []);
    let root = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&root.path().join("store")).unwrap();
    let source = Source {
        bare: &work.origin(),
        commit: &commit,
        include: &Include::all(),
        limits: Limits::default(),
        store: &store,
    };
    let checkout = checkout::materialise(&source, root.path()).unwrap();
    for name in ["empty.bin", "odd.bin"] {
        assert_eq!(fs::read(checkout.path.join(name)).unwrap(), b"");
    }
}

#[test]
fn a_truncated_object_is_missing_from_a_checkout_and_not_linked_into_it() {
    let work = Work::new();
    work.write(".gitattributes", "*.bin filter=lfs\n");
    let commit = work
        .write("a.bin", pointer(b"weights").to_string())
        .commit();
    let root = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&root.path().join("store")).unwrap();
    let oid = store.insert_bytes(b"weights").unwrap();
    fs::remove_file(store.path(&oid)).unwrap();
    fs::write(store.path(&oid), "weig").unwrap();
    let source = Source {
        bare: &work.origin(),
        commit: &commit,
        include: &Include::all(),
        limits: Limits::default(),
        store: &store,
    };
    let error = checkout::materialise(&source, root.path()).unwrap_err();
    assert_eq!(error.reason(), "MissingLFSObject", "{error}");
    assert!(error.is_retriable() && !store.contains(&oid));
    // A size that lies is no damage: the object stays, and only a new commit helps.
    store.insert_bytes(b"weights").unwrap();
    let lie = Pointer {
        size: 9,
        ..pointer(b"weights")
    };
    let commit = work.write("a.bin", lie.to_string()).commit();
    let source = Source {
        commit: &commit,
        ..source
    };
    let error = checkout::materialise(&source, root.path()).unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch", "{error}");
    assert!(!error.is_retriable() && store.contains(&oid));
}

#[test]
fn a_push_takes_along_the_objects_of_files_with_spaces_and_of_stray_pointers() {
    let work = Work::new();
    let objects = LfsServer::start();
    let (root, shared) = (work.dir.path().to_owned(), objects.objects.clone());
    let server = Server::start(move |request| {
        let is_lfs = ["/info/lfs/", "/obj/", "/verify"]
            .iter()
            .any(|part| request.path.contains(part));
        if is_lfs {
            return lfs::answer(request, &shared);
        }
        backend(&root, request)
    });
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    store.insert_bytes(b"stray").unwrap();
    let bare = dir.path().join("bare.git");
    hyprstream_git2db::repo::init_bare(&bare).unwrap();
    let put = |path: &str, bytes: &[u8]| commit::Change::Put {
        path: path.to_owned(),
        content: commit::Content::Bytes(bytes.to_vec()),
        executable: false,
    };
    let changes = [
        put(".gitattributes", b"sub[[:space:]]dir/*.pt filter=lfs\n"),
        put("sub dir/a.pt", b"spaced"),
        put("stray.pt", pointer(b"stray").to_string().as_bytes()),
        put("nowhere.pt", pointer(b"nowhere").to_string().as_bytes()),
    ];
    let staged = commit::stage(&bare, None, &changes, &store).unwrap();
    let author = Author {
        name: "T".into(),
        email: "t@example.org".into(),
    };
    commit::commit(&bare, "main", &staged, &author, "x").unwrap();
    let url = RemoteUrl::parse(&server.url("/origin.git")).unwrap();
    commit::push(&bare, "main", &url, &Credentials::None, &store, &()).unwrap();
    let objects = objects.objects.lock().unwrap();
    for content in ["spaced", "stray"] {
        let oid = Digest::of(content.as_bytes());
        assert!(objects.contains_key(oid.as_str()), "{content}");
    }
    assert_eq!(objects.len(), 2);
}
