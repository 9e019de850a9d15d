//! What an overlay's upper changed, against what stock git makes of the files that it shows.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
};

use hyprstream_git2db::{
    CommitId, Include,
    commit::{self, Author, CommitError, Staged, Upper, stage_upper},
    lfs::Pointer,
    storage::mount::{self, How, Overlay},
    store::ObjectStore,
};
use proptest::prelude::*;
use support::{
    Work,
    git::{command, git},
};

/// An overlay on the checkout of a commit, under a layer of the node plugin's.
struct Place {
    work: Work,
    commit: CommitId,
    store: ObjectStore,
    include: Include,
    how: How,
}

impl Place {
    /// On these files; `None` where no overlay can be mounted.
    fn new(files: &[(&str, &str)], how: How) -> Option<Self> {
        Self::showing(files, Include::all(), how)
    }

    fn showing(files: &[(&str, &str)], include: Include, how: How) -> Option<Self> {
        let work = Work::new();
        for (path, content) in files {
            work.write(path, content);
        }
        let executable = fs::Permissions::from_mode(0o755);
        for (path, _) in files.iter().filter(|(path, _)| path.ends_with("b.sh")) {
            fs::set_permissions(work.work().join(path), executable.clone()).unwrap();
        }
        symlink("missing", work.work().join("link")).unwrap();
        let commit = work.commit();
        let store = ObjectStore::open(&work.dir.path().join("store")).unwrap();
        let place = Self {
            work,
            commit,
            store,
            include,
            how,
        };
        for folder in ["base", "layer/.hyprstream", "upper", "kernel", "merged"] {
            fs::create_dir_all(place.at(folder)).unwrap();
        }
        fs::write(place.at("layer/.hyprstream/manifest.json"), "{}").unwrap();
        let prefix = format!("--prefix={}/", place.at("base").display());
        for path in place.work.git(&["ls-files"]).lines() {
            if place.include.matches(path) {
                place.work.git(&["checkout-index", &prefix, "--", path]);
            }
        }
        let overlay = Overlay {
            lowers: vec![place.at("layer"), place.at("base")],
            upper: Some(mount::Upper {
                upper: place.at("upper"),
                work: place.at("kernel"),
            }),
            context: None,
        };
        match mount::overlay(&overlay, &place.at("merged"), "test", how) {
            Ok(()) => Some(place),
            Err(error) => {
                eprintln!("SKIPPED: no overlay can be mounted here: {error}");
                None
            }
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.dir.path().join(name)
    }

    fn shown(&self, path: &str) -> PathBuf {
        self.at("merged").join(path)
    }

    fn stage(&self) -> Result<Staged, CommitError> {
        let upper = Upper {
            folder: &self.at("upper"),
            base: &self.commit,
            include: &self.include,
            user_attributes: self.how.user_attributes,
        };
        stage_upper(&self.work.origin(), &upper, &self.store)
    }

    /// The tree that stock git makes of what is shown.
    fn expected(&self) -> String {
        let index = self.at("index");
        let run = |args: &[&str]| {
            let output = command(&self.at("merged"))
                .arg(format!("--git-dir={}/.git", self.work.work().display()))
                .arg("--work-tree=.")
                .args(args)
                .env("GIT_INDEX_FILE", &index)
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "git {args:?}: {told}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        run(&["read-tree", self.commit.as_str()]);
        run(&["add", "-A", "--", ".", ":!.hyprstream"]);
        let tree = run(&["write-tree"]);
        fs::remove_file(index).unwrap();
        tree
    }

    /// Names and modes of a tree's files, with their blobs.
    fn list(&self, tree: &str) -> String {
        git(&self.work.origin(), &["ls-tree", "-r", tree])
    }

    fn content(&self, staged: &Staged, path: &str) -> String {
        let what = format!("{}:{path}", staged.tree);
        git(&self.work.origin(), &["cat-file", "blob", &what])
    }

    fn commits(&self, staged: &Staged) {
        let author = Author {
            name: "T".into(),
            email: "t@example.org".into(),
        };
        commit::commit(&self.work.origin(), "main", staged, &author, "x").unwrap();
        let told = git(&self.work.origin(), &["fsck", "--strict", "--no-dangling"]);
        assert_eq!(told, "");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.at("merged"), true);
    }
}

const FILES: [(&str, &str); 9] = [
    ("a", "a"),
    ("b.sh", "echo"),
    ("dir/a", "dir a"),
    ("dir/b.sh", "dir b"),
    ("dir/dir/a", "deep"),
    ("dir/dir/new", ""),
    ("other/a", "other"),
    ("other/dir/a", "other deep"),
    ("other/dir/dir/b.sh", "very deep"),
];

#[derive(Clone, Debug)]
enum Edit {
    Write(String, u8),
    Append(String),
    Remove(String),
    Folder(String),
    Move(String, String),
    Mode(String, bool),
    Link(String),
    Touch(String),
}

/// What does not work, such as a file in a file, changes nothing.
fn edit(root: &Path, edit: &Edit) -> io::Result<()> {
    match edit {
        Edit::Write(path, content) => fs::write(root.join(path), [*content]),
        Edit::Append(path) => {
            use std::io::Write as _;
            let mut file = fs::File::options().append(true).open(root.join(path))?;
            file.write_all(b"more")
        }
        Edit::Remove(path) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
        }
        Edit::Folder(path) => fs::create_dir_all(root.join(path)),
        Edit::Move(from, to) => fs::rename(root.join(from), root.join(to)),
        Edit::Mode(path, executable) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path)?.is_file() {
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            Ok(())
        }
        Edit::Link(path) => symlink("nowhere", root.join(path)),
        Edit::Touch(path) => {
            let file = fs::File::options().append(true).open(root.join(path))?;
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        }
    }
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("a"),
        Just("b.sh"),
        Just("dir"),
        Just("dir"),
        Just("other"),
        Just("new"),
        Just("link"),
    ];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => (any_path(), any::<u8>()).prop_map(|(path, content)| Edit::Write(path, content)),
        1 => any_path().prop_map(Edit::Append),
        2 => any_path().prop_map(Edit::Remove),
        1 => any_path().prop_map(Edit::Folder),
        4 => (any_path(), any_path()).prop_map(|(from, to)| Edit::Move(from, to)),
        1 => (any_path(), any::<bool>()).prop_map(|(path, mode)| Edit::Mode(path, mode)),
        1 => any_path().prop_map(Edit::Link),
        1 => any_path().prop_map(Edit::Touch),
    ]
}

fn is_what_git_makes(edits: &[Edit], how: How) {
    let Some(place) = Place::new(&FILES, how) else {
        return;
    };
    let mut done = 0;
    for (at, wanted) in edits.iter().enumerate() {
        done += u32::from(edit(&place.at("merged"), wanted).is_ok());
        // Also of an upper that has been staged before.
        if at == edits.len() / 2 {
            place.stage().unwrap();
        }
    }
    let (staged, expected) = (place.stage().unwrap(), place.expected());
    // The objects of the expected tree are in another repository.
    let wanted = git(&place.work.work(), &["ls-tree", "-r", &expected]);
    assert_eq!(
        place.list(&staged.tree),
        wanted,
        "{done} edits of {edits:?}"
    );
    assert_eq!(staged.tree, expected);
    assert_eq!(staged.objects, []);
    place.commits(&staged);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..Default::default() })]

    #[test]
    fn an_upper_is_committed_as_git_commits_what_is_shown(
        edits in proptest::collection::vec(any_edit(), 1..30),
    ) {
        is_what_git_makes(&edits, How::default());
    }

    #[test]
    fn an_upper_with_attributes_of_users_is_committed_as_well(
        edits in proptest::collection::vec(any_edit(), 1..30),
    ) {
        is_what_git_makes(&edits, How { user_attributes: true, ..How::default() });
    }
}

#[test]
fn moved_folders_are_found_where_they_were() {
    let Some(place) = Place::new(&FILES, How::default()) else {
        return;
    };
    let to = |from: &str, to: &str| fs::rename(place.shown(from), place.shown(to)).unwrap();
    to("dir/dir", "dir/inner");
    to("dir", "top");
    to("top/inner", "other/inner");
    to("other", "top/other");
    // What comes to an old place is new.
    fs::create_dir(place.shown("dir")).unwrap();
    fs::write(place.shown("dir/new"), "new").unwrap();
    let upper = place.at("upper/top/other/inner");
    let note = redirect_bytes(&upper);
    assert!(note.is_some(), "the kernel noted the move");
    let staged = place.stage().unwrap();
    assert_eq!(
        staged.tree,
        place.expected(),
        "{}",
        place.list(&staged.tree)
    );
    place.commits(&staged);
}

/// The length of the note that a folder was moved.
fn redirect_bytes(path: &Path) -> Option<usize> {
    rustix::fs::lgetxattr(path, "trusted.overlay.redirect", &mut [0_u8; 256][..]).ok()
}

#[test]
fn large_files_go_to_lfs_and_what_was_not_written_is_not_read() {
    let old = Pointer::parse(
        b"version https://git-lfs.github.com/spec/v1\n\
          oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n\
          size 12345\n",
    )
    .unwrap();
    let text = old.to_string();
    let files = [
        (".gitattributes", "*.bin filter=lfs -text\n"),
        ("same.bin", &text),
        ("mode.bin", &text),
        ("moved.bin", &text),
        ("sub/small", "small"),
        ("folder/w.bin", &text),
    ];
    let Some(place) = Place::new(&files, How::default()) else {
        return;
    };
    let shown = |path: &str| place.shown(path);
    fs::set_permissions(shown("mode.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(shown("moved.bin"), shown("moved.dat")).unwrap();
    fs::rename(shown("folder"), shown("elsewhere")).unwrap();
    fs::rename(shown("sub/small"), shown("small.bin")).unwrap();
    fs::write(shown("new.bin"), "new").unwrap();
    fs::write(shown("x.safetensors"), vec![1; 11 << 20]).unwrap();
    let staged = place.stage().unwrap();

    for path in ["same.bin", "mode.bin", "moved.dat", "elsewhere/w.bin"] {
        assert_eq!(place.content(&staged, path), text.trim(), "{path}");
    }
    let listed = place.list(&staged.tree);
    let mode = |path: &str| {
        let line = listed.lines().find(|line| line.ends_with(path)).unwrap();
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(mode("\tmode.bin"), "100755");
    assert_eq!(mode("\tsame.bin"), "100644");
    for (path, content) in [("new.bin", &b"new"[..]), ("small.bin", b"small")] {
        let pointer = Pointer::parse(place.content(&staged, path).as_bytes()).unwrap();
        assert_eq!(pointer.size, content.len() as u64, "{path}");
        assert_eq!(fs::read(place.store.path(&pointer.oid)).unwrap(), content);
        assert!(staged.objects.contains(&pointer));
    }
    assert_eq!(staged.objects.len(), 3);
    let rules = place.content(&staged, ".gitattributes");
    for path in ["moved.dat", "x.safetensors"] {
        assert!(rules.contains(path), "{rules}");
    }
    assert!(!rules.contains("w.bin"), "{rules}");
    place.commits(&staged);
}

#[test]
fn a_large_file_that_was_written_with_the_content_it_had_is_no_change() {
    let pointer = "version https://git-lfs.github.com/spec/v1\n\
          oid sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437\n\
          size 3\n";
    let files = [(".gitattributes", "*.bin filter=lfs\n"), ("w.bin", pointer)];
    let Some(place) = Place::new(&files, How::default()) else {
        return;
    };
    fs::write(place.shown("w.bin"), "new").unwrap();
    let staged = place.stage().unwrap();
    assert_eq!(place.content(&staged, "w.bin"), pointer.trim());
    assert_eq!(staged.objects, []);
    assert_eq!(staged.tree, place.work.git(&["rev-parse", "HEAD^{tree}"]));
}

#[test]
fn files_that_the_checkout_does_not_show_stay() {
    let include = Include::new(&["**/a", "link"]).unwrap();
    let Some(place) = Place::showing(&FILES, include, How::default()) else {
        return;
    };
    assert!(!place.shown("dir/b.sh").exists());
    fs::remove_dir_all(place.shown("dir")).unwrap();
    fs::rename(place.shown("other"), place.shown("moved")).unwrap();
    fs::write(place.shown("a"), "changed").unwrap();
    let staged = place.stage().unwrap();
    let listed = place.list(&staged.tree);
    let paths: Vec<&str> = listed
        .lines()
        .map(|l| l.split('\t').nth(1).unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "a",
            "b.sh",
            "dir/b.sh",
            "dir/dir/new",
            "link",
            "moved/a",
            "moved/dir/a",
            "other/dir/dir/b.sh"
        ]
    );
    fs::write(place.shown("b.sh"), "over").unwrap();
    let told = place.stage().unwrap_err().to_string();
    assert!(
        told.contains("b.sh") && told.contains("does not show"),
        "{told}"
    );
}

#[test]
fn what_git_cannot_hold_is_refused_by_name() {
    let Some(place) = Place::new(&FILES, How::default()) else {
        return;
    };
    let refused = |path: &str, word: &str| {
        let told = place.stage().unwrap_err().to_string();
        assert!(told.contains(path) && told.contains(word), "{told}");
        let path = place.shown(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    };
    let _socket = UnixListener::bind(place.shown("socket")).unwrap();
    refused("socket", "neither a file");
    symlink("/etc/passwd", place.shown("out")).unwrap();
    refused("out", "leads out");
    fs::create_dir(place.shown(".git")).unwrap();
    fs::write(place.shown(".git/config"), "x").unwrap();
    refused(".git", "form of .git");
    fs::write(place.shown(".hyprstream/mine"), "x").unwrap();
    fs::remove_file(place.shown(".hyprstream/manifest.json")).unwrap();
    let staged = place.stage().unwrap();
    assert_eq!(
        staged.tree,
        place.expected(),
        "the plugin's folder is no part of it"
    );
}
