use std::{fs, io::Write as _};

use serde_json::Map;

use sha2::Digest as _;

use super::*;
use crate::{job::Loss, render::tests::files};

/// Reads one file of this content.
fn read_bytes(
    content: &[u8],
    template: Option<&str>,
    method: Method,
    max_bad: f64,
) -> Result<(Samples, Report), DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, content).unwrap();
    read_path(&path, folder.path(), template, method, max_bad)
}

fn read_path(
    path: &Path,
    scratch: &Path,
    template: Option<&str>,
    method: Method,
    max_bad: f64,
) -> Result<(Samples, Report), DataError> {
    let files = files(template);
    let renderer = Renderer::new(&files, 300, Loss::Assistant, 200, &Map::new(), None).unwrap();
    let source = Source {
        path,
        apart: &[],
        method,
        max_bad,
        scratch,
        control: &Control::default(),
    };
    read(source, &renderer)
}

const CHAT: &str =
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;

#[test]
fn every_form_is_understood() {
    for (line, method) in [
        (CHAT, Method::Sft),
        (r#"{"prompt":"a","completion":"b"}"#, Method::Sft),
        (
            r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]}"#,
            Method::Sft,
        ),
        (r#"{"text":"abc"}"#, Method::Sft),
        (
            r#"{"instruction":"a","input":"","output":"b"}"#,
            Method::Sft,
        ),
        (r#"{"instruction":"a","output":"b"}"#, Method::Sft),
        (
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
            Method::Sft,
        ),
        (r#"{"input_ids":[1,2,3]}"#, Method::Sft),
        (r#"{"input_ids":[1,2,3],"labels":[-100,2,3]}"#, Method::Sft),
        (r#"{"prompt":"a","chosen":"b","rejected":"c"}"#, Method::Dpo),
        (
            r#"{"prompt":[{"role":"user","content":"a"}],"chosen":[{"role":"assistant","content":"b"}],"rejected":[{"role":"assistant","content":"c"}]}"#,
            Method::Dpo,
        ),
        (
            r#"{"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"rejected":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}]}"#,
            Method::Dpo,
        ),
        (
            r#"{"input":{"messages":[{"role":"user","content":"a"}]},"preferred_output":[{"role":"assistant","content":"b"}],"non_preferred_output":[{"role":"assistant","content":"c"}]}"#,
            Method::Dpo,
        ),
    ] {
        let read = read_bytes(line.as_bytes(), Some("llama3"), method, 0.0);
        let (samples, report) = read.unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(
            (samples.len(), report.records, report.bad),
            (1, 1, 0),
            "{line}"
        );
        let answer = samples.read(0).unwrap().pop().unwrap();
        assert!(answer.targets() > 0);
    }
}

#[test]
fn forms_that_do_not_fit_are_refused_with_what_to_do() {
    for (line, method, expected) in [
        (
            r#"{"prompt":"a","completion":"b","label":true}"#,
            Method::Sft,
            "KTO",
        ),
        (
            r#"{"prompt":"a","chosen":"b","rejected":"c"}"#,
            Method::Sft,
            "method to dpo",
        ),
        (CHAT, Method::Dpo, "method to sft"),
        (
            r#"{"question":"a","answer":"b"}"#,
            Method::Sft,
            "columns question, answer are not understood: one of messages",
        ),
        ("[{\"text\":\"a\"}]", Method::Sft, "one JSON array"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            Method::Sft,
            "git-lfs pointer",
        ),
        ("", Method::Sft, "no sample is left of 0 records"),
    ] {
        let error = read_bytes(line.as_bytes(), Some("llama3"), method, 1.0).unwrap_err();
        assert!(error.to_string().contains(expected), "{line}: {error}");
    }
    let error = read_bytes(CHAT.as_bytes(), None, Method::Sft, 1.0).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
}

#[test]
fn texts_that_are_joined_past_a_template_are_told_of() {
    let text = r#"{"prompt":"a","completion":"b"}"#;
    let lists = r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]}"#;
    let pair = r#"{"prompt":"a","chosen":"b","rejected":"c"}"#;
    for (line, template, method, expected) in [
        (text, Some("llama3"), Method::Sft, 1),
        (pair, Some("llama3"), Method::Dpo, 1),
        (text, None, Method::Sft, 0),
        (lists, Some("llama3"), Method::Sft, 0),
        (r#"{"text":"a"}"#, Some("llama3"), Method::Sft, 0),
    ] {
        let (_, report) = read_bytes(line.as_bytes(), template, method, 0.0).unwrap();
        assert_eq!(report.joined, expected, "{line}");
        assert_eq!(report.joined_advice().is_some(), expected > 0);
    }
}

#[test]
fn bad_lines_are_counted_and_named_and_too_many_fail() {
    let mut lines = vec![CHAT.to_owned(); 20];
    lines[3] = "{broken".to_owned();
    lines[5] = String::new();
    lines[7] = r#"{"text":"another form"}"#.to_owned();
    lines[9] = r#"{"messages":[{"role":"user","content":"a"}],"id":7}"#.to_owned();
    let text = format!("\u{feff}{}", lines.join("\n"));
    let (samples, report) = read_bytes(text.as_bytes(), Some("llama3"), Method::Sft, 0.2).unwrap();
    assert_eq!((samples.len(), report.records, report.bad), (16, 19, 3));
    let numbers: Vec<u64> = report.named.iter().map(|bad| bad.number).collect();
    assert_eq!(numbers, [4, 8, 10], "blank lines count in numbers");
    let ignored: Vec<&str> = report.ignored.iter().map(String::as_str).collect();
    assert_eq!(ignored, ["id", "text"]);
    let error = read_bytes(text.as_bytes(), Some("llama3"), Method::Sft, 0.1).unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains("3 of 19") && shown.contains("data.jsonl:4: it is no JSON"),
        "{shown}"
    );
}

#[test]
fn samples_of_which_nothing_is_left_fail_where_there_are_too_many() {
    let long = format!(r#"{{"prompt":"{}","completion":"b"}}"#, "a".repeat(300));
    let cut = r#"{"prompt":"a","completion":"b"}"#;
    let text = format!("{long}\n{}", [cut; 9].join("\n"));
    let (samples, report) = read_bytes(text.as_bytes(), None, Method::Sft, 0.1).unwrap();
    assert_eq!((samples.len(), report.cut_away), (9, 1));
    let error = read_bytes(text.as_bytes(), None, Method::Sft, 0.09).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("of 1 of 10 samples nothing"), "{told}");
    assert!(told.contains("raise data.maxLength"), "{told}");
}

#[test]
fn a_packed_file_gives_the_same_samples_and_digests_are_of_the_files() {
    let text = format!("{CHAT}\n{CHAT}\n");
    let (plain, report) = read_bytes(text.as_bytes(), Some("llama3"), Method::Sft, 0.0).unwrap();
    assert_eq!(
        report.digest,
        hex::encode(sha2::Sha256::digest(text.as_bytes()))
    );
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let (same, report) = read_bytes(&packed, Some("llama3"), Method::Sft, 0.0).unwrap();
    assert_eq!(same.digest(), plain.digest());
    assert_eq!(report.digest, hex::encode(sha2::Sha256::digest(&packed)));
    let torn = &packed[..packed.len() - 9];
    let error = read_bytes(torn, Some("llama3"), Method::Sft, 1.0).unwrap_err();
    assert!(matches!(error, DataError::Read { .. }), "{error}");
}

#[test]
fn a_folder_is_read_by_name_and_other_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = |from: &str| format!("{{\"text\":\"{from}\"}}\n");
    fs::write(folder.path().join("b.jsonl"), text("bbbb")).unwrap();
    fs::write(folder.path().join("a.jsonl"), text("aaa")).unwrap();
    fs::write(folder.path().join("README.md"), "x").unwrap();
    let (samples, _) = read_path(folder.path(), folder.path(), None, Method::Sft, 0.0).unwrap();
    let lengths: Vec<usize> = (0..2)
        .map(|i| samples.read(i).unwrap()[0].tokens.len())
        .collect();
    assert_eq!(lengths, [4, 5], "with the end");
    let empty = tempfile::tempdir().unwrap();
    let error = read_path(empty.path(), empty.path(), None, Method::Sft, 0.0).unwrap_err();
    assert!(error.to_string().contains("holds no file"), "{error}");
}

#[test]
fn a_split_parts_no_record_and_follows_from_the_seed() {
    let line = r#"{"text":"abc"}"#;
    let text = [line; 10].join("\n");
    let (samples, _) = read_bytes(text.as_bytes(), None, Method::Sft, 0.0).unwrap();
    let samples = std::sync::Arc::new(samples);
    let split = |seed| crate::Subset::split(&samples, |_| 3, seed).unwrap();
    let (train, eval) = split(1);
    assert_eq!((train.len(), eval.len()), (7, 3));
    assert_eq!(split(1).1.digest(), eval.digest());
    assert_ne!(split(2).1.digest(), eval.digest());
    let all = crate::Subset::split(&samples, |_| 10, 1);
    assert_eq!(all.err(), Some(10));
}

#[test]
fn parquet_is_read_where_it_was_built_in_and_refused_where_not() {
    // Two conversations as pyarrow 26 writes them (zstd); the second has an answer that is null.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chats.parquet");
    let scratch = tempfile::tempdir().unwrap();
    let read = read_path(&path, scratch.path(), Some("llama3"), Method::Sft, 0.5);
    if cfg!(feature = "parquet") {
        let (samples, report) = read.unwrap();
        assert_eq!((samples.len(), report.records, report.bad), (1, 2, 1));
        assert_eq!(report.named[0].number, 2);
        assert_eq!(report.named[0].why, "message 2: it has no content");
        let bytes = fs::read(&path).unwrap();
        assert_eq!(report.digest, hex::encode(sha2::Sha256::digest(bytes)));
    } else {
        let error = read.unwrap_err().to_string();
        assert!(error.contains("built without"), "{error}");
    }
}

#[test]
#[ignore = "measures: writes 100 MB; run it alone"]
fn memory_of_a_large_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jsonl");
    let ids = vec!["123"; 1000].join(",");
    let line = format!("{{\"input_ids\":[{ids}]}}\n");
    let mut file = io::BufWriter::new(fs::File::create(&path).unwrap());
    for _ in 0..100_000_000 / line.len() {
        file.write_all(line.as_bytes()).unwrap();
    }
    drop(file);
    let (samples, report) = read_path(&path, folder.path(), None, Method::Sft, 0.0).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!(
        "{} samples of {} tokens: {peak:?}",
        samples.len(),
        report.tokens
    );
}
