//! What is valid in git and yet no model: the answer is one that an editor understands.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use hyprstream_git2db::{
    CommitId, Credentials, Reference, RemoteError, RemoteUrl, remote,
    repo::{self, Fetch, History},
};
use support::{GitServer, Work, git::git};

fn bare(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let bare = dir.path().join("bare.git");
    repo::init_bare(&bare).unwrap();
    bare
}

fn fetch(
    url: &RemoteUrl,
    bare: &std::path::Path,
    reference: &Reference,
    commit: &CommitId,
) -> Result<(), RemoteError> {
    let fetch = Fetch {
        url,
        reference,
        commit,
        history: History::Whole,
        credentials: &Credentials::None,
    };
    repo::fetch_commit(bare, &fetch, &())
}

#[test]
fn a_branch_takes_the_place_of_those_that_cannot_be_beside_it() {
    let work = Work::new();
    let one = work.write("a", "1").commit();
    let two = work.write("a", "2").commit();
    let bare = work.origin();
    let set = |name: &str, commit| {
        let branch = Reference::Branch(name.to_owned());
        repo::set_reference(&bare, &branch, commit).unwrap();
        assert_eq!(
            repo::resolve_local(&bare, &branch).unwrap().as_ref(),
            Some(commit)
        );
    };
    let gone = |name: &str| {
        let branch = Reference::Branch(name.to_owned());
        assert_eq!(repo::resolve_local(&bare, &branch).unwrap(), None, "{name}");
    };
    set("dev", &one);
    set("dev/next", &two);
    gone("dev");
    set("dev/other", &one);
    git(&bare, &["pack-refs", "--all"]);
    set("dev", &two);
    gone("dev/next");
    gone("dev/other");
    set("dev/a/b", &one);
    set("developer", &one);
    set("dev/a", &two);
    gone("dev/a/b");
    let tag = Reference::Tag("v1/rc".to_owned());
    repo::set_reference(&bare, &Reference::Tag("v1".to_owned()), &one).unwrap();
    repo::set_reference(&bare, &tag, &two).unwrap();
    assert_eq!(
        repo::resolve_local(&bare, &tag).unwrap().as_ref(),
        Some(&two)
    );
    set("developer", &one);
    git(&bare, &["fsck", "--strict"]);
}

#[test]
fn a_tag_of_a_folder_or_a_file_is_named_as_what_it_is() {
    let work = Work::new();
    work.write("a/b", "1").commit();
    work.git(&["tag", "folder", "HEAD:a"]);
    work.git(&["tag", "-a", "-m", "x", "noted", "HEAD:a"]);
    work.git(&["tag", "file", "HEAD:a/b"]);
    work.git(&["push", "-q", "origin", "--tags"]);
    let server = GitServer::start(work.dir.path());
    let url = server.url("origin.git");
    for (tag, kind) in [
        ("folder", "a folder"),
        ("noted", "a folder"),
        ("file", "a file"),
    ] {
        let reference = Reference::Tag(tag.to_owned());
        let commit = remote::resolve(&url, &reference, &Credentials::None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(&url, &bare(&dir), &reference, &commit).unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
        assert!(!error.is_retriable(), "{error}");
        let wanted = format!("tag {tag:?} of {url} names {kind}, not a commit");
        assert!(error.to_string().contains(&wanted), "{error}");
        let error = repo::resolve_local(&work.origin(), &reference).unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{error}");
        assert!(error.to_string().contains("not a commit") && !error.is_retriable());
    }
}

#[test]
fn a_repository_with_sha_256_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    git(
        dir.path(),
        &["init", "-q", "--object-format=sha256", "-b", "main", "work"],
    );
    let work = dir.path().join("work");
    std::fs::write(work.join("a"), "1").unwrap();
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-q", "-m", "x"]);
    git(dir.path(), &["clone", "-q", "--bare", "work", "new.git"]);
    let server = GitServer::start(dir.path());
    let url = server.url("new.git");
    let error = remote::resolve(&url, &Reference::Head, &Credentials::None).unwrap_err();
    assert_eq!(error.reason(), "RefusedContent", "{error}");
    assert!(
        error.to_string().contains("SHA-256") && !error.is_retriable(),
        "{error}"
    );
}

#[test]
fn many_may_make_a_repository_at_once_and_what_a_kill_left_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let bare = dir.path().join(format!("{round}/git"));
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    repo::init_bare(&bare).unwrap();
                });
            }
        });
        let allowed = git(&bare, &["config", "uploadpack.allowAnySHA1InWant"]);
        assert_eq!(allowed.trim(), "true");
    }

    // As killed before the last key was written, with the lock that it held then.
    let bare = dir.path().join("0/git");
    git(
        &bare,
        &["config", "--unset", "uploadpack.allowAnySHA1InWant"],
    );
    std::fs::write(bare.join("config.lock"), "[core]").unwrap();
    repo::init_bare(&bare).unwrap();
    let allowed = git(&bare, &["config", "uploadpack.allowAnySHA1InWant"]);
    assert_eq!(allowed.trim(), "true");
    git(&bare, &["config", "user.name", "nobody holds the lock"]);
}
