//! The folder that is followed.

use hyprstream_contract::adapters::{AdapterState, BaseCommitPolicy, FolderEntry};

use super::*;

#[tokio::test]
async fn a_list_is_loaded_replaced_and_unloaded_as_it_changes() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    let told = rig.becomes("a", "Loaded", Some("one")).await;
    assert_eq!(rig.adapters.list().revision.as_deref(), Some("r1"));
    let serving = told.serving.unwrap();
    assert_eq!((serving.sha256, serving.size), (digest("one"), 3));
    assert_eq!(
        (serving.rank, serving.bytes, serving.resident),
        (8, 3, true)
    );
    assert_eq!(told.folder.as_deref(), Some("f1"));
    let old = rig.take("a").await.unwrap();

    rig.files("f2", "two");
    rig.list("r2", vec![entry("a", "f2")]);
    rig.becomes("a", "Loaded", Some("two")).await;
    let new = rig.take("a").await.unwrap();
    assert!(
        rig.answers(&old, "one").await,
        "it keeps what it began with"
    );
    assert!(rig.answers(&new, "two").await);
    rig.attached(2).await;
    drop(old);
    rig.attached(1).await;

    rig.list("r3", vec![]);
    until("it is gone", || rig.told("a").is_none().then_some(())).await;
    assert!(rig.answers(&new, "two").await);
    assert!(matches!(
        rig.take("a").await,
        Err(TakeError::Missing { .. })
    ));
    drop(new);
    rig.attached(0).await;
}

#[tokio::test]
async fn another_scale_needs_no_load() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    rig.becomes("a", "Loaded", Some("one")).await;
    let half = FolderEntry {
        scale: 0.5,
        ..entry("a", "f1")
    };
    rig.list("r2", vec![half]);
    until("the scale changes", || {
        (rig.told("a")?.scale == 0.5).then_some(())
    })
    .await;
    assert_eq!(rig.packer.reads(), 1);
    let taken = rig.take("a").await.unwrap();
    assert!(taken.scale == 0.5 && rig.answers(&taken, "one").await);
    let wanted = Wanted {
        name: "a".to_owned(),
        scale: Some(2.0),
    };
    let taken = rig.adapters.take(&[wanted]).await.unwrap();
    assert!(taken[0].scale == 2.0);
}

#[tokio::test]
async fn an_older_one_serves_while_the_new_one_is_not_there() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    rig.becomes("a", "Loaded", Some("one")).await;
    let with = |state| FolderEntry {
        state,
        scale: 3.0,
        ..entry("a", "f2")
    };
    rig.list("r2", vec![with(AdapterState::Pending)]);
    let told = rig.becomes("a", "Loading", Some("one")).await;
    assert_eq!(told.folder.as_deref(), Some("f2"));
    assert!(told.scale == 1.0, "that of the older one");
    rig.list(
        "r3",
        vec![with(lacking("a", "f2", "NotFound", false).state)],
    );
    rig.becomes("a", "NotFound", Some("one")).await;
    rig.files("f2", "damaged");
    rig.list("r4", vec![with(AdapterState::Ready)]);
    rig.becomes("a", "DamagedFile", Some("one")).await;
    let taken = rig.take("a").await.unwrap();
    assert!(taken.scale == 1.0 && rig.answers(&taken, "one").await);
}

#[tokio::test]
async fn it_is_ready_when_all_of_the_first_list_is_loaded_or_refused() {
    let rig = Rig::following();
    let why = rig.adapters.ready().unwrap_err();
    assert!(why.contains("not there yet"), "{why}");
    rig.list_text("no list");
    rig.files("f1", "one");
    rig.files("f2", "damaged");
    rig.files("f3", "three");
    let lost = lacking("d", "f4", "NotFound", false);
    let list = |c| vec![entry("a", "f1"), entry("b", "f2"), c, lost.clone()];
    rig.list("r1", list(pending("c", "f3")));
    rig.becomes("a", "Loaded", Some("one")).await;
    rig.becomes("b", "DamagedFile", None).await;
    let why = rig.adapters.ready().unwrap_err();
    assert!(why.contains("\"c\""), "{why}");
    rig.list("r2", list(entry("c", "f3")));
    rig.becomes("c", "Loaded", Some("three")).await;
    rig.ready().await;
    // What comes later is not waited for.
    let mut more = list(entry("c", "f3"));
    more.push(pending("e", "f5"));
    rig.list("r3", more);
    rig.becomes("e", "Loading", None).await;
    rig.ready().await;
}

#[tokio::test]
async fn what_a_node_lacks_for_now_is_waited_for() {
    let rig = Rig::following();
    rig.files("f1", "one");
    let list = |b| vec![entry("a", "f1"), b];
    rig.list("r1", list(lacking("b", "f2", "RegistryUnreachable", true)));
    rig.becomes("a", "Loaded", Some("one")).await;
    rig.becomes("b", "RegistryUnreachable", None).await;
    let why = rig.adapters.ready().unwrap_err();
    for part in ["\"b\"", "RegistryUnreachable: m", "first of 1"] {
        assert!(why.contains(part), "{why}");
    }
    rig.list("r1", list(pending("b", "f2")));
    rig.becomes("b", "Loading", None).await;
    assert!(rig.adapters.ready().is_err());
    rig.files("f2", "two");
    rig.list("r1", list(entry("b", "f2")));
    rig.becomes("b", "Loaded", Some("two")).await;
    rig.ready().await;
    // Only the first list is waited for.
    rig.list("r2", list(lacking("b", "f3", "DiskFull", true)));
    rig.becomes("b", "DiskFull", Some("two")).await;
    rig.ready().await;
}

#[tokio::test]
async fn what_a_node_lacks_for_long_is_waited_for_no_longer() {
    let rig = Rig::new(
        |_| {},
        |root, options| {
            options.follow = Some(root.join("followed"));
            options.timing.hindered = Duration::ZERO;
        },
    );
    rig.list(
        "r1",
        vec![lacking("a", "f1", "DiskFull", true), pending("b", "f2")],
    );
    rig.becomes("a", "DiskFull", None).await;
    let why = rig.adapters.ready().unwrap_err();
    assert!(why.contains("\"b\" is the first of 1"), "{why}");
    rig.list("r1", vec![lacking("a", "f1", "DiskFull", true)]);
    rig.ready().await;
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    rig.becomes("a", "Loaded", Some("one")).await;
}

#[tokio::test]
async fn an_empty_list_is_a_list() {
    let rig = Rig::following();
    rig.list("r1", vec![]);
    rig.ready().await;
}

#[tokio::test]
async fn another_base_commit_is_refused_or_told() {
    let rig = Rig::following();
    let other = r#"{"revision": "fedcba9876543210fedcba9876543210fedcba98"}"#;
    write_adapter(&rig.path("followed/f1"), "one", other);
    let with = |base_commit| FolderEntry {
        base_commit,
        ..entry("a", "f1")
    };
    rig.list("r1", vec![with(BaseCommitPolicy::Require)]);
    let told = rig.becomes("a", "BaseCommitMismatch", None).await;
    let LoadState::Failed { message, .. } = told.state else {
        panic!("it failed")
    };
    assert!(message.contains("fedcba98") && message.contains(COMMIT));
    rig.list("r2", vec![with(BaseCommitPolicy::Warn)]);
    let told = rig.becomes("a", "Loaded", Some("one")).await;
    assert!(told.warning.unwrap().contains("fedcba98"));
    rig.list("r3", vec![with(BaseCommitPolicy::Ignore)]);
    until("no warning", || {
        rig.told("a")?.warning.is_none().then_some(())
    })
    .await;
    rig.list("r4", vec![with(BaseCommitPolicy::Require)]);
    rig.becomes("a", "BaseCommitMismatch", None).await;
    rig.attached(0).await;
}

#[tokio::test]
async fn a_failed_one_is_tried_again_when_its_files_change() {
    let rig = Rig::following();
    rig.files("f1", "damaged");
    rig.list("r1", vec![entry("a", "f1"), entry("b", "f2")]);
    rig.becomes("a", "DamagedFile", None).await;
    rig.becomes("b", "MissingFile", None).await;
    rig.files("f1", "whole");
    rig.files("f2", "there");
    rig.becomes("a", "Loaded", Some("whole")).await;
    rig.becomes("b", "Loaded", Some("there")).await;
}

#[tokio::test]
async fn a_load_that_is_overtaken_counts_no_more() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.files("f2", "two");
    rig.packer.hold(true);
    rig.list("r1", vec![entry("a", "f1")]);
    until("it is read", || (rig.packer.reads() == 1).then_some(())).await;
    rig.list("r2", vec![entry("a", "f2")]);
    until("it is listed", || {
        (rig.adapters.list().revision.as_deref() == Some("r2")).then_some(())
    })
    .await;
    rig.packer.hold(false);
    rig.becomes("a", "Loaded", Some("two")).await;
    rig.attached(1).await;
}
