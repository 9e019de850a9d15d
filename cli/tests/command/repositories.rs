//! Cloning, changing, committing, merging and pushing.

use crate::support::Place;

#[test]
fn a_clone_is_changed_in_a_worktree_and_pushed_and_git_reads_what_came() {
    let place = Place::new();
    let weights = place.upstream();
    let url = place.url();

    let cloned = place.json(".", &["clone", &url, "--name", "m"]);
    assert_eq!(cloned["commit"], place.git("work", &["rev-parse", "HEAD"]));
    let info = place.json(".", &["info", "m"]);
    assert_eq!(info["missingBytes"], 0);
    assert!(info["bytes"].as_u64().unwrap() > weights.len() as u64);
    assert_eq!(info["tags"][0], "v1");
    assert!(place.ok(".", &["list"]).contains(&url));

    place.ok(".", &["worktree", "add", "-R", "m", "files"]);
    assert_eq!(place.read("files/model.safetensors"), weights);
    let status = place.json("files", &["status"]);
    assert_eq!(status["branch"], "main");
    assert_eq!(status["files"].as_array().unwrap().len(), 0, "{status}");
    assert_eq!(place.git("files", &["status", "--porcelain"]), "");

    // A large file and a small one.
    let adapter: Vec<u8> = weights.iter().rev().copied().collect();
    place.write("files/adapters/00_a.safetensors", &adapter);
    place.write("files/adapters/00_a.config.json", "{\"r\": 1}\n");
    let status = place.json("files", &["status"]);
    assert_eq!(status["files"].as_array().unwrap().len(), 2, "{status}");
    let refused = place.run_in("files", &["commit", "-m", "Nothing"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("hint: hyprstream add"), "{refused:?}");
    place.ok("files/adapters", &["add", "."]);
    place.ok(
        "files",
        &[
            "commit",
            "-m",
            "Add an adapter",
            "--trailer",
            "Reviewed-by=B <b@example.org>",
        ],
    );
    assert_eq!(place.git("files", &["status", "--porcelain"]), "");
    let log = place.json("files", &["log"]);
    assert!(
        log[0]["message"]
            .as_str()
            .unwrap()
            .contains("Reviewed-by: B")
    );
    let diff = place.json("files", &["diff"]);
    assert_eq!(diff[1]["path"], "adapters/00_a.safetensors", "{diff}");
    assert_eq!(diff[1]["bytesAfter"], adapter.len());

    let pushed = place.json("files", &["push"]);
    assert_eq!(pushed["changed"][0], "refs/heads/main");
    assert_eq!(
        place.json("files", &["push"])["changed"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    place.git(".", &["-C", "upstream.git", "fsck", "--strict"]);

    // git and git-lfs of another person read it.
    place.git("work", &["pull", "--quiet", "origin", "main"]);
    assert_eq!(place.read("work/adapters/00_a.safetensors"), adapter);

    // What that person pushes comes back by a pull.
    place.write("work/config.json", "{\"x\": 1}\n");
    place.git(
        "work",
        &["commit", "--quiet", "--all", "--message", "Change"],
    );
    place.git("work", &["push", "--quiet", "origin", "main"]);
    place.ok("files", &["pull"]);
    assert_eq!(place.read("files/config.json"), b"{\"x\": 1}\n");
    // Nothing in this worktree tells git of git-lfs.
    assert_eq!(place.git("files", &["status", "--porcelain"]), "");

    place.ok(".", &["worktree", "remove", "-R", "m", "files"]);
    assert!(!place.path("files").exists());
}

#[test]
fn a_conflict_names_its_files_and_changes_nothing() {
    let place = Place::new();
    place.upstream();
    place.ok(".", &["clone", &place.url(), "--name", "m"]);
    place.ok(".", &["worktree", "add", "-R", "m", "ours"]);
    place.ok(
        ".",
        &["worktree", "add", "-R", "m", "theirs", "main", "-b", "dev"],
    );
    for (folder, text) in [("ours", "{\"a\": 1}\n"), ("theirs", "{\"a\": 2}\n")] {
        place.write(&format!("{folder}/config.json"), text);
        place.ok(folder, &["commit", "--all", "-m", text.trim()]);
    }
    let before = place.git("ours", &["rev-parse", "HEAD"]);
    let ran = place.run_in("ours", &["merge", "dev"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("config.json"), "{ran:?}");
    assert_eq!(place.git("ours", &["rev-parse", "HEAD"]), before);
    assert_eq!(place.git("ours", &["status", "--porcelain"]), "");

    place.write("theirs/more.json", "{}\n");
    place.write("theirs/config.json", "{}\n");
    place.ok("theirs", &["commit", "--all", "-m", "Take it back"]);
    let merged = place.json("ours", &["merge", "dev"]);
    assert_eq!(merged["result"], "merged", "{merged}");
    assert_eq!(place.read("ours/config.json"), b"{\"a\": 1}\n");
    assert_eq!(place.read("ours/more.json"), b"{}\n");

    let ran = place.run(&["remove", "m"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    let ran = place.run(&["branch", "-R", "m", "dev", "--delete"]);
    assert_eq!(ran.code, 4, "a worktree works on it: {ran:?}");
    place.ok(".", &["worktree", "remove", "-R", "m", "ours"]);
    place.ok(".", &["worktree", "remove", "-R", "m", "theirs"]);
    let ran = place.run(&["remove", "m"]);
    assert!(
        ran.code == 4 && ran.err.contains("nobody else has"),
        "{ran:?}"
    );
    place.ok(".", &["remove", "m", "--force"]);
    assert_eq!(place.json(".", &["list"]).as_array().unwrap().len(), 0);
}

#[test]
fn branches_and_tags_are_made_named_and_deleted_without_a_worktree() {
    let place = Place::new();
    place.upstream();
    place.ok(".", &["clone", &place.url(), "--name", "m"]);
    place.ok(".", &["branch", "-R", "m", "dev", "v1"]);
    place.ok(".", &["branch", "-R", "m", "dev", "--rename", "next"]);
    place.ok(".", &["tag", "-R", "m", "v2", "next", "-m", "The second"]);
    let branches = place.json(".", &["branch", "-R", "m"]);
    let names: Vec<_> = branches
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["name"].clone())
        .collect();
    assert_eq!(names, ["main", "next"]);
    let tags = place.json(".", &["tag", "-R", "m"]);
    assert_eq!(
        tags[1]["message"].as_str().map(str::trim),
        Some("The second")
    );
    place.ok(".", &["push", "-R", "m", "next", "--tag", "v2"]);
    assert_eq!(place.git("upstream.git", &["cat-file", "-t", "v2"]), "tag");
    place.ok(".", &["branch", "-R", "m", "next", "--delete"]);
    place.ok(".", &["push", "-R", "m", ":next"]);
    assert_eq!(
        place.git("upstream.git", &["branch", "--format=%(refname:short)"]),
        "main"
    );
}

#[test]
fn errors_say_what_to_do_and_have_codes() {
    let place = Place::new();
    place.upstream();
    let url = place.url();
    let check = |args: &[&str], code: i32, text: &str| {
        let ran = place.run(args);
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert!(ran.err.contains(text), "{args:?}: {ran:?}");
    };
    check(&["info", "nosuch"], 3, "hyprstream list");
    check(&["status"], 2, "worktree add");
    check(&["clone", "nosuch"], 2, "neither a URL nor a folder");
    check(&["clone", "/no/such/folder"], 3, "/no/such/folder");
    check(&["clone", &format!("{url}@nosuch")], 3, "nosuch");
    check(&["chat", "nosuch", "-p", "x"], 3, "hyprstream list");
    check(&["serve", "./work+sql"], 2, "NAME+sql");
    check(&["clone", "http://127.0.0.1:9/m"], 5, "127.0.0.1");
    place.ok(".", &["clone", &format!("{url}@v1"), "--name", "m"]);
    check(&["clone", &url, "--name", "m"], 4, "--name");
    check(&["chat", "m:nosuch", "-p", "x"], 3, "nosuch");
    check(&["pull", "-R", "m"], 2, "tag");
    check(&["chat", &url, "-p", "x"], 2, "follows no branch");
    let status = place.run_in("work", &["status"]);
    assert_eq!(status.code, 2);
    assert!(status.err.contains("git's own"), "{status:?}");
}
