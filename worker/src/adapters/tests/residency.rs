//! Which adapters are in memory.

use super::*;

/// One that has `a`, `b`, `c`, ... of ten bytes each, loaded in this order.
async fn rig(memory_bytes: u64, resident: usize, names: &[&str]) -> Rig {
    let rig = empty(memory_bytes, resident, Duration::from_secs(10));
    load(&rig, names).await;
    rig
}

fn empty(memory_bytes: u64, resident: usize, patience: Duration) -> Rig {
    Rig::new(
        |_| {},
        |root, options| {
            options.follow = Some(root.join("followed"));
            options.limits = limits(memory_bytes, resident);
            options.timing.patience = patience;
        },
    )
}

async fn load(rig: &Rig, names: &[&str]) {
    for name in names {
        rig.files(name, &content(name));
    }
    rig.list("r", names.iter().map(|name| entry(name, name)).collect());
    for name in names {
        rig.becomes(name, "Loaded", Some(&content(name))).await;
    }
    rig.ready().await;
}

fn content(name: &str) -> String {
    format!("{name:>10}")
}

fn resident(rig: &Rig) -> Vec<String> {
    let facts = rig.adapters.facts().resident;
    facts.into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn the_least_recently_used_makes_way_and_comes_back() {
    let rig = rig(20, 9, &["a", "b", "c"]).await;
    assert_eq!(resident(&rig), ["b", "c"]);
    rig.attached(2).await;
    drop(rig.take("b").await.unwrap());
    let taken = rig.take("a").await.unwrap();
    assert!(rig.answers(&taken, &content("a")).await);
    assert_eq!(resident(&rig), ["a", "b"], "c was used before b");
    let told = rig.told("c").unwrap();
    assert_eq!(reason(&told), "Loaded");
    assert!(!told.serving.unwrap().resident);
    rig.attached(2).await;
    assert_eq!(rig.packer.reads(), 4);
}

#[tokio::test]
async fn the_number_of_residents_is_bounded_too() {
    let rig = rig(1000, 1, &["a", "b"]).await;
    assert_eq!(resident(&rig), ["b"]);
    drop(rig.take("a").await.unwrap());
    assert_eq!(resident(&rig), ["a"]);
    assert_eq!(rig.adapters.facts().max_resident, 1);
}

#[tokio::test]
async fn what_a_request_has_is_never_evicted_and_who_waits_is_told_in_the_end() {
    let rig = empty(10, 9, Duration::from_millis(100));
    load(&rig, &["a", "b"]).await;
    let a = rig.take("a").await.unwrap();
    let lost = rig.take("b").await.unwrap_err();
    assert!(
        matches!(&lost, TakeError::Lost { why, .. } if why.contains("in use")),
        "{lost}"
    );
    assert_eq!(resident(&rig), ["a"]);
    assert!(rig.answers(&a, &content("a")).await);
}

#[tokio::test]
async fn who_waits_for_room_gets_it_when_a_request_ends() {
    let rig = rig(10, 9, &["a", "b"]).await;
    let a = rig.take("a").await.unwrap();
    let (b, ()) = tokio::join!(rig.take("b"), async {
        until("b is waited for", || {
            rig.adapters.facts().waiting.get("b").copied()
        })
        .await;
        drop(a);
    });
    assert!(rig.answers(&b.unwrap(), &content("b")).await);
    assert!(rig.adapters.facts().waiting.is_empty());
}

#[tokio::test]
async fn several_who_wait_share_one_load_and_others_do_not_wait() {
    let rig = rig(20, 9, &["a", "b", "c"]).await;
    let reads = rig.packer.reads();
    rig.packer.hold(true);
    let (first, second, ()) = tokio::join!(rig.take("a"), rig.take("a"), async {
        until("both wait", || {
            (rig.adapters.facts().waiting.get("a") == Some(&2)).then_some(())
        })
        .await;
        let c = rig.take("c").await.unwrap();
        assert!(rig.answers(&c, &content("c")).await);
        rig.packer.hold(false);
    });
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.adapter, second.adapter);
    assert_eq!(rig.packer.reads(), reads + 1);
    assert_eq!(rig.adapters.facts().running["a"], 2);
    drop((first, second));
    assert!(rig.adapters.facts().running.is_empty());
}

#[tokio::test]
async fn who_gives_up_does_not_take_it_from_others() {
    let rig = rig(10, 9, &["a", "b"]).await;
    rig.packer.hold(true);
    let gives_up = tokio::time::timeout(Duration::from_millis(20), rig.take("a"));
    assert!(gives_up.await.is_err());
    let (a, ()) = tokio::join!(rig.take("a"), async { rig.packer.hold(false) });
    assert!(rig.answers(&a.unwrap(), &content("a")).await);
}

#[tokio::test]
async fn a_stack_comes_as_a_whole_or_says_why_not() {
    let rig = rig(20, 9, &["a", "b", "c"]).await;
    let stack = rig.take_all(&["a", "c", "a"]).await.unwrap();
    let names: Vec<&str> = stack.iter().map(|taken| taken.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "a"]);
    let never = rig.take_all(&["a", "b", "c"]).await.unwrap_err();
    let expected = TakeError::TooLarge {
        adapters: 3,
        bytes: 30,
        max_adapters: 9,
        max_bytes: 20,
    };
    assert_eq!(never, expected);
    let missing = rig.take_all(&["a", "x", "y"]).await.unwrap_err();
    let TakeError::Missing { names, known } = missing else {
        panic!("x and y are missing")
    };
    assert_eq!(
        (names, known.len()),
        (vec!["x".to_owned(), "y".to_owned()], 3)
    );
    assert!(rig.take_all(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn stacks_that_need_each_others_room_do_not_lock_each_other_out() {
    let rig = rig(20, 9, &["a", "b", "c", "d"]).await;
    for _ in 0..20 {
        let (one, other) =
            tokio::join!(async { rig.take_all(&["a", "b"]).await.map(drop) }, async {
                rig.take_all(&["d", "c"]).await.map(drop)
            },);
        one.unwrap();
        other.unwrap();
    }
}

#[tokio::test]
async fn files_that_changed_are_not_answered_with() {
    let rig = rig(10, 9, &["a", "b"]).await;
    rig.files("a", "other text");
    let lost = rig.take("a").await.unwrap_err();
    assert!(
        matches!(&lost, TakeError::Lost { why, .. } if why.contains("digest")),
        "{lost}"
    );
    rig.becomes("a", "FilesChanged", None).await;
    assert!(matches!(
        rig.take("a").await,
        Err(TakeError::Missing { .. })
    ));
    // Back again, and it is served again.
    rig.files("a", &content("a"));
    rig.becomes("a", "Loaded", Some(&content("a"))).await;
}

#[tokio::test]
async fn files_that_are_gone_are_lost_and_others_live() {
    let rig = rig(10, 9, &["a", "b"]).await;
    fs::remove_dir_all(rig.path("followed/a")).unwrap();
    let lost = rig.take("a").await.unwrap_err();
    assert!(
        matches!(&lost, TakeError::Lost { why, .. } if why.contains("missing")),
        "{lost}"
    );
    let b = rig.take("b").await.unwrap();
    assert!(rig.answers(&b, &content("b")).await);
}

#[tokio::test]
async fn what_is_larger_than_the_memory_is_refused() {
    let rig = rig(10, 9, &["a"]).await;
    rig.files("large", "eleven bytes");
    rig.list("r2", vec![entry("a", "a"), entry("large", "large")]);
    rig.becomes("large", "TooLarge", None).await;
    assert_eq!(resident(&rig), ["a"]);
}

#[tokio::test]
async fn a_replaced_one_serves_until_the_new_one_is_there() {
    let rig = rig(10, 1, &["a"]).await;
    rig.files("new", &content("new"));
    rig.packer.hold(true);
    rig.list("r2", vec![entry("a", "new")]);
    rig.becomes("a", "Loading", Some(&content("a"))).await;
    assert_eq!(resident(&rig), ["a"]);
    rig.packer.hold(false);
    rig.becomes("a", "Loaded", Some(&content("new"))).await;
    assert_eq!(resident(&rig), ["a"], "in the room of the old one");
    rig.attached(1).await;
}
