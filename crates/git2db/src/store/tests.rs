use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use std::{collections::HashSet, os::unix::fs::MetadataExt as _, time::Duration};

fn store() -> (tempfile::TempDir, ObjectStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn pointer(content: &[u8]) -> Pointer {
    Pointer {
        oid: Digest::of(content),
        size: content.len() as u64,
    }
}

fn mine(store: &ObjectStore, expected: &Pointer) -> Box<Part> {
    match store.claim(expected, &()).unwrap() {
        Claim::Mine(part) => part,
        Claim::Present => panic!("it is there already"),
    }
}

fn names(path: &Path) -> Vec<String> {
    fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_content_is_stored_once_and_read_only() {
    let (_dir, store) = store();
    let expected = pointer(b"hello");
    assert!(!store.contains(&expected.oid));
    assert!(
        store
            .insert_verified(&mut &b"hello"[..], &expected)
            .unwrap()
    );
    assert!(
        !store
            .insert_verified(&mut &b"hello"[..], &expected)
            .unwrap()
    );
    assert_eq!(store.insert(&mut &b"hello"[..]).unwrap(), expected);
    assert_eq!(store.insert_bytes(b"hello").unwrap(), expected.oid);
    assert_eq!(fs::read(store.path(&expected.oid)).unwrap(), b"hello");
    assert_eq!(
        fs::metadata(store.path(&expected.oid)).unwrap().mode() & 0o7777,
        0o444
    );
    assert_eq!(store.size(&expected.oid).unwrap(), Some(5));
    assert!(names(&store.root().join("tmp")).is_empty());
    let usage = Usage {
        objects: 1,
        bytes: 5,
        unlinked_bytes: 5,
    };
    assert_eq!(store.usage().unwrap(), usage);
}

#[test]
fn wrong_bytes_are_never_visible_and_leave_nothing() {
    let (_dir, store) = store();
    let expected = pointer(b"hello");
    for wrong in [&b"hellO"[..], b"hell", b"hello!", b""] {
        let error = store.insert_verified(&mut &*wrong, &expected).unwrap_err();
        assert_eq!(error.reason(), "DigestMismatch", "{error}");
    }
    assert!(!store.contains(&expected.oid));
    assert!(names(&store.root().join("tmp")).is_empty());
}

#[test]
fn a_part_is_continued_by_the_next_owner() {
    let (_dir, store) = store();
    let expected = pointer(b"hello world");
    let mut part = mine(&store, &expected);
    part.append(b"hello ").unwrap();
    drop(part);
    let mut part = mine(&store, &expected);
    assert_eq!((part.len(), part.missing_bytes()), (6, 5));
    part.append(b"world").unwrap();
    assert!(!store.contains(&expected.oid));
    part.finish().unwrap();
    assert_eq!(fs::read(store.path(&expected.oid)).unwrap(), b"hello world");
    assert!(matches!(
        store.claim(&expected, &()).unwrap(),
        Claim::Present
    ));
    assert!(names(&store.root().join("parts")).is_empty());
}

#[test]
fn a_part_with_wrong_bytes_starts_again() {
    let (_dir, store) = store();
    let expected = pointer(b"hello");
    let mut part = mine(&store, &expected);
    assert!(part.append(b"hello!").is_err());
    part.append(b"hellO").unwrap();
    assert_eq!(part.finish().unwrap_err().reason(), "DigestMismatch");
    let mut part = mine(&store, &expected);
    assert_eq!(part.len(), 0);
    part.append(b"hello").unwrap();
    part.finish().unwrap();
    // A part that is too long, as of another writer, is not used either.
    let other = pointer(b"x");
    fs::write(
        store.root().join("parts").join(other.oid.as_str()),
        "far too long",
    )
    .unwrap();
    assert_eq!(mine(&store, &other).len(), 0);
}

#[test]
fn one_of_many_brings_an_object_and_the_others_wait() {
    let (_dir, store) = store();
    let expected = pointer(b"hello");
    let brought = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                if let Claim::Mine(mut part) = store.claim(&expected, &()).unwrap() {
                    brought.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    part.append(b"hello").unwrap();
                    part.finish().unwrap();
                }
            });
        }
    });
    assert_eq!(brought.into_inner(), 1);
}

#[test]
fn a_lie_about_the_size_is_found() {
    let (_dir, store) = store();
    store.insert_bytes(b"hello").unwrap();
    let lie = Pointer {
        size: 6,
        ..pointer(b"hello")
    };
    assert_eq!(
        store.claim(&lie, &()).unwrap_err().reason(),
        "DigestMismatch"
    );
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_written() {
    let (_dir, store) = store();
    let huge = Pointer {
        size: u64::MAX / 2,
        ..pointer(b"huge")
    };
    assert_eq!(store.claim(&huge, &()).unwrap_err().reason(), "DiskFull");
    assert_eq!(
        store
            .insert_verified(&mut &b""[..], &huge)
            .unwrap_err()
            .reason(),
        "DiskFull"
    );
}

#[test]
fn the_executable_copy_is_another_file() {
    let (_dir, store) = store();
    let oid = store.insert_bytes(b"#!/bin/sh\n").unwrap();
    let path = store.executable(&oid).unwrap();
    assert_eq!(store.executable(&oid).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(
        fs::metadata(store.path(&oid)).unwrap().mode() & 0o7777,
        0o444
    );
    let missing = store.executable(&Digest::of(b"?")).unwrap_err();
    assert_eq!(missing.reason(), "MissingLFSObject");
}

#[test]
fn only_what_nothing_uses_is_collected() {
    let (dir, store) = store();
    let linked = store.insert_bytes(b"linked").unwrap();
    fs::hard_link(store.path(&linked), dir.path().join("link")).unwrap();
    let kept = store.insert_bytes(b"kept").unwrap();
    let idle = store.insert_bytes(b"idle").unwrap();
    let busy = mine(&store, &pointer(b"busy"));
    let mut left = mine(&store, &pointer(b"left"));
    left.append(b"le").unwrap();
    drop(left);
    let keep = HashSet::from([kept.clone()]);
    assert_eq!(
        store.gc(&keep, Duration::from_mins(1)).unwrap(),
        Collected::default()
    );
    assert_eq!(
        store.gc(&keep, Duration::ZERO).unwrap(),
        Collected { files: 2, bytes: 6 }
    );
    assert!(store.contains(&linked) && store.contains(&kept) && !store.contains(&idle));
    drop(busy);
    // The part that was written to meanwhile is still there.
    assert_eq!(names(&store.root().join("parts")).len(), 1);
}

fn go_on(_: u64) -> std::ops::ControlFlow<()> {
    std::ops::ControlFlow::Continue(())
}

/// What a disk does: other bytes under the same name.
fn damage(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn verifying_tells_whole_objects_from_truncated_flipped_and_missing_ones() {
    let (_dir, store) = store();
    let content = vec![7; CHUNK_BYTES * 2 + 3];
    let oid = store.insert_bytes(&content).unwrap();
    let mut pieces = Vec::new();
    let found = store.verify(&oid, &mut |bytes| {
        pieces.push(bytes);
        go_on(bytes)
    });
    let bytes = content.len() as u64;
    assert_eq!(found.unwrap(), Verified::Whole { bytes });
    assert_eq!(pieces, [CHUNK_BYTES as u64, CHUNK_BYTES as u64, 3]);
    let mut flipped = content.clone();
    flipped[CHUNK_BYTES] ^= 1;
    for bad in [&content[..5], &flipped, b""] {
        damage(&store.path(&oid), bad);
        let found = store.verify(&oid, &mut go_on).unwrap();
        assert!(matches!(found, Verified::Damaged { .. }), "{found:?}");
        assert!(store.contains(&oid));
    }
    let missing = store.verify(&Digest::of(b"?"), &mut go_on).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }));
}

#[test]
fn a_verification_ends_when_it_is_told_to() {
    let (_dir, store) = store();
    let oid = store.insert_bytes(b"hello").unwrap();
    let ended = store.verify(&oid, &mut |_| std::ops::ControlFlow::Break(()));
    assert_eq!(ended.unwrap_err().reason(), "Cancelled");
}

#[test]
fn a_damaged_executable_copy_is_found_and_goes_with_its_object() {
    let (_dir, store) = store();
    let oid = store.insert_bytes(b"#!/bin/sh\n").unwrap();
    let copy = store.executable(&oid).unwrap();
    damage(&copy, b"#!/bin/zh\n");
    let found = store.verify(&oid, &mut go_on).unwrap();
    assert!(matches!(found, Verified::Damaged { .. }));
    assert_eq!(store.quarantine(&oid).unwrap().len(), 2);
    assert!(!store.contains(&oid) && !copy.exists());
    // A truncated one is noticed without a verification.
    store.insert_bytes(b"#!/bin/sh\n").unwrap();
    damage(&store.executable(&oid).unwrap(), b"#!");
    assert_eq!(
        fs::read(store.executable(&oid).unwrap()).unwrap(),
        b"#!/bin/sh\n"
    );
}

#[test]
fn what_is_quarantined_is_missing_names_its_links_and_is_collected() {
    let (dir, store) = store();
    let oid = store.insert_bytes(b"hello").unwrap();
    let link = dir.path().join("link");
    fs::hard_link(store.path(&oid), &link).unwrap();
    assert_eq!(store.oids().unwrap(), std::slice::from_ref(&oid));
    let put_aside = store.quarantine(&oid).unwrap();
    assert_eq!(put_aside.len(), 1);
    assert_eq!(put_aside[0].other_links, 1);
    assert_eq!(put_aside[0].inode, fs::metadata(&link).unwrap().ino());
    assert!(!store.contains(&oid) && put_aside[0].path.exists());
    assert_eq!(store.quarantine(&oid).unwrap(), []);
    assert!(store.oids().unwrap().is_empty());
    // The same object comes again, and may go bad again.
    store.insert_bytes(b"hello").unwrap();
    assert_eq!(store.quarantine(&oid).unwrap().len(), 1);
    let collected = store.gc(&HashSet::new(), Duration::ZERO).unwrap();
    assert_eq!(
        collected,
        Collected {
            files: 2,
            bytes: 10
        }
    );
    assert_eq!(fs::read(link).unwrap(), b"hello");
}

#[test]
fn a_truncated_object_is_replaced_by_whoever_brings_it() {
    let (_dir, store) = store();
    let expected = pointer(b"hello");
    store.insert_bytes(b"hello").unwrap();
    damage(&store.path(&expected.oid), b"hel");
    let mut part = mine(&store, &expected);
    part.append(b"hello").unwrap();
    part.finish().unwrap();
    damage(&store.path(&expected.oid), b"hel");
    assert!(
        store
            .insert_verified(&mut &b"hello"[..], &expected)
            .unwrap()
    );
    // The bytes are at hand there, so that also flipped ones are seen.
    damage(&store.path(&expected.oid), b"hellO");
    store.insert_bytes(b"hello").unwrap();
    assert_eq!(fs::read(store.path(&expected.oid)).unwrap(), b"hello");
}
