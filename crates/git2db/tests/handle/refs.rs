//! Branches and tags.

use hyprstream_git2db::handle::{RefError, Target};

use crate::{
    desk::{Desk, metadata},
    support::git::git,
};

/// What `git for-each-ref` says of the branches, from what we say.
fn ours(desk: &Desk) -> Vec<String> {
    desk.handle
        .branches()
        .unwrap()
        .into_iter()
        .map(|branch| {
            let upstream = branch.upstream.map(|upstream| {
                let track = match upstream.ahead_behind {
                    None => "gone".to_owned(),
                    Some((0, 0)) => String::new(),
                    Some((ahead, 0)) => format!("ahead {ahead}"),
                    Some((0, behind)) => format!("behind {behind}"),
                    Some((ahead, behind)) => format!("ahead {ahead}, behind {behind}"),
                };
                format!("{} {track}", upstream.name)
            });
            format!(
                "{}|{}|{}|{}",
                branch.name,
                branch.last.id,
                branch.last.subject(),
                upstream.unwrap_or_default().trim_end()
            )
        })
        .collect()
}

#[track_caller]
fn compare(desk: &Desk) {
    let format = "--format=%(refname:short)|%(objectname)|%(subject)|%(upstream) %(upstream:track,nobracket)";
    let theirs = git(desk.handle.path(), &["for-each-ref", format, "refs/heads"]);
    let theirs: Vec<&str> = theirs.lines().map(str::trim_end).collect();
    assert_eq!(ours(desk), theirs);
    desk.check_objects();
}

#[test]
fn branches_are_made_listed_renamed_and_deleted_as_by_git() {
    let desk = Desk::new();
    let first = desk.head();
    desk.write("a", "1");
    let second = desk.commit("Second");
    desk.handle.create_branch("old", &first, false).unwrap();
    desk.handle
        .create_branch("dev/next", &second, false)
        .unwrap();
    desk.handle.set_upstream("old", Some("main")).unwrap();
    desk.handle.set_upstream("main", Some("dev/next")).unwrap();
    desk.write("a", "2");
    desk.commit("Third");
    compare(&desk);
    let list = desk.handle.branches().unwrap();
    let main = list.iter().find(|branch| branch.name == "main").unwrap();
    assert!(main.is_default);
    let folder = main.worktree.as_ref().unwrap().canonicalize().unwrap();
    assert_eq!(folder, desk.tree.path().canonicalize().unwrap());

    desk.handle.rename_branch("old", "older", false).unwrap();
    desk.handle.rename_branch("main", "trunk", false).unwrap();
    assert_eq!(desk.git(&["branch", "--show-current"]), "trunk");
    assert_eq!(desk.tree.branch().unwrap().as_deref(), Some("trunk"));
    compare(&desk);
    desk.handle.delete_branch("dev/next", false).unwrap();
    compare(&desk);
    desk.handle.set_upstream("trunk", None).unwrap();
    compare(&desk);
    desk.handle.create_branch("older", &second, true).unwrap();
    compare(&desk);
    assert_eq!(desk.handle.branch_tip("older").unwrap(), second);
}

#[test]
fn a_branch_that_would_be_lost_or_is_in_use_stays() {
    let desk = Desk::new();
    let first = desk.head();
    desk.tree
        .switch(Target::NewBranch("topic", None), false)
        .unwrap();
    desk.write("a", "1");
    desk.commit("Only here");
    let used = |error: RefError| assert!(matches!(error, RefError::CheckedOut { .. }), "{error}");
    used(desk.handle.delete_branch("topic", true).unwrap_err());
    used(
        desk.handle
            .create_branch("topic", &first, true)
            .unwrap_err(),
    );
    desk.tree.switch(Target::Commit(&first), false).unwrap();
    let error = desk.handle.delete_branch("main", true).unwrap_err();
    assert!(matches!(error, RefError::DefaultBranch { .. }), "{error}");
    let error = desk.handle.delete_branch("topic", false).unwrap_err();
    assert_eq!(error.reason(), "NotMerged");
    assert!(error.to_string().contains("refs/heads/main"), "{error}");
    desk.handle.delete_branch("topic", true).unwrap();
    let error = desk.handle.delete_branch("topic", true).unwrap_err();
    assert!(matches!(error, RefError::Missing { .. }), "{error}");
}

#[test]
fn names_that_git_refuses_are_refused() {
    let desk = Desk::new();
    let first = desk.head();
    desk.handle.create_branch("dev", &first, false).unwrap();
    for wrong in ["", "-x", "a..b", "a b", "a.lock", "HEAD", "/a", "a/", "a~1"] {
        let error = desk.handle.create_branch(wrong, &first, false).unwrap_err();
        assert_eq!(error.reason(), "ReferenceNotFound", "{wrong:?}: {error}");
        assert!(
            desk.handle.create_tag(wrong, &first, None).is_err(),
            "{wrong:?}"
        );
        assert!(
            desk.handle.rename_branch("dev", wrong, false).is_err(),
            "{wrong:?}"
        );
    }
    for taken in ["dev", "dev/next"] {
        let error = desk.handle.create_branch(taken, &first, false).unwrap_err();
        assert_eq!(error.reason(), "ReferenceExists", "{taken:?}: {error}");
    }
    let error = desk.handle.set_upstream("dev", Some("none")).unwrap_err();
    assert!(matches!(error, RefError::Missing { .. }), "{error}");
}

#[test]
fn tags_are_made_listed_and_deleted_as_by_git() {
    let desk = Desk::new();
    desk.write("a", "1");
    let commit = desk.commit("Tagged");
    desk.handle.create_tag("light", &commit, None).unwrap();
    let said = metadata("Version 1\n\nwith a body").with_trailer("Reviewed-by", "B <b@c>");
    desk.handle.create_tag("v1", &commit, Some(&said)).unwrap();
    desk.git(&["tag", "-a", "theirs", "-m", "By git"]);
    desk.git(&["tag", "tree", "HEAD^{tree}"]);
    let ours: Vec<String> = desk
        .handle
        .tags()
        .unwrap()
        .into_iter()
        .map(|tag| {
            let (kind, message) = match &tag.annotation {
                Some(annotation) => ("tag", annotation.message.clone()),
                None if tag.commit.is_some() => ("commit", String::new()),
                None => ("tree", String::new()),
            };
            let subject = message.lines().next().unwrap_or_default().to_owned();
            let tagger = tag.annotation.and_then(|a| a.tagger).map(|t| t.name);
            format!(
                "{} {kind} {} {subject}",
                tag.name,
                tagger.unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(
        ours,
        [
            "light commit  ",
            "theirs tag A By git",
            "tree tree  ",
            "v1 tag A Version 1"
        ]
    );
    assert_eq!(
        git(desk.handle.path(), &["rev-parse", "v1^{commit}"]),
        commit.as_str()
    );
    assert_eq!(
        git(
            desk.handle.path(),
            &["for-each-ref", "--format=%(contents)", "refs/tags/v1"]
        ),
        "Version 1\n\nwith a body\n\nReviewed-by: B <b@c>"
    );
    let error = desk.handle.create_tag("v1", &commit, None).unwrap_err();
    assert!(matches!(error, RefError::Exists { .. }), "{error}");
    desk.handle.delete_tag("v1").unwrap();
    assert!(desk.handle.delete_tag("v1").is_err());
    assert_eq!(git(desk.handle.path(), &["tag"]), "light\ntheirs\ntree");
    desk.check_objects();
}
