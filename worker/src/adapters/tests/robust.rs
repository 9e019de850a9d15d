//! What comes from outside, however wrong.

use super::*;

#[tokio::test]
async fn a_list_that_is_none_changes_nothing() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    rig.becomes("a", "Loaded", Some("one")).await;
    let twice = serde_json::to_value([entry("b", "f1"), entry("b", "f1")]).unwrap();
    let twice = serde_json::json!({"revision": "r", "adapters": twice}).to_string();
    let many: Vec<_> = (0..2049).map(|n| entry(&format!("n{n}"), "f1")).collect();
    let many = serde_json::json!({"revision": "r", "adapters": many}).to_string();
    for (n, garbage) in ["", "{", "[]", "\0\0", &twice, &many]
        .into_iter()
        .enumerate()
    {
        rig.list_text(garbage);
        // What is read after it shows that it was passed.
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(rig.adapters.serves("a"), "{garbage:.20}");
        let revision = format!("after {n}");
        rig.list(&revision, vec![entry("a", "f1")]);
        until("the next list", || {
            (rig.adapters.list().revision.as_deref() == Some(&revision)).then_some(())
        })
        .await;
    }
    fs::remove_file(rig.path("followed/adapters.json")).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(rig.adapters.serves("a"));
    assert_eq!(rig.packer.reads(), 1);
}

#[tokio::test]
async fn an_entry_that_cannot_be_costs_the_others_nothing() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.files("f2", "panic");
    let list = [
        entry("good", "f1"),
        entry("a+b", "f1"),
        entry("out", "../f1"),
        entry("root", "/etc"),
        entry("empty", ""),
        FolderEntry {
            scale: 11.0,
            ..entry("loud", "f1")
        },
        entry("panics", "f2"),
        entry("absent", "f3"),
    ];
    rig.list("r1", list.to_vec());
    rig.becomes("good", "Loaded", Some("one")).await;
    for name in ["a+b", "out", "root", "empty", "loud"] {
        rig.becomes(name, "InvalidEntry", None).await;
    }
    rig.becomes("panics", "InternalError", None).await;
    rig.becomes("absent", "MissingFile", None).await;
    rig.ready().await;
}

#[tokio::test]
async fn two_thousand_adapters_are_listed_loaded_and_forgotten() {
    let rig = Rig::new(
        |_| {},
        |root, options| {
            options.follow = Some(root.join("followed"));
            options.limits = limits(1 << 20, 64);
        },
    );
    rig.files("f", "one");
    let list: Vec<_> = (0..2048).map(|n| entry(&format!("n{n}"), "f")).collect();
    rig.list("r1", list);
    until("the list is there", || {
        (rig.adapters.list().data.len() == 2048).then_some(())
    })
    .await;
    rig.ready().await;
    assert_eq!(rig.adapters.facts().resident.len(), 64);
    let taken = rig.take("n7").await.unwrap();
    assert!(rig.answers(&taken, "one").await);
    rig.list("r2", vec![]);
    until("they are gone", || {
        rig.adapters.list().data.is_empty().then_some(())
    })
    .await;
    drop(taken);
    rig.attached(0).await;
}

#[tokio::test]
async fn an_engine_that_has_stopped_takes_none_and_nothing_hangs() {
    let engine = engine(FakeOptions {
        fatal_token: Some(77),
        ..FakeOptions::default()
    });
    let request = Request {
        prompt: vec![77],
        ..Request::default()
    };
    let mut stream = engine.submit(request).unwrap();
    while stream.next().await.is_some() {}
    engine.died().await;
    let root = tempfile::tempdir().unwrap();
    write_adapter(&root.path().join("one"), "one", "{}");
    let options = Options {
        root: Some(root.path().to_owned()),
        ..Options::default()
    };
    let adapters = Adapters::new(engine, Arc::new(FakePacker::default()), options);
    let refused = adapters
        .load(super::request::load("a", "one"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("stopped"), "{refused}");
}

#[tokio::test]
async fn a_dropped_store_lets_its_engine_end() {
    let rig = Rig::following();
    rig.files("f1", "one");
    rig.list("r1", vec![entry("a", "f1")]);
    rig.becomes("a", "Loaded", Some("one")).await;
    let died = rig.engine.died();
    let Rig {
        adapters, engine, ..
    } = rig;
    drop((adapters, engine));
    died.await;
}
