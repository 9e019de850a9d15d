//! Large files, with git that knows LFS and git that does not.

use std::{fs, io::Read as _, os::unix::fs::PermissionsExt as _};

use hyprstream_git2db::{
    CommitId, Digest,
    handle::{Reset, State, StatusOptions, Target, WorktreeError},
    lfs::Pointer,
    store::ObjectStore,
};

use crate::{
    desk::{Desk, metadata},
    support::git::{command, git},
};

const TRACK: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";

fn pointer(content: &[u8]) -> Pointer {
    Pointer {
        oid: Digest::of(content),
        size: content.len() as u64,
    }
}

/// Bytes that fill several pieces.
fn large(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8 ^ seed).collect()
}

#[test]
fn what_is_staged_of_a_large_file_is_its_pointer_and_the_store_has_it() {
    let desk = Desk::new();
    desk.write(".gitattributes", TRACK);
    let content = large(1, 3_000_000);
    desk.write("a.bin", &content);
    desk.write("empty.bin", "");
    desk.write("small.bin", "x");
    let already = pointer(b"elsewhere").to_string();
    desk.write("pointer.bin", &already);
    let commit = desk.commit("Add");
    let show = |path: &str| git(desk.handle.path(), &["show", &format!("{commit}:{path}")]) + "\n";
    assert_eq!(show("a.bin"), pointer(&content).to_string());
    assert_eq!(show("small.bin"), pointer(b"x").to_string());
    assert_eq!(show("empty.bin"), "\n");
    assert_eq!(show("pointer.bin"), already, "a pointer stays one");
    let stored = fs::read(desk.handle.store().path(&Digest::of(&content))).unwrap();
    assert_eq!(stored, content);
    assert_eq!(desk.read("a.bin"), content, "the file stays");
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    desk.check_objects();
}

#[test]
fn git_lfs_takes_our_commits_for_its_own_and_we_take_its() {
    let desk = Desk::new();
    desk.git(&["lfs", "install", "--local"]);
    desk.write(".gitattributes", TRACK);
    desk.write("ours.bin", large(1, 400_000));
    desk.commit("Ours");
    desk.check_clean();
    desk.git(&["lfs", "fsck", "--pointers"]);
    assert!(desk.git(&["lfs", "ls-files"]).ends_with("ours.bin"));

    let theirs = large(2, 400_000);
    desk.write("theirs.bin", &theirs);
    desk.git(&["add", "-A"]);
    desk.git(&["commit", "-q", "-m", "Theirs"]);
    // Its object lies in git-lfs's own folder, not in our store.
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    let commit = desk.head();
    assert!(desk.handle.load_file(&commit, "theirs.bin").is_err());
    desk.handle.store().insert(&mut theirs.as_slice()).unwrap();
    let mut found = Vec::new();
    let mut reader = desk.handle.load_file(&commit, "theirs.bin").unwrap();
    assert_eq!(
        (reader.size(), reader.pointer()),
        (400_000, Some(&pointer(&theirs)))
    );
    reader.read_to_end(&mut found).unwrap();
    assert_eq!(found, theirs);
}

#[test]
fn switching_writes_contents_out_of_the_store() {
    let desk = Desk::with_lfs();
    desk.write("plain.txt", "before");
    let first = desk.commit("Before");
    desk.write(".gitattributes", TRACK);
    let content = large(3, 1_500_000);
    desk.write("dir/a.bin", &content);
    fs::set_permissions(desk.path("dir/a.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    desk.commit("Large");
    desk.tree.switch(Target::Commit(&first), false).unwrap();
    assert!(!desk.path("dir").exists(), "folders that are empty go");
    desk.check_clean();
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    assert_eq!(desk.read("dir/a.bin"), content);
    let mode = fs::metadata(desk.path("dir/a.bin"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111);
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    desk.check_clean();
}

/// Stock git, to which nothing here says how large files are read.
#[track_caller]
fn clean_without_lfs(desk: &Desk) {
    assert_eq!(desk.git(&["status", "--porcelain"]), "");
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
}

#[test]
fn what_was_just_written_is_clean_to_a_git_without_lfs_after_each_operation() {
    let desk = Desk::new();
    desk.write(".gitattributes", TRACK);
    desk.write("a.bin", large(1, 400_000));
    desk.write("dir/b.bin", "small");
    let first = desk.commit("First");
    clean_without_lfs(&desk);
    desk.write("a.bin", large(2, 400_000));
    let second = desk.commit("Second");
    clean_without_lfs(&desk);
    for commit in [&first, &second, &first] {
        desk.tree.switch(Target::Commit(commit), false).unwrap();
        clean_without_lfs(&desk);
    }
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    desk.write("a.bin", "lost");
    desk.tree.restore(&["a.bin"], None).unwrap();
    clean_without_lfs(&desk);
    desk.tree.reset(&first, Reset::Hard).unwrap();
    clean_without_lfs(&desk);
    desk.write("a.bin", large(2, 400_000));
    desk.tree.add(&["a.bin"]).unwrap();
    desk.tree.unstage(None).unwrap();
    desk.tree.reset(&second, Reset::Mixed).unwrap();
    clean_without_lfs(&desk);
    desk.tree.rename("a.bin", "dir/c.bin").unwrap();
    desk.commit("Move");
    clean_without_lfs(&desk);
    desk.tree.remove(&["dir/c.bin"], false, false).unwrap();
    desk.commit("Remove");
    clean_without_lfs(&desk);
    // An object that comes later.
    let path = desk.handle.store().path(&Digest::of(&large(2, 400_000)));
    let aside = desk.dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    desk.tree.switch(Target::Commit(&second), false).unwrap();
    clean_without_lfs(&desk);
    fs::rename(&aside, &path).unwrap();
    assert_eq!(desk.tree.fill().unwrap(), ["a.bin"]);
    clean_without_lfs(&desk);
}

#[test]
fn a_change_of_the_same_size_right_after_a_large_file_was_staged_is_seen() {
    let desk = Desk::new();
    desk.write(".gitattributes", TRACK);
    for round in 0..3 {
        desk.write("a.bin", large(2 * round, 40_000));
        desk.commit("A file");
        // In place: the inode stays.
        fs::write(desk.path("a.bin"), large(2 * round + 1, 40_000)).unwrap();
        assert_eq!(desk.git(&["status", "--porcelain"]), "M a.bin");
        let found = desk.tree.status(StatusOptions::default()).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[test]
fn a_large_file_of_the_future_delays_nothing() {
    let desk = Desk::with_lfs();
    desk.write(".gitattributes", TRACK);
    desk.write("a.bin", large(1, 40_000));
    let hour = std::time::Duration::from_hours(1);
    let file = fs::File::options().write(true).open(desk.path("a.bin"));
    let then = std::time::SystemTime::now() + hour;
    file.unwrap().set_modified(then).unwrap();
    let began = std::time::Instant::now();
    desk.commit("From tomorrow");
    assert!(began.elapsed() < hour / 60);
    desk.check_clean();
}

#[test]
fn an_object_that_is_missing_leaves_its_pointer_until_it_is_filled_in() {
    let desk = Desk::with_lfs();
    let first = desk.head();
    desk.write(".gitattributes", TRACK);
    let content = large(4, 900_000);
    desk.write("a.bin", &content);
    desk.write("b.bin", "here");
    desk.commit("Large");
    desk.tree.switch(Target::Commit(&first), false).unwrap();
    let missing = pointer(&content);
    let path = desk.handle.store().path(&missing.oid);
    let aside = desk.dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    assert_eq!(desk.read("a.bin"), missing.to_string().as_bytes());
    assert_eq!(desk.read("b.bin"), b"here");
    desk.check_clean();
    assert_eq!(desk.tree.missing_objects().unwrap(), [missing.clone()]);
    assert_eq!(desk.tree.fill().unwrap(), Vec::<String>::new());
    let error = desk.tree.load_file("a.bin").unwrap_err();
    assert_eq!(error.reason(), "MissingLFSObject");

    fs::rename(&aside, &path).unwrap();
    let mut loaded = Vec::new();
    desk.tree
        .load_file("a.bin")
        .unwrap()
        .read_to_end(&mut loaded)
        .unwrap();
    assert_eq!(loaded, content, "read through the pointer");
    assert_eq!(
        desk.tree.unfilled().unwrap(),
        [("a.bin".to_owned(), missing)]
    );
    assert_eq!(desk.tree.fill().unwrap(), ["a.bin"]);
    assert_eq!(desk.read("a.bin"), content);
    assert!(desk.tree.missing_objects().unwrap().is_empty());
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
}

#[test]
fn an_object_that_went_bad_is_never_put_in_place() {
    let desk = Desk::with_lfs();
    let first = desk.head();
    desk.write(".gitattributes", TRACK);
    let content = large(5, 900_000);
    desk.write("a.bin", &content);
    desk.write("z.bin", "whole");
    let commit = desk.commit("Large");
    desk.tree.switch(Target::Commit(&first), false).unwrap();
    let path = desk.handle.store().path(&Digest::of(&content));
    let mut bad = content.clone();
    bad[700_000] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, &bad).unwrap();

    let mut read = Vec::new();
    let mut reader = desk.handle.load_file(&commit, "a.bin").unwrap();
    let error = reader.read_to_end(&mut read).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(!path.exists(), "it is quarantined");

    fs::write(&path, &bad).unwrap();
    desk.tree.switch(Target::Branch("main"), false).unwrap();
    assert_eq!(desk.read("a.bin"), pointer(&content).to_string().as_bytes());
    assert_eq!(desk.read("z.bin"), b"whole");
    assert!(!path.exists(), "it is quarantined");
    desk.check_clean();
}

#[test]
fn a_large_file_is_changed_when_its_content_is() {
    let desk = Desk::with_lfs();
    desk.write(".gitattributes", TRACK);
    let content = large(6, 500_000);
    desk.write("a.bin", &content);
    desk.commit("Large");
    // The same content at another time.
    desk.write("a.bin", &content);
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    desk.git(&["diff-files", "--quiet"]);
    // Another content of the same size, in the same moment or not.
    let mut other = content.clone();
    other[0] ^= 1;
    let before = fs::metadata(desk.path("a.bin"))
        .unwrap()
        .modified()
        .unwrap();
    desk.write("a.bin", &other);
    let file = fs::File::options()
        .write(true)
        .open(desk.path("a.bin"))
        .unwrap();
    file.set_modified(before).unwrap();
    let status = desk.tree.status(StatusOptions::default()).unwrap();
    assert_eq!(status.len(), 1);
    assert!(matches!(
        status[0].state,
        State::Tracked {
            unstaged: Some(_),
            staged: None
        }
    ));
    let error = desk.tree.switch(Target::Commit(&desk.head()), false);
    error.unwrap();
    let commit = desk.commit("Other");
    assert_eq!(
        desk.handle.show(&commit, "a.bin").unwrap().pointer,
        Some(pointer(&other))
    );
}

#[test]
fn files_beyond_the_memory_of_libgit2_are_staged_compared_and_written() {
    let desk = Desk::new();
    let first = desk.head();
    // libgit2 may have 64 MiB at once.
    let content = large(7, 70 << 20);
    desk.write("model.safetensors", &content);
    let commit = desk.commit("Weights");
    assert_eq!(
        git(
            desk.handle.path(),
            &["show", &format!("{commit}:.gitattributes")]
        ),
        "/model.safetensors filter=lfs diff=lfs merge=lfs -text"
    );
    desk.write("model.safetensors", &content);
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    let mut other = content.clone();
    other[69 << 20] ^= 1;
    desk.write("model.safetensors", &other);
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap().len(), 1);
    let error = desk.tree.switch(Target::Commit(&first), false).unwrap_err();
    assert!(
        matches!(error, WorktreeError::LocalChanges { .. }),
        "{error}"
    );
    assert!(
        desk.read("model.safetensors") == other,
        "what nobody committed stays"
    );
    desk.tree.restore(&["model.safetensors"], None).unwrap();
    assert!(desk.read("model.safetensors") == content);
    desk.tree.switch(Target::Commit(&first), false).unwrap();
    // An untracked one in the way is not lost.
    desk.write("model.safetensors", &other);
    let error = desk.tree.switch(Target::Branch("main"), false).unwrap_err();
    assert!(
        matches!(error, WorktreeError::LocalChanges { .. }),
        "{error}"
    );
    desk.tree.switch(Target::Branch("main"), true).unwrap();
    assert!(desk.read("model.safetensors") == content);
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
}

#[test]
fn large_weights_go_to_lfs_without_attributes_and_small_ones_do_not() {
    let desk = Desk::new();
    desk.write(".gitattributes", "*.txt -text");
    desk.write("sub dir/model.safetensors", vec![1; (10 << 20) + 1]);
    desk.write("small.safetensors", "x");
    desk.tree.add(&["sub dir", "small.safetensors"]).unwrap();
    let commit = desk.tree.commit(&metadata("Weights")).unwrap();
    let show = |path: &str| git(desk.handle.path(), &["show", &format!("{commit}:{path}")]);
    assert_eq!(
        show(".gitattributes"),
        "*.txt -text\n/sub[[:space:]]dir/model.safetensors filter=lfs diff=lfs merge=lfs -text"
    );
    assert!(show("sub dir/model.safetensors").starts_with("version https://git-lfs"));
    assert_eq!(show("small.safetensors"), "x");
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
}

#[test]
fn repositories_that_have_no_store_are_left_alone() {
    // A handle elsewhere has registered the filter.
    let desk = Desk::new();
    desk.write(".gitattributes", TRACK);
    desk.write("a.bin", "content");
    desk.commit("Large");
    let store = ObjectStore::open(&desk.dir.path().join("other")).unwrap();
    let plain = desk.dir.path().join("plain");
    git(desk.dir.path(), &["init", "-q", "plain"]);
    fs::write(plain.join(".gitattributes"), TRACK).unwrap();
    fs::write(plain.join("a.bin"), "content").unwrap();
    let repo = git2::Repository::open(&plain).unwrap();
    let mut index = repo.index().unwrap();
    index.add_path("a.bin".as_ref()).unwrap();
    index.write().unwrap();
    let staged = command(&plain).args(["show", ":a.bin"]).output().unwrap();
    assert_eq!(staged.stdout, b"content");
    assert!(store.oids().unwrap().is_empty());
}

#[test]
fn quoted_patterns_and_lines_that_git_ignores_count_for_us_as_for_git() {
    let desk = Desk::with_lfs();
    let attributes = "\"my model.bin\" filter=lfs diff=lfs merge=lfs -text\n!*.neg filter=lfs\n";
    desk.write(".gitattributes", attributes);
    let content = large(4, 400_000);
    desk.write("my model.bin", &content);
    desk.write("plain.txt", "plain");
    let first = desk.commit("Add");
    let show = |commit: &CommitId, path: &str| {
        git(desk.handle.path(), &["show", &format!("{commit}:{path}")]) + "\n"
    };
    let pointer = pointer(&content).to_string();
    assert_eq!(show(&first, "my model.bin"), pointer);
    assert_eq!(show(&first, "plain.txt"), "plain\n");
    let touch = || {
        let file = fs::File::options()
            .append(true)
            .open(desk.path("my model.bin"));
        let then = std::time::SystemTime::now() - std::time::Duration::from_mins(1);
        file.unwrap().set_modified(then).unwrap();
    };
    touch();
    assert_eq!(desk.tree.status(StatusOptions::default()).unwrap(), []);
    desk.write("plain.txt", "other");
    touch();
    let second = desk.commit("More");
    assert_eq!(show(&second, "my model.bin"), pointer);
    desk.check_clean();
    fs::remove_file(desk.path("my model.bin")).unwrap();
    desk.tree.restore(&["my model.bin"], None).unwrap();
    assert!(desk.read("my model.bin") == content);
    desk.check_clean();
    // What only this repository says, and what it says instead.
    let info = desk.handle.path().join("info");
    fs::create_dir_all(&info).unwrap();
    fs::write(
        info.join("attributes"),
        "*.own filter=lfs\n\"my model.bin\" -filter\n",
    )
    .unwrap();
    desk.write("a.own", "of my own");
    let third = desk.commit("Own");
    assert!(show(&third, "a.own").starts_with("version https://git-lfs"));
    desk.check_objects();
}
