use super::*;
use crate::{fake, template::TemplateMessage};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("tokenizer.json"),
        fake::tokenizer_json().to_string(),
    )
    .unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

#[track_caller]
fn render(files: &[(&str, &str)]) -> String {
    let files = ModelFiles::load(folder(files).path()).unwrap();
    let message = TemplateMessage {
        role: "user".into(),
        content: "hi".into(),
        name: None,
    };
    files.template.unwrap().render(&[message], true).unwrap()
}

#[test]
fn a_template_is_found_wherever_models_keep_it() {
    let text = r#"{"chat_template": "A{{ eos_token }}", "eos_token": {"content": "</s>"}}"#;
    assert_eq!(render(&[("tokenizer_config.json", text)]), "A</s>");
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"}]}"#;
    assert_eq!(render(&[("tokenizer_config.json", list)]), "D");
    assert_eq!(
        render(&[
            ("tokenizer_config.json", text),
            ("chat_template.jinja", "F")
        ]),
        "F"
    );
    let map = ("special_tokens_map.json", r#"{"bos_token": "<s>"}"#);
    assert_eq!(
        render(&[map, ("chat_template.jinja", "{{ bos_token }}")]),
        "<s>"
    );
    assert!(
        ModelFiles::load(folder(&[]).path())
            .unwrap()
            .template
            .is_none()
    );
}

/// A model that ends a turn by one token and a text by another ran on to its greatest length.
#[test]
fn endings_are_those_of_all_files_that_name_some() {
    let eos = |files: &[(&str, &str)]| ModelFiles::load(folder(files).path()).unwrap().defaults.eos;
    let tokenizer = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let config = ("config.json", r#"{"eos_token_id": 2, "x": 1}"#);
    let generation = ("generation_config.json", r#"{"eos_token_id": [7, 2]}"#);
    assert_eq!(eos(&[tokenizer]), [1]);
    assert_eq!(eos(&[tokenizer, config]), [2, 1]);
    assert_eq!(eos(&[tokenizer, config, generation]), [7, 2, 1]);
    assert_eq!(eos(&[("generation_config.json", "{}"), config]), [2]);
    assert_eq!(
        eos(&[("tokenizer_config.json", r#"{"eos_token": "gone"}"#)]),
        [0_u32; 0]
    );
    assert_eq!(eos(&[]), [0_u32; 0]);
}

#[test]
fn numbers_that_only_python_writes_matter_only_where_they_count() {
    let odd = r#"{"model_max_length": Infinity, "x": [NaN, -Infinity], "temperature": 0.5}"#;
    let files = [
        ("tokenizer_config.json", odd),
        ("config.json", odd),
        ("generation_config.json", odd),
    ];
    let loaded = ModelFiles::load(folder(&files).path()).unwrap();
    assert_eq!(loaded.defaults.temperature, Some(0.5));
    let wrong = ("generation_config.json", r#"{"temperature": Infinity}"#);
    let error = ModelFiles::load(folder(&[wrong]).path()).unwrap_err();
    assert_eq!(error.reason(), "InvalidConfig");
}

#[test]
fn added_tokens_of_the_configuration_count_as_in_transformers() {
    let config = r#"{"eos_token": "<|end|>", "added_tokens_decoder": {
        "263": {"content": "<|end|>", "special": false},
        "262": {"content": "<tool>", "special": false, "normalized": false},
        "2": {"content": "<|im_end|>", "special": false, "normalized": false}}}"#;
    let before = ModelFiles::load(folder(&[]).path()).unwrap().tokenizer;
    assert!(before.is_special(2) && before.token_id("<tool>").is_none());
    let files = ModelFiles::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
    let after = files.tokenizer;
    assert!(
        !after.is_special(2),
        "the flag is that of the configuration"
    );
    assert_eq!(after.encode("<tool>a<|end|>", false).unwrap().len(), 3);
    let (tool, end) = (after.token_id("<tool>"), after.token_id("<|end|>"));
    assert_eq!(
        (tool, end),
        (
            Some(fake::VOCAB_SIZE as u32),
            Some(fake::VOCAB_SIZE as u32 + 1)
        )
    );
    assert!(after.is_special(end.unwrap()), "it is named as one");
    assert_eq!(files.defaults.eos, [end.unwrap()]);
}

#[test]
fn the_template_for_tools_is_taken_when_there_are_some() {
    let template = |files: &[(&str, &str)]| {
        ModelFiles::load(folder(files).path())
            .unwrap()
            .template
            .unwrap()
    };
    let list = |names: &[&str]| {
        let entry = |name| format!(r#"{{"name": "{name}", "template": "{name}"}}"#);
        let entries: Vec<_> = names.iter().map(entry).collect();
        format!(r#"{{"chat_template": [{}]}}"#, entries.join(","))
    };
    for (names, usual, with_tools) in [
        (&["default", "tool_use"][..], "default", "tool_use"),
        (&["tool_use", "rag"], "rag", "tool_use"),
        (&["rag", "other"], "rag", "rag"),
        (&["tool_use"], "tool_use", "tool_use"),
    ] {
        let template = template(&[("tokenizer_config.json", &list(names))]);
        assert_eq!(template.source(), usual, "{names:?}");
        assert_eq!(template.for_tools(true).source(), with_tools, "{names:?}");
        assert_eq!(template.for_tools(false).source(), usual, "{names:?}");
    }
    let files = [
        ("chat_template.jinja", "F"),
        ("additional_chat_templates/tool_use.jinja", "T"),
    ];
    let template = template(&files);
    assert_eq!(
        (template.source(), template.for_tools(true).source()),
        ("F", "T")
    );
}

#[test]
fn sampling_defaults_are_read_and_nonsense_is_left_out() {
    let config = r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "num_beams": 1}"#;
    let files = ModelFiles::load(folder(&[("generation_config.json", config)]).path());
    let defaults = files.unwrap().defaults;
    assert_eq!(
        (defaults.temperature, defaults.top_p),
        (Some(0.6), Some(0.95))
    );
    assert_eq!((defaults.top_k, defaults.min_p), (Some(20), None));
}

#[test]
fn a_broken_file_is_named_with_a_reason() {
    for (name, content, reason) in [
        ("tokenizer.json", "{", "InvalidTokenizer"),
        (
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1",
            "InvalidTokenizer",
        ),
        ("tokenizer_config.json", "[]", "InvalidTokenizer"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": 1}"#,
            "InvalidTokenizer",
        ),
        ("chat_template.jinja", "{% if %}", "InvalidTokenizer"),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"1": {}}}"#,
            "InvalidTokenizer",
        ),
        (
            "generation_config.json",
            r#"{"eos_token_id": "x"}"#,
            "InvalidConfig",
        ),
    ] {
        let error = ModelFiles::load(folder(&[(name, content)]).path()).unwrap_err();
        assert_eq!(error.reason(), reason, "{name}: {error}");
        assert!(error.is_final());
    }
    let empty = tempfile::tempdir().unwrap();
    let error = ModelFiles::load(empty.path()).unwrap_err();
    assert_eq!((error.reason(), error.is_final()), ("MissingFile", true));
}
