use std::{collections::BTreeMap, ops::Range};

use safetensors::{Dtype, tensor::TensorView};

use super::*;

/// Bytes of a file with f32 tensors of these names, each `[2, 3]` and filled with its index.
fn weights(names: &[&str]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = (0..names.len())
        .map(|i| (i as f32).to_le_bytes().repeat(6))
        .collect();
    let tensors: BTreeMap<_, _> = names
        .iter()
        .zip(&data)
        .map(|(name, data)| {
            (
                *name,
                TensorView::new(Dtype::F32, vec![2, 3], data).unwrap(),
            )
        })
        .collect();
    safetensors::serialize(tensors, None).unwrap()
}

/// A file with this header and so many bytes after it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[track_caller]
fn refused(files: &[(&str, &[u8])], reason: &str, why: &str) {
    let error = Checkpoint::open(folder(files).path()).unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn tensors_point_into_the_file_and_keep_it_mapped() {
    let dir = folder(&[(SINGLE, &weights(&["a", "b"]))]);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        (checkpoint.bytes(), checkpoint.stored_type()),
        (48, Some(StoredType::F32))
    );
    let tensor = checkpoint.take("b", &[2, 3]).unwrap();
    checkpoint.discard("a");
    let files = checkpoint.finish().unwrap();
    assert!(
        files[0]
            .bytes()
            .as_ptr_range()
            .contains(&tensor.bytes().as_ptr())
    );
    drop(files);
    drop(dir);
    assert_eq!(tensor.to_f32(), [1.0; 6]);
    tensor.release();
    assert_eq!(tensor.to_f32(), [1.0; 6]);
}

#[test]
fn rows_are_a_view() {
    let header = r#"{"x":{"dtype":"BF16","shape":[3,2],"data_offsets":[0,12]}}"#;
    let mut bytes = with_header(header, 0);
    bytes.extend((1..=6u16).flat_map(|i| (0x3f80 + i).to_le_bytes()));
    let dir = folder(&[(SINGLE, &bytes)]);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    let tensor = checkpoint.take("x", &[3, 2]).unwrap();
    let rows = tensor.rows(1..3);
    assert_eq!((rows.shape(), rows.len()), (&[2, 2][..], 4));
    assert_eq!(rows.to_f32(), tensor.to_f32()[2..]);
    assert_eq!(rows.bytes(), &tensor.bytes()[4..]);
}

#[test]
fn damaged_headers_are_refused() {
    let header = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let huge = format!("[{},2]", usize::MAX);
    for (bytes, why) in [
        (b"short".to_vec(), "shorter"),
        (u64::MAX.to_le_bytes().to_vec(), "claims"),
        (with_header("{", 0), "JSON"),
        (with_header("{}", 0), "0 tensors"),
        (
            with_header(&header("F32", "[2]", "[0,8]"), 7),
            "not fully covered",
        ),
        (
            with_header(&header("F32", "[2]", "[0,8]"), 9),
            "not fully covered",
        ),
        (with_header(&header("F32", "[3]", "[0,8]"), 8), ""),
        (with_header(&header("F32", "[2]", "[8,16]"), 16), "offset"),
        (with_header(&header("F32", &huge, "[0,8]"), 8), ""),
        (with_header(&header("I64", "[1]", "[0,8]"), 8), "I64"),
        (
            with_header(&header("F8_E4M3", "[8]", "[0,8]"), 8),
            "F8_E4M3",
        ),
        (
            with_header(&header("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8),
            "9 dimensions",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n".to_vec(),
            "LFS pointer",
        ),
    ] {
        refused(&[(SINGLE, &bytes)], "InvalidWeights", why);
    }
}

#[test]
fn weights_and_index_must_agree() {
    let (a, b) = (weights(&["a"]), weights(&["b"]));
    let index = |map: &str| format!(r#"{{"weight_map":{map}}}"#).into_bytes();
    let good = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
    let dir = folder(&[(INDEX, &good), ("1.safetensors", &a), ("2.safetensors", &b)]);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    let _ = checkpoint.take("a", &[2, 3]).unwrap();
    let _ = checkpoint.take("b", &[2, 3]).unwrap();
    refused(&[], "MissingFile", SINGLE);
    refused(
        &[(INDEX, &good), ("1.safetensors", &a)],
        "MissingFile",
        "2.safetensors",
    );
    for (map, why) in [
        (
            r#"{"a":"1.safetensors","c":"1.safetensors"}"#,
            r#"lacks "c""#,
        ),
        (r#"{"c":"1.safetensors"}"#, r#"holds "a""#),
        (r#"{"a":"../1.safetensors"}"#, "not the name of a file"),
        (r#"{"a":"1.bin"}"#, "not the name of a file"),
        ("{}", "names no tensors"),
    ] {
        refused(
            &[(INDEX, &index(map)), ("1.safetensors", &a)],
            "InvalidWeights",
            why,
        );
    }
}

#[test]
fn tensors_that_are_missing_left_over_or_of_another_shape_are_named() {
    let dir = folder(&[(SINGLE, &weights(&["a", "b"]))]);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    let missing = checkpoint.take("c", &[1]).unwrap_err().to_string();
    assert!(missing.contains(r#""c""#), "{missing}");
    let shape = checkpoint.take("a", &[3, 2]).unwrap_err().to_string();
    assert!(
        shape.contains("[2, 3]") && shape.contains("[3, 2]"),
        "{shape}"
    );
    let left = checkpoint.finish().unwrap_err().to_string();
    assert!(left.contains(r#""b""#), "{left}");
}

#[test]
fn a_fingerprint_tells_weights_apart_and_files_do_not_change_it() {
    let of = |files: &[(&str, &[u8])]| {
        Checkpoint::open(folder(files).path())
            .unwrap()
            .fingerprint()
    };
    let one = of(&[(SINGLE, &weights(&["a", "b"]))]);
    let mut second = weights(&["", "b"]);
    // "b" is the second of its file, so that it has the numbers that it has beside "a".
    second = {
        let dir = folder(&[(SINGLE, &second)]);
        let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
        let b = checkpoint.take("b", &[2, 3]).unwrap();
        let view = TensorView::new(Dtype::F32, vec![2, 3], b.bytes()).unwrap();
        safetensors::serialize([("b", view)], None).unwrap()
    };
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#.as_bytes();
    let two = of(&[
        (INDEX, index),
        ("1.safetensors", &weights(&["a"])),
        ("2.safetensors", &second),
    ]);
    assert_eq!(two, one);
    assert_ne!(of(&[(SINGLE, &weights(&["a", "c"]))]), one);

    // Of a large tensor, its ends and all that is as wide as what lies between two pieces.
    let header = r#"{"x":{"dtype":"U8","shape":[1048576],"data_offsets":[0,1048576]}}"#;
    let header = header.replace("U8", "F32").replace("[1048576]", "[262144]");
    let large = |changed: Range<usize>| {
        let mut bytes = with_header(&header, 1 << 20);
        let data = bytes.len() - (1 << 20);
        bytes[data..][changed].fill(1);
        of(&[(SINGLE, &bytes)])
    };
    let zeros = large(0..0);
    let wide = (1 << 20) / (PIECES - 1);
    for changed in [0..1, (1 << 20) - 1..1 << 20, 300_000..300_000 + wide] {
        assert_ne!(large(changed.clone()), zeros, "{changed:?}");
    }
}
