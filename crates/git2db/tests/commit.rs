//! Staging, committing and pushing, with stock git and git-lfs at the other end.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hyprstream_git2db::{
    CommitId, Credentials, Digest, Reference, RemoteUrl,
    commit::{self, Author, Change, CommitError, Content, Staged},
    lfs::Pointer,
    repo::{self, Fetch, History},
    store::ObjectStore,
};
use support::{
    Server, Work,
    git::{backend, git},
    lfs,
};

/// A git server with LFS, a bare repository of ours and a store.
struct Setup {
    work: Work,
    server: Server,
    objects: Arc<Mutex<std::collections::HashMap<String, Vec<u8>>>>,
    dir: tempfile::TempDir,
    store: ObjectStore,
}

impl Setup {
    fn new() -> Self {
        let work = Work::new();
        let root = work.dir.path().to_owned();
        let objects: Arc<Mutex<std::collections::HashMap<_, _>>> = Arc::default();
        let shared = objects.clone();
        let server = Server::start(move |request| {
            let to_lfs = request.path.contains("/info/lfs")
                || request.path.starts_with("/obj/")
                || request.path == "/verify";
            if to_lfs {
                lfs::answer(request, &shared)
            } else {
                backend(&root, request)
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(&dir.path().join("store")).unwrap();
        let setup = Self {
            work,
            server,
            objects,
            dir,
            store,
        };
        repo::init_bare(&setup.bare()).unwrap();
        setup
    }

    fn bare(&self) -> PathBuf {
        self.dir.path().join("bare.git")
    }

    fn url(&self) -> RemoteUrl {
        RemoteUrl::parse(&self.server.url("/origin.git")).unwrap()
    }

    #[track_caller]
    fn stage(&self, base: Option<&CommitId>, changes: &[Change]) -> Staged {
        commit::stage(&self.bare(), base, changes, &self.store).unwrap()
    }

    fn commit(&self, staged: &Staged) -> Result<CommitId, CommitError> {
        let author = Author {
            name: "T".into(),
            email: "t@example.org".into(),
        };
        commit::commit(&self.bare(), "main", staged, &author, "Train")
    }

    fn push(&self) -> Result<u64, CommitError> {
        commit::push(
            &self.bare(),
            "main",
            &self.url(),
            &Credentials::None,
            &self.store,
            &(),
        )
        .map(|transfer| transfer.objects_moved)
    }
}

fn put(path: &str, content: &[u8]) -> Change {
    let content = Content::Bytes(content.to_vec());
    Change::Put {
        path: path.into(),
        content,
        executable: false,
    }
}

fn remove(path: &str) -> Change {
    Change::Remove { path: path.into() }
}

#[test]
fn a_pushed_branch_is_cloned_by_git_and_its_lfs_files_by_git_lfs() {
    let setup = Setup::new();
    let file = setup.dir.path().join("adapter");
    fs::write(&file, b"lora").unwrap();
    let staged = setup.stage(
        None,
        &[
            put(
                ".gitattributes",
                b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
            ),
            put("config.json", b"{}"),
            Change::Put {
                path: "adapters/00_base.safetensors".into(),
                content: Content::File(file),
                executable: false,
            },
            Change::Put {
                path: "run.sh".into(),
                content: Content::Bytes(b"#!/bin/sh\n".to_vec()),
                executable: true,
            },
        ],
    );
    assert_eq!(
        staged.objects,
        [Pointer {
            oid: Digest::of(b"lora"),
            size: 4
        }]
    );
    let first = setup.commit(&staged).unwrap();
    assert_eq!(setup.push().unwrap(), 1);
    assert_eq!(
        setup.objects.lock().unwrap()[Digest::of(b"lora").as_str()],
        b"lora"
    );

    let clone = setup.dir.path().join("clone");
    git(
        setup.dir.path(),
        &["clone", "-q", setup.url().as_str(), "clone"],
    );
    git(&clone, &["lfs", "install", "--local"]);
    git(&clone, &["lfs", "pull"]);
    assert_eq!(git(&clone, &["rev-parse", "HEAD"]), first.as_str());
    assert_eq!(
        git(&clone, &["log", "-1", "--format=%an %ae %s"]),
        "T t@example.org Train"
    );
    assert_eq!(
        fs::read(clone.join("adapters/00_base.safetensors")).unwrap(),
        b"lora"
    );
    assert_eq!(
        git(&clone, &["status", "--porcelain"]),
        "",
        "byte-identical to what git-lfs makes"
    );
    git(&clone, &["fsck", "--strict"]);

    // The next commit sends only its own objects, those of commits in between, too.
    let second = setup.stage(
        Some(&first),
        &[put("a.safetensors", b"step 1"), remove("run.sh")],
    );
    let second = setup.commit(&second).unwrap();
    let third = setup.stage(Some(&second), &[put("a.safetensors", b"step 2")]);
    let third = setup.commit(&third).unwrap();
    assert_eq!(setup.push().unwrap(), 2);
    assert_eq!(setup.push().unwrap(), 0);
    git(&clone, &["pull", "-q"]);
    assert_eq!(git(&clone, &["rev-parse", "HEAD"]), third.as_str());
    assert_eq!(fs::read(clone.join("a.safetensors")).unwrap(), b"step 2");
    assert!(!clone.join("run.sh").exists());
}

#[test]
fn a_branch_on_top_of_a_shallow_fetch_is_pushed() {
    let setup = Setup::new();
    setup.work.write("a", "1").commit();
    let tip = setup.work.write("a", "2").commit();
    let (url, credentials) = (setup.url(), Credentials::None);
    let reference = Reference::Branch("main".into());
    let fetch = Fetch {
        url: &url,
        reference: &reference,
        commit: &tip,
        history: History::None,
        credentials: &credentials,
    };
    repo::fetch_commit(&setup.bare(), &fetch, &()).unwrap();
    repo::set_reference(&setup.bare(), &reference, &tip).unwrap();
    let staged = setup.stage(Some(&tip), &[put("b", b"3")]);
    let commit = setup.commit(&staged).unwrap();
    setup.push().unwrap();
    assert_eq!(
        git(&setup.work.origin(), &["rev-parse", "main"]),
        commit.as_str()
    );
    assert_eq!(
        git(&setup.work.origin(), &["rev-list", "--count", "main"]),
        "3"
    );
    git(&setup.work.origin(), &["fsck", "--strict"]);
}

#[test]
fn large_weights_go_to_lfs_even_without_attributes() {
    let setup = Setup::new();
    let weights = vec![1; (10 << 20) + 1];
    let staged = setup.stage(
        None,
        &[
            put("sub dir/model.safetensors", &weights),
            put("small.safetensors", b"x"),
        ],
    );
    assert_eq!(staged.objects.len(), 1);
    let commit = setup.commit(&staged).unwrap();
    let show = |path: &str| git(&setup.bare(), &["show", &format!("{commit}:{path}")]);
    assert!(show("sub dir/model.safetensors").starts_with("version https://git-lfs"));
    assert_eq!(show("small.safetensors"), "x");
    let expected = "/sub[[:space:]]dir/model.safetensors filter=lfs diff=lfs merge=lfs -text";
    assert_eq!(show(".gitattributes"), expected);
    // A pointer that is put is taken for the object, not for a text of its own.
    let pointer = staged.objects[0].to_string();
    let again = setup.stage(Some(&commit), &[put("copy.bin", pointer.as_bytes())]);
    assert!(again.objects.is_empty());
}

#[test]
fn an_object_that_is_elsewhere_is_committed_as_its_pointer() {
    let setup = Setup::new();
    let pointer = Pointer {
        oid: Digest::of(b"weights"),
        size: 7,
    };
    let lfs = |path: &str| Change::Put {
        path: path.to_owned(),
        content: Content::Lfs(pointer.clone()),
        executable: false,
    };
    let tracked = put(".gitattributes", b"*.bin filter=lfs\n");
    let staged = setup.stage(None, &[tracked, lfs("a.bin"), lfs("b.txt")]);
    assert_eq!(staged.objects, [pointer.clone(), pointer.clone()]);
    let bare = setup.bare();
    let author = Author {
        name: "T".into(),
        email: "t@example.org".into(),
    };
    let made = commit::commit_durably(&bare, "a/b", &staged, &author, "m").unwrap();
    let show = |name: &str| git(&bare, &["show", &format!("{made}:{name}")]);
    assert_eq!(show("b.txt"), pointer.to_string().trim());
    assert_eq!(
        show(".gitattributes"),
        "*.bin filter=lfs\n/b.txt filter=lfs diff=lfs merge=lfs -text"
    );
    // A folder's own attributes would have git read it as text.
    let untracked = put("d/.gitattributes", b"* -filter\n");
    let error = commit::stage(&bare, Some(&made), &[untracked, lfs("d/x")], &setup.store);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("takes it out of LFS")
    );
    for name in ["a", "a/b/c"] {
        let error = commit::commit_durably(&bare, name, &staged, &author, "m").unwrap_err();
        let expected =
            matches!(&error, CommitError::BranchInTheWay { other, .. } if other == "a/b");
        assert!(expected, "{error}");
    }
}

#[test]
fn a_branch_that_moved_is_not_overwritten_here_or_there() {
    let setup = Setup::new();
    let first = setup.commit(&setup.stage(None, &[put("a", b"1")])).unwrap();
    setup.push().unwrap();
    let mine = setup.stage(Some(&first), &[put("a", b"2")]);
    let other = setup.stage(Some(&first), &[put("a", b"3")]);
    setup.commit(&mine).unwrap();
    let error = setup.commit(&other).unwrap_err();
    assert!(matches!(error, CommitError::BranchMoved { .. }), "{error}");
    let error = setup
        .commit(&setup.stage(None, &[put("a", b"4")]))
        .unwrap_err();
    assert!(matches!(error, CommitError::BranchMoved { .. }), "{error}");
    // And somebody else pushed meanwhile.
    setup.work.git(&["pull", "-q", "origin", "main"]);
    let theirs = setup.work.write("b", "x").commit();
    let error = setup.push().unwrap_err();
    assert!(matches!(error, CommitError::Rejected { .. }), "{error}");
    assert_eq!(
        git(&setup.work.origin(), &["rev-parse", "main"]),
        theirs.as_str()
    );
}

#[test]
fn a_branch_that_a_hook_refuses_is_reported_with_the_reason() {
    let setup = Setup::new();
    setup.commit(&setup.stage(None, &[put("a", b"1")])).unwrap();
    git(
        &setup.work.origin(),
        &["config", "receive.denyCurrentBranch", "refuse"],
    );
    let hook = setup.work.origin().join("hooks/update");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = setup.push().unwrap_err();
    assert!(error.to_string().contains("hook declined"), "{error}");
    assert_eq!(error.reason(), "Rejected");
}

#[test]
fn the_branch_is_not_pushed_without_its_objects() {
    let setup = Setup::new();
    let attributes = put(".gitattributes", b"*.bin filter=lfs\n");
    let staged = setup.stage(None, &[attributes, put("a.bin", b"weights")]);
    setup.commit(&staged).unwrap();
    let path = setup.store.path(&staged.objects[0].oid);
    fs::remove_file(path).unwrap();
    let error = setup.push().unwrap_err();
    assert!(matches!(error, CommitError::Lfs(_)), "{error}");
    assert_eq!(git(&setup.work.origin(), &["for-each-ref"]), "");
}

#[test]
fn paths_that_must_not_be_committed_are_refused() {
    let setup = Setup::new();
    let base = setup
        .commit(&setup.stage(None, &[put("file", b"1"), put("d/x", b"1")]))
        .unwrap();
    for change in [
        put("../x", b""),
        put("/x", b""),
        put("", b""),
        put("a//b", b""),
        put(".git/config", b""),
        put(".hyprstream/manifest.json", b""),
        put("file/x", b""),
        put("d", b""),
        remove("none"),
        remove("d"),
    ] {
        let error =
            commit::stage(&setup.bare(), Some(&base), &[change.clone()], &setup.store).unwrap_err();
        assert!(
            matches!(error, CommitError::InvalidPath { .. }),
            "{change:?}: {error}"
        );
    }
    let missing = Change::Put {
        path: "a".into(),
        content: Content::File(Path::new("/nonexistent").into()),
        executable: false,
    };
    let error = commit::stage(&setup.bare(), None, &[missing], &setup.store).unwrap_err();
    assert!(matches!(error, CommitError::Read { .. }), "{error}");
}
