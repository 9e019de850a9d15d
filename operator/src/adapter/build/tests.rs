use hyprstream_contract::{adapters::BaseCommitPolicy, registry::Reference};

use super::*;
use crate::source::SourceKey;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

#[test]
fn a_path_is_a_file_of_tensors_or_a_folder() {
    for (path, weights, config) in [
        (
            "adapters/01_sql.safetensors",
            "adapters/01_sql.safetensors",
            "adapters/01_sql.config.json",
        ),
        ("x.safetensors", "x.safetensors", "x.config.json"),
        (
            "adapter_model.safetensors",
            "adapter_model.safetensors",
            "adapter_config.json",
        ),
        (
            "a/b/adapter_model.safetensors",
            "a/b/adapter_model.safetensors",
            "a/b/adapter_config.json",
        ),
        (".", "adapter_model.safetensors", "adapter_config.json"),
        (
            "out/checkpoint-5",
            "out/checkpoint-5/adapter_model.safetensors",
            "out/checkpoint-5/adapter_config.json",
        ),
        (
            "x.safetensors.d",
            "x.safetensors.d/adapter_model.safetensors",
            "x.safetensors.d/adapter_config.json",
        ),
    ] {
        let files = Files::of(path);
        assert_eq!(
            (files.weights.as_str(), files.config.as_str()),
            (weights, config)
        );
    }
}

#[test]
fn globs_of_files_match_no_others() {
    let files = Files::of("a[1]/{x}*?.safetensors");
    assert_eq!(files.include()[0], "a[[]1[]]/[{]x[}][*][?].safetensors");
}

fn plan(name: &str, path: &str) -> Plan {
    let files = Files::of(path);
    Plan {
        served_name: name.into(),
        scale: 1.0,
        base_commit: BaseCommitPolicy::Warn,
        path: path.into(),
        source: SourceKey {
            namespace: "ns".into(),
            url: "hyprstream://ns/m".into(),
            reference: Reference::Head,
            include: files.include(),
            secret: None,
            interval: std::time::Duration::from_mins(10),
        },
        files,
    }
}

fn mirrored(commit: &str) -> Mirrored {
    Mirrored {
        commit: commit.parse().unwrap(),
        repository: "git/ns/m".into(),
        size_bytes: 1,
    }
}

fn candidate(uid: &str, seconds: i64, name: &str, claim: Claim) -> Candidate {
    Candidate {
        uid: uid.into(),
        name: uid.into(),
        created: Some(Timestamp::from_second(seconds).unwrap()),
        served_name: name.into(),
        claim,
    }
}

fn wants(uid: &str, seconds: i64, name: &str, commit: &str) -> Candidate {
    let entry = entry(&plan(name, "x.safetensors"), &mirrored(commit));
    candidate(uid, seconds, name, Claim::Entry(entry))
}

#[test]
fn of_two_with_a_name_the_older_has_it_whatever_the_order() {
    let old = wants("b", 1, "x", A);
    let new = wants("a", 2, "x", B);
    let even = wants("c", 1, "x", B);
    let all = [new.clone(), even.clone(), old.clone()];
    let list = listed(&all, &Listed::default());
    assert_eq!(list.0.len(), 1);
    assert_eq!(list.of("b").unwrap().commit.as_str(), A);
    assert_eq!(rival(&all, "a").unwrap().uid, "b");
    assert_eq!(rival(&all, "c").unwrap().uid, "b", "the first by name");
    assert_eq!(rival(&all, "b"), None);
    // An older one that cannot be served has it all the same: its edit shall take nobody's place.
    let broken = candidate("z", 0, "x", Claim::Nothing);
    let list = listed(&[old, broken], &Listed::default());
    assert_eq!(list, Listed::default());
}

#[test]
fn what_is_not_known_stays_as_it_is_listed() {
    let a = wants("a", 1, "x", A);
    let before = listed(std::slice::from_ref(&a), &Listed::default());
    let stays = |name: &str, path: &str| {
        let claim = Claim::Stays(Box::new(plan(name, path)));
        candidate("a", 1, name, claim)
    };
    // The next commit is being fetched, or another file.
    assert_eq!(listed(&[stays("x", "x.safetensors")], &before), before);
    assert_eq!(listed(&[stays("x", "y.safetensors")], &before), before);
    // By its new name at once.
    let renamed = listed(&[stays("y", "x.safetensors")], &before);
    assert_eq!(renamed.0[0].1.name, "y");
    // After a start nobody knows whose entries these are: what is the same stays.
    let found = Listed::found(before.list());
    assert_eq!(listed(&[stays("x", "x.safetensors")], &found), before);
    assert_eq!(
        listed(&[stays("x", "y.safetensors")], &found),
        Listed::default()
    );
    let unreadable = candidate("a", 1, "x", Claim::Unreadable);
    assert_eq!(listed(&[unreadable], &found), before);
    // Who is gone leaves nothing to who has the name next.
    let other = candidate(
        "b",
        1,
        "x",
        Claim::Stays(Box::new(plan("x", "x.safetensors"))),
    );
    assert_eq!(listed(&[other], &before), Listed::default());
    assert_eq!(listed(&[], &before), Listed::default());
}

#[test]
fn a_list_is_the_same_in_any_order_and_never_too_long() {
    let all: Vec<Candidate> = (0..MAX_ADAPTERS + 3)
        .map(|i| {
            wants(
                &format!("u{i}"),
                i64::try_from(i).unwrap(),
                &format!("n{i}"),
                A,
            )
        })
        .collect();
    let list = listed(&all, &Listed::default());
    assert_eq!(list.0.len(), MAX_ADAPTERS);
    assert_eq!(list.list().check(), Ok(()));
    assert!(list.of("u0").is_some() && list.of(&format!("u{MAX_ADAPTERS}")).is_none());
    let reversed: Vec<Candidate> = all.into_iter().rev().collect();
    assert_eq!(listed(&reversed, &Listed::default()), list);
}
