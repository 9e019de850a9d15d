//! Remotes, fetches and pushes against stock git, over HTTP and by paths.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::{fs, io::Write, num::NonZeroU32, path::Path};

use hyprstream_git2db::{
    CommitId, Credentials, Depth, Expected, FetchOptions, Observer, PushRef, RemoteError,
    RemoteUrl, RepositoryHandle, Tags,
    remote::RemoteRef,
    store::ObjectStore,
    transport::{GitSource, LocalSource, Want},
};
use support::{GitServer, Response, Server, Work, git::git};

/// A repository of ours beside one of git, which is reached over HTTP or by its path.
struct Pair {
    work: Work,
    server: GitServer,
    ours: RepositoryHandle,
}

impl Pair {
    fn new() -> Self {
        let work = Work::new();
        git(&work.origin(), &["config", "http.receivepack", "true"]);
        git(
            &work.origin(),
            &["config", "uploadpack.allowAnySHA1InWant", "true"],
        );
        let server = GitServer::start(work.dir.path());
        let store = ObjectStore::open(&work.dir.path().join("store")).unwrap();
        let ours = RepositoryHandle::init(&work.dir.path().join("ours.git"), store).unwrap();
        Self { work, server, ours }
    }

    fn urls(&self) -> [RemoteUrl; 2] {
        [
            self.server.url("origin.git"),
            RemoteUrl::local(&self.work.origin()).unwrap(),
        ]
    }

    fn fetch(&self, url: &RemoteUrl, options: &FetchOptions) -> Vec<String> {
        let fetched = self
            .ours
            .fetch_url(url, options, &Credentials::None, &())
            .unwrap();
        assert!(fetched.rejected.is_empty(), "{fetched:?}");
        fetched.updated.into_iter().map(|u| u.name).collect()
    }

    fn push(&self, url: &RemoteUrl, refs: &[PushRef]) -> Result<Vec<String>, String> {
        let pushed = self.ours.push(url, refs, &Credentials::None, &());
        pushed
            .map(|p| p.changed)
            .map_err(|e| format!("{}: {e}", e.reason()))
    }

    #[track_caller]
    fn check(&self) {
        git(self.ours.path(), &["fsck", "--strict"]);
        git(&self.work.origin(), &["fsck", "--strict"]);
    }
}

fn branches() -> FetchOptions {
    FetchOptions {
        refspecs: vec!["+refs/heads/*:refs/remotes/origin/*".parse().unwrap()],
        ..FetchOptions::default()
    }
}

fn count(repo: &Path, of: &str) -> usize {
    git(repo, &["rev-list", "--count", of]).parse().unwrap()
}

#[test]
fn remotes_are_those_of_git_and_hold_no_credentials() {
    let pair = Pair::new();
    let [url, path] = pair.urls();
    pair.ours.add_remote("origin", &url).unwrap();
    assert_eq!(
        pair.ours.add_remote("origin", &url).unwrap_err().reason(),
        "NameTaken"
    );
    assert_eq!(
        pair.ours.add_remote("a b", &url).unwrap_err().reason(),
        "InvalidName"
    );
    assert_eq!(
        git(pair.ours.path(), &["remote", "get-url", "origin"]),
        url.as_str()
    );
    pair.work.write("a", "1").commit();
    let fetched = pair
        .ours
        .fetch("origin", &FetchOptions::default(), &Credentials::None, &());
    assert_eq!(fetched.unwrap().updated[0].name, "refs/remotes/origin/main");
    pair.ours.rename_remote("origin", "up").unwrap();
    assert_eq!(count(pair.ours.path(), "up/main"), 1);
    pair.ours.set_remote_url("up", &path).unwrap();
    assert_eq!(pair.ours.remote("up").unwrap().url.unwrap(), path);
    git(
        pair.ours.path(),
        &["remote", "add", "bad", "https://u:hunter2@host/a"],
    );
    let bad = pair.ours.remote("bad").unwrap();
    assert!(bad.url.is_err() && !format!("{bad:?}").contains("hunter2"));
    let error = pair
        .ours
        .fetch("bad", &FetchOptions::default(), &Credentials::None, &());
    assert_eq!(error.unwrap_err().reason(), "InvalidURL");
    pair.ours.remove_remote("up").unwrap();
    assert_eq!(
        pair.ours.remove_remote("up").unwrap_err().reason(),
        "RemoteNotFound"
    );
    assert_eq!(git(pair.ours.path(), &["for-each-ref", "refs/remotes"]), "");
    assert_eq!(pair.ours.remotes().unwrap().len(), 1);
    pair.check();
}

#[test]
fn a_fetch_brings_branches_and_their_tags_and_prunes() {
    for at in 0..2 {
        let pair = Pair::new();
        let url = &pair.urls()[at];
        pair.work.write("a", "1").commit();
        pair.work.git(&["tag", "-a", "-m", "x", "v1"]);
        pair.work.git(&["tag", "light"]);
        pair.work.git(&["checkout", "-q", "-b", "dev/one"]);
        pair.work.write("a", "2").commit();
        pair.work
            .git(&["tag", "-a", "-m", "x", "elsewhere", "HEAD:a"]);
        pair.work.git(&["push", "-q", "origin", "--tags"]);
        let mut updated = pair.fetch(url, &branches());
        updated.sort();
        // The tagged file is here, so that its tag comes along.
        let tags = ["elsewhere", "light", "v1"].map(|tag| format!("refs/tags/{tag}"));
        let tips = ["dev/one", "main"].map(|branch| format!("refs/remotes/origin/{branch}"));
        assert_eq!(updated, [&tips[..], &tags[..]].concat());
        assert!(pair.fetch(url, &branches()).is_empty());
        pair.work.git(&["push", "-q", "origin", ":dev/one"]);
        pair.work.git(&["checkout", "-q", "--detach"]);
        pair.work.git(&["branch", "-D", "dev/one"]);
        pair.work.git(&["checkout", "-q", "-b", "dev"]);
        pair.work.write("a", "3").commit();
        let prune = FetchOptions {
            prune: true,
            tags: Tags::None,
            ..branches()
        };
        assert_eq!(
            pair.fetch(url, &prune),
            ["refs/remotes/origin/dev/one", "refs/remotes/origin/dev"]
        );
        pair.check();
    }
}

#[test]
fn a_branch_that_is_no_fast_forward_changes_by_force_alone() {
    let pair = Pair::new();
    let url = &pair.urls()[0];
    pair.work.write("a", "1").commit();
    let mut options = FetchOptions {
        refspecs: vec!["refs/heads/main:refs/heads/main".parse().unwrap()],
        ..FetchOptions::default()
    };
    pair.fetch(url, &options);
    pair.work.git(&["commit", "-q", "--amend", "-m", "other"]);
    pair.work.git(&["push", "-qf", "origin", "HEAD"]);
    let fetched = pair
        .ours
        .fetch_url(url, &options, &Credentials::None, &())
        .unwrap();
    assert_eq!(fetched.rejected[0].0, "refs/heads/main");
    options.refspecs = vec!["+refs/heads/main:refs/heads/main".parse().unwrap()];
    assert_eq!(pair.fetch(url, &options), ["refs/heads/main"]);
    let tree = pair.work.dir.path().join("tree");
    git(
        pair.ours.path(),
        &["worktree", "add", "-q", tree.to_str().unwrap(), "main"],
    );
    pair.work.write("a", "2").commit();
    let fetched = pair
        .ours
        .fetch_url(url, &options, &Credentials::None, &())
        .unwrap();
    assert_eq!(fetched.rejected[0].1, "it is checked out");
    pair.check();
}

#[test]
fn a_history_is_cut_deepened_and_made_whole_over_http_and_by_path() {
    for at in 0..2 {
        let pair = Pair::new();
        let url = &pair.urls()[at];
        for n in 0..6 {
            pair.work.write("a", n.to_string()).commit();
        }
        let depth = |depth| FetchOptions {
            depth,
            ..branches()
        };
        let some = |n| depth(Depth::Commits(NonZeroU32::new(n).unwrap()));
        pair.fetch(url, &some(2));
        assert_eq!(count(pair.ours.path(), "origin/main"), 2);
        pair.check();
        pair.work.write("a", "new").commit();
        pair.fetch(url, &depth(Depth::AsIs));
        assert_eq!(count(pair.ours.path(), "origin/main"), 3, "way {at}");
        pair.check();
        pair.fetch(url, &some(5));
        assert_eq!(count(pair.ours.path(), "origin/main"), 5);
        pair.check();
        pair.fetch(url, &depth(Depth::Whole));
        assert_eq!(count(pair.ours.path(), "origin/main"), 7);
        assert!(!pair.ours.path().join("shallow").exists());
        pair.check();
    }
}

#[test]
fn a_shallow_repository_is_read_by_its_path() {
    let pair = Pair::new();
    for n in 0..4 {
        pair.work.write("a", n.to_string()).commit();
    }
    let cut = pair.work.dir.path().join("cut.git");
    let from = format!("file://{}", pair.work.origin().display());
    git(
        pair.work.dir.path(),
        &["clone", "-q", "--bare", "--depth=2", &from, "cut.git"],
    );
    pair.fetch(&RemoteUrl::local(&cut).unwrap(), &branches());
    assert_eq!(count(pair.ours.path(), "origin/main"), 2);
    pair.check();
}

#[test]
fn a_damaged_source_changes_no_ref() {
    let pair = Pair::new();
    pair.work.write("a", "1").write("b", "2").commit();
    let blob = pair.work.git(&["rev-parse", "HEAD:b"]);
    fs::remove_file(
        pair.work
            .origin()
            .join("objects")
            .join(&blob[..2])
            .join(&blob[2..]),
    )
    .unwrap();
    let source = LocalSource::open(&pair.work.origin()).unwrap();
    let url = &pair.urls()[1];
    let error = pair
        .ours
        .fetch_from(&source, url, &branches(), &())
        .unwrap_err();
    assert!(error.to_string().contains("object"), "{error}");
    assert_eq!(git(pair.ours.path(), &["for-each-ref"]), "");
}

/// A peer that does not send what it should.
struct Liar {
    honest: LocalSource,
    lie: Lie,
}

#[derive(Clone, Copy, Debug)]
enum Lie {
    /// A byte of the pack is another.
    Byte(usize),
    /// The pack ends early.
    Short(usize),
    /// It sends another commit than it names.
    Other,
    /// It says that the history ends where it does not.
    Refs,
}

impl GitSource for Liar {
    fn refs(&self, observer: &dyn Observer) -> Result<Vec<RemoteRef>, RemoteError> {
        let mut refs = self.honest.refs(observer)?;
        if matches!(self.lie, Lie::Refs) {
            for found in &mut refs {
                found.commit = "1".repeat(40).parse().unwrap();
            }
        }
        Ok(refs)
    }

    fn pack(
        &self,
        want: &Want,
        sink: &mut dyn Write,
        observer: &dyn Observer,
    ) -> Result<Vec<CommitId>, RemoteError> {
        let mut want = want.clone();
        if matches!(self.lie, Lie::Other | Lie::Refs) {
            let refs = self.honest.refs(observer)?;
            let other = refs.iter().find(|r| r.name.ends_with("/other")).unwrap();
            want.commits = vec![other.commit.clone()];
        }
        let mut pack = Vec::new();
        let boundary = self.honest.pack(&want, &mut pack, observer)?;
        match self.lie {
            Lie::Byte(at) => {
                let at = at % pack.len();
                pack[at] ^= 1;
            }
            Lie::Short(by) => pack.truncate(pack.len() - by),
            Lie::Other | Lie::Refs => {}
        }
        sink.write_all(&pack).map_err(|e| RemoteError::Local {
            detail: e.to_string(),
        })?;
        Ok(boundary)
    }
}

#[test]
fn a_peer_that_sends_something_else_changes_no_ref_and_an_honest_one_is_a_remote() {
    let pair = Pair::new();
    pair.work.write("a", "1").commit();
    pair.work.git(&["checkout", "-q", "--orphan", "other"]);
    pair.work.write("b", "2").commit();
    let url = RemoteUrl::parse("https://peer.example.org/a").unwrap();
    let only_main = FetchOptions {
        refspecs: vec!["refs/heads/main:refs/heads/main".parse().unwrap()],
        ..FetchOptions::default()
    };
    let honest = LocalSource::open(&pair.work.origin()).unwrap();
    let bytes = (0..600).step_by(13).map(Lie::Byte);
    let lies = bytes.chain([Lie::Short(1), Lie::Short(30), Lie::Other, Lie::Refs]);
    for lie in lies {
        let liar = Liar {
            honest: honest.clone(),
            lie,
        };
        let error = pair
            .ours
            .fetch_from(&liar, &url, &only_main, &())
            .unwrap_err();
        assert_eq!(error.reason(), "UpstreamError", "{lie:?}: {error}");
        assert_eq!(git(pair.ours.path(), &["for-each-ref"]), "", "{lie:?}");
        git(pair.ours.path(), &["fsck", "--strict"]);
    }
    let fetched = pair
        .ours
        .fetch_from(&honest, &url, &only_main, &())
        .unwrap();
    assert_eq!(fetched.updated.len(), 1);
    pair.check();
}

#[test]
fn several_refs_are_pushed_deleted_and_refused_together() {
    for at in 0..2 {
        let pair = Pair::new();
        let url = &pair.urls()[at];
        let one = pair.work.write("a", "1").commit();
        let two = pair.work.write("a", "2").commit();
        pair.fetch(url, &branches());
        git(pair.ours.path(), &["branch", "dev", one.as_str()]);
        git(
            pair.ours.path(),
            &["tag", "-a", "-m", "x", "v1", two.as_str()],
        );
        let refs = [
            PushRef::branch("dev"),
            PushRef::tag("v1"),
            PushRef::parse("dev:other/name"),
        ];
        let pushed = pair.push(url, &refs).unwrap();
        assert_eq!(
            pushed,
            ["refs/heads/dev", "refs/tags/v1", "refs/heads/other/name"]
        );
        assert!(pair.push(url, &refs).unwrap().is_empty());
        let at_origin = |name: &str| git(&pair.work.origin(), &["rev-parse", name]);
        assert_eq!(at_origin("other/name"), one.as_str());
        assert_eq!(git(&pair.work.origin(), &["cat-file", "-t", "v1"]), "tag");

        // One that may not change keeps all others from changing.
        let refs = [PushRef::parse("dev:fresh"), PushRef::parse("dev:main")];
        let error = pair.push(url, &refs).unwrap_err();
        assert!(
            error.contains("Rejected") && error.contains("does not have"),
            "{error}"
        );
        assert_eq!(git(&pair.work.origin(), &["branch", "--list", "fresh"]), "");
        let tag = format!("{one}:refs/tags/v1");
        assert!(
            pair.push(url, &[PushRef::parse(&tag)])
                .unwrap_err()
                .contains("something else")
        );

        // By force, if it is as expected.
        let forced = PushRef::parse("+dev:main");
        let wrong = forced.clone().expecting(Expected::Is(one.clone()));
        assert!(
            pair.push(url, &[wrong])
                .unwrap_err()
                .contains("not what was expected")
        );
        let absent = forced.clone().expecting(Expected::Absent);
        assert!(
            pair.push(url, &[absent])
                .unwrap_err()
                .contains("not what was expected")
        );
        let right = forced.expecting(Expected::Is(two.clone()));
        assert_eq!(pair.push(url, &[right]).unwrap(), ["refs/heads/main"]);
        assert_eq!(at_origin("main"), one.as_str());

        let delete = [
            PushRef::delete("refs/heads/other/name"),
            PushRef::parse(":dev"),
        ];
        assert_eq!(pair.push(url, &delete).unwrap().len(), 2);
        assert!(
            pair.push(url, &delete)
                .unwrap_err()
                .contains("cannot be deleted")
        );
        assert_eq!(git(&pair.work.origin(), &["branch", "--list", "dev"]), "");
        let missing = pair.push(url, &[PushRef::branch("nowhere")]).unwrap_err();
        assert!(missing.contains("ReferenceNotFound"), "{missing}");
        pair.check();
    }
}

#[test]
fn what_a_servers_hook_refuses_is_told_beside_what_it_took() {
    let pair = Pair::new();
    let url = &pair.urls()[0];
    pair.work.write("a", "1").commit();
    pair.fetch(url, &branches());
    git(pair.ours.path(), &["branch", "good", "origin/main"]);
    git(pair.ours.path(), &["branch", "bad", "origin/main"]);
    let hook = pair.work.origin().join("hooks/update");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\n[ \"$1\" != refs/heads/bad ]\n").unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(&hook, mode).unwrap();
    let error = pair
        .push(url, &[PushRef::branch("good"), PushRef::branch("bad")])
        .unwrap_err();
    assert!(
        error.contains("\"refs/heads/bad\"") && error.contains("but took refs/heads/good"),
        "{error}"
    );
    pair.check();
}

#[test]
fn a_pushed_commit_must_be_known_by_its_remote_counterpart() {
    let pair = Pair::new();
    let url = &pair.urls()[0];
    pair.work.write("a", "1").commit();
    pair.fetch(url, &branches());
    git(pair.ours.path(), &["branch", "main", "origin/main"]);
    let newer: CommitId = pair.work.write("a", "2").commit();
    let tree = git(pair.ours.path(), &["rev-parse", "main^{tree}"]);
    let ours = git(
        pair.ours.path(),
        &["commit-tree", "-m", "x", "-p", "main", &tree],
    );
    git(pair.ours.path(), &["update-ref", "refs/heads/main", &ours]);
    let error = pair.push(url, &[PushRef::branch("main")]).unwrap_err();
    assert!(error.contains("fetch first"), "{error}");
    assert_eq!(
        git(&pair.work.origin(), &["rev-parse", "main"]),
        newer.as_str()
    );
}

#[test]
fn a_server_that_withholds_a_file_changes_no_ref() {
    let pair = Pair::new();
    pair.work.write("a", "1").write("b", "2").commit();
    let blob = pair.work.git(&["rev-parse", "HEAD:b"]);
    let root = pair.work.dir.path().to_owned();
    // Its pack is one of a repository of ours that lacks the file.
    let tip = pair.work.git(&["rev-parse", "HEAD"]);
    let objects = pair
        .work
        .git(&["rev-list", "--objects", "--no-object-names", "HEAD"]);
    let kept: Vec<_> = objects.lines().filter(|id| **id != blob).collect();
    fs::write(root.join("kept"), kept.join("\n") + "\n").unwrap();
    let packed = std::process::Command::new("git")
        .current_dir(pair.work.work())
        .args(["pack-objects", "--stdout", "-q"])
        .stdin(fs::File::open(root.join("kept")).unwrap())
        .output()
        .unwrap();
    assert!(packed.status.success() && tip.len() == 40);
    let server = Server::start(move |request| {
        if !request.path.ends_with("git-upload-pack") {
            return support::git::backend(&root, request);
        }
        let mut body = b"0008NAK\n".to_vec();
        for piece in packed.stdout.chunks(900) {
            body.extend(format!("{:04x}\x01", piece.len() + 5).as_bytes());
            body.extend(piece);
        }
        body.extend(b"0000");
        let kind = "application/x-git-upload-pack-result";
        Response::new(200).header("Content-Type", kind).body(body)
    });
    let url = RemoteUrl::parse(&server.url("/origin.git")).unwrap();
    let fetched = pair
        .ours
        .fetch_url(&url, &branches(), &Credentials::None, &());
    let error = fetched.unwrap_err();
    assert!(error.to_string().contains(&blob), "{error}");
    assert_eq!(git(pair.ours.path(), &["for-each-ref"]), "");
}
