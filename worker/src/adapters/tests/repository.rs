//! The adapters of the model's repository, and who has a name.

use super::*;

fn with_both(names: &'static [(&'static str, &'static str)]) -> Rig {
    Rig::new(
        |root| {
            let folder = root.join("model/adapters");
            fs::create_dir_all(&folder).unwrap();
            for (stem, content) in names {
                fs::write(folder.join(format!("{stem}.safetensors")), content).unwrap();
                fs::write(folder.join(format!("{stem}.config.json")), "{}").unwrap();
            }
        },
        |root, options| {
            options.repository = Some(root.join("model"));
            options.follow = Some(root.join("followed"));
            options.root = Some(root.to_owned());
        },
    )
}

#[tokio::test]
async fn those_of_the_commit_are_served_by_their_names() {
    let rig = with_both(&[("01_sql", "one"), ("02_tone", "damaged"), ("odd", "x")]);
    let told = rig.becomes("sql", "Loaded", Some("one")).await;
    assert_eq!(told.origin, Origin::Repository);
    assert_eq!(told.source, "adapters/01_sql.safetensors");
    rig.becomes("tone", "DamagedFile", None).await;
    rig.becomes("odd", "NotAnAdapter", None).await;
    assert!(rig.adapters.ready().is_err(), "the list is not there");
    rig.list("r1", vec![]);
    rig.ready().await;
}

#[tokio::test]
async fn an_adapter_resource_takes_the_name_and_gives_it_back() {
    let rig = with_both(&[("01_sql", "repository")]);
    rig.becomes("sql", "Loaded", Some("repository")).await;
    // Until it is there the other one answers.
    rig.list("r1", vec![pending("sql", "f1")]);
    rig.becomes("sql", "Loading", None).await;
    assert!(rig.adapters.serves("sql"));
    rig.files("f1", "followed");
    rig.list("r2", vec![entry("sql", "f1")]);
    rig.becomes("sql", "Loaded", Some("followed")).await;
    let other = rig.told_of("sql", Origin::Repository).unwrap();
    assert!(reason(&other) == "NameTaken" && other.serving.is_none());
    let taken = rig.take("sql").await.unwrap();
    assert!(rig.answers(&taken, "followed").await);
    rig.list("r3", vec![]);
    rig.becomes("sql", "Loaded", Some("repository")).await;
}

#[tokio::test]
async fn an_adapter_resource_that_is_refused_takes_no_name() {
    let rig = with_both(&[("01_sql", "repository")]);
    write_adapter(&rig.path("mine"), "mine", "{}");
    let request = super::request::load("tone", "mine");
    rig.adapters.load(request).await.unwrap();
    rig.becomes("sql", "Loaded", Some("repository")).await;
    // One that the worker refuses, and one that the node cannot have.
    let lost = |name| lacking(name, "f2", "RegistryUnreachable", true);
    rig.files("f1", "damaged");
    for (revision, sql, tone) in [
        ("r1", entry("sql", "f1"), lost("tone")),
        ("r2", lost("sql"), entry("tone", "f1")),
    ] {
        let expected = [&sql, &tone].map(|entry| match entry.state {
            AdapterState::Ready => "DamagedFile",
            _ => "RegistryUnreachable",
        });
        rig.list(revision, vec![sql, tone]);
        rig.becomes("sql", expected[0], None).await;
        rig.becomes("tone", expected[1], None).await;
        for (name, origin, content) in [
            ("sql", Origin::Repository, "repository"),
            ("tone", Origin::Request, "mine"),
        ] {
            let told = rig.told_of(name, origin).unwrap();
            assert_eq!(told.state, LoadState::Loaded, "{revision} {name}");
            let taken = rig.take(name).await.unwrap();
            assert!(rig.answers(&taken, content).await, "{revision} {name}");
        }
    }
    rig.files("f1", "whole");
    rig.becomes("tone", "Loaded", Some("whole")).await;
    let other = rig.told_of("tone", Origin::Request).unwrap();
    assert!(super::reason(&other) == "NameTaken" && other.serving.is_none());
}

#[tokio::test]
async fn the_name_of_the_model_is_refused() {
    let rig = with_both(&[("01_model", "one")]);
    rig.becomes("model", "NameTaken", None).await;
    rig.files("f1", "one");
    rig.list("r1", vec![entry("model", "f1")]);
    until("both are refused", || {
        let followed = rig.told_of("model", Origin::Followed)?;
        (reason(&followed) == "NameTaken").then_some(())
    })
    .await;
    rig.ready().await;
    assert!(!rig.adapters.serves("model"));
}

#[tokio::test]
async fn a_followed_one_takes_the_name_of_a_requested_one() {
    let rig = with_both(&[]);
    write_adapter(&rig.path("mine"), "mine", "{}");
    let request = super::request::load("sql", "mine");
    rig.adapters.load(request).await.unwrap();
    rig.files("f1", "followed");
    rig.list("r1", vec![entry("sql", "f1")]);
    rig.becomes("sql", "Loaded", Some("followed")).await;
    let other = rig.told_of("sql", Origin::Request).unwrap();
    assert_eq!(reason(&other), "NameTaken");
    rig.list("r2", vec![]);
    rig.becomes("sql", "Loaded", Some("mine")).await;
}

#[tokio::test]
async fn a_model_without_adapters_is_ready() {
    let rig = Rig::new(
        |root| fs::create_dir(root.join("model")).unwrap(),
        |root, options| options.repository = Some(root.join("model")),
    );
    rig.ready().await;
    assert!(rig.adapters.list().data.is_empty());
    let none = Adapters::default();
    assert!(none.ready().is_ok() && !none.serves("a") && none.list().data.is_empty());
}
