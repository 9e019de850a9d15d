//! Load routes.

use super::{
    super::{LoadRequest, RequestError},
    *,
};

pub(super) fn load(name: &str, path: &str) -> LoadRequest {
    LoadRequest {
        name: name.to_owned(),
        path: path.to_owned(),
        in_place: false,
        expected_digest: None,
    }
}

fn rig() -> Rig {
    let rig = Rig::new(
        |root| {
            write_adapter(&root.join("root/one"), "one", "{}");
            write_adapter(&root.join("root/two"), "two", "{}");
            write_adapter(&root.join("root/bad"), "damaged", "{}");
            write_adapter(&root.join("outside"), "outside", "{}");
            std::os::unix::fs::symlink("../outside", root.join("root/link")).unwrap();
            std::os::unix::fs::symlink("one", root.join("root/inside")).unwrap();
            fs::create_dir(root.join("root/half")).unwrap();
            let outside = root.join("outside/adapter_model.safetensors");
            let link = root.join("root/half/adapter_model.safetensors");
            std::os::unix::fs::symlink(outside, link).unwrap();
            fs::write(root.join("root/half/adapter_config.json"), "{}").unwrap();
        },
        |root, options| {
            options.root = Some(root.join("root"));
            options.follow = Some(root.join("followed"));
        },
    );
    rig.files("f1", "followed");
    rig.list("r1", vec![entry("theirs", "f1")]);
    rig
}

#[tokio::test]
async fn what_is_asked_for_is_loaded_replaced_and_unloaded() {
    let rig = rig();
    rig.adapters.load(load("a", "one")).await.unwrap();
    let told = rig.told("a").unwrap();
    assert_eq!(told.origin, Origin::Request);
    assert_eq!(told.serving.unwrap().digest, digest("one"));
    let taken = rig.take("a").await.unwrap();

    let again = rig.adapters.load(load("a", "two")).await.unwrap_err();
    assert_eq!(again, RequestError::AlreadyLoaded("a".to_owned()));
    let in_place = LoadRequest {
        in_place: true,
        expected_digest: Some(digest("two").to_uppercase()),
        ..load("a", "two")
    };
    rig.adapters.load(in_place.clone()).await.unwrap();
    assert_eq!(
        rig.told("a").unwrap().serving.unwrap().digest,
        digest("two")
    );
    assert!(rig.answers(&taken, "one").await);
    let other = LoadRequest {
        expected_digest: Some(digest("one")),
        ..in_place
    };
    let refused = rig.adapters.load(other).await.unwrap_err();
    assert!(matches!(refused, RequestError::OtherDigest { found, .. } if found == digest("two")));
    assert!(rig.adapters.serves("a"));

    rig.adapters.unload("a").await.unwrap();
    let gone = rig.adapters.unload("a").await.unwrap_err();
    assert_eq!(gone, RequestError::NotLoaded("a".to_owned()));
    assert!(rig.told("a").is_none());
    assert!(rig.answers(&taken, "one").await, "who has it keeps it");
}

#[tokio::test]
async fn nothing_outside_the_root_is_loaded() {
    let rig = rig();
    let outside = rig.path("outside").display().to_string();
    for path in [
        "link",
        "../outside",
        &outside,
        "half",
        "absent",
        "../../etc",
        "",
    ] {
        let refused = rig.adapters.load(load("a", path)).await.unwrap_err();
        assert!(
            matches!(refused, RequestError::NotFound(_)),
            "{path}: {refused}"
        );
    }
    let inside = rig.path("root/two").display().to_string();
    rig.adapters.load(load("a", "inside")).await.unwrap();
    rig.adapters.load(load("b", &inside)).await.unwrap();
    let file = "one/adapter_model.safetensors";
    rig.adapters.load(load("c", file)).await.unwrap();
    assert!(["a", "b", "c"].iter().all(|name| rig.adapters.serves(name)));
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let rig = rig();
    rig.becomes("theirs", "Loaded", Some("followed")).await;
    let refused = |name: &'static str, path: &'static str| {
        let loading = rig.adapters.load(load(name, path));
        async { loading.await.unwrap_err() }
    };
    for name in ["", "a+b", "a/b", "model", &"x".repeat(64)] {
        let refused = rig.adapters.load(load(name, "one")).await.unwrap_err();
        assert!(matches!(refused, RequestError::Name { .. }), "{name}");
    }
    let bad = refused("a", "bad").await;
    assert!(matches!(bad, RequestError::Refused { reason, .. } if reason == "DamagedFile"));
    let theirs = refused("theirs", "one").await;
    assert!(matches!(theirs, RequestError::NotOurs { .. }));
    let theirs = rig.adapters.unload("theirs").await.unwrap_err();
    assert!(matches!(theirs, RequestError::NotOurs { .. }));
    assert_eq!(rig.adapters.list().data.len(), 1);
}

#[tokio::test]
async fn without_a_root_nothing_is_loaded() {
    let rig = Rig::following();
    let refused = rig.adapters.load(load("a", "one")).await.unwrap_err();
    assert_eq!(refused, RequestError::NoRoot);
    let refused = Adapters::default()
        .load(load("a", "one"))
        .await
        .unwrap_err();
    assert_eq!(refused, RequestError::NoRoot);
}
