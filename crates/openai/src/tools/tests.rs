use super::*;

const NAMES: [&str; 2] = ["f", "get_weather"];

/// What is found in `text`, taken in pieces of every size: text for people and calls.
#[track_caller]
fn check(format: ToolFormat, text: &str, shown: &str, calls: &[(&str, &str)]) {
    let chars: Vec<char> = text.chars().collect();
    for size in 1..=chars.len().max(1) {
        let parser = ToolParser::new(format, NAMES.map(str::to_owned).to_vec());
        let pieces: Vec<String> = chars
            .chunks(size)
            .map(|piece| piece.iter().collect())
            .collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (said, found) = found(parser, &pieces);
        let expected: Vec<(String, String)> = calls
            .iter()
            .map(|(n, a)| ((*n).to_owned(), (*a).to_owned()))
            .collect();
        assert_eq!(
            (said.as_str(), &found),
            (shown, &expected),
            "{text} by {size}"
        );
    }
}

/// Found by fuzzing: the text behind what is no call was not looked at when it came with it.
#[test]
fn a_call_behind_what_is_none_is_found_however_the_text_is_cut() {
    check(
        ToolFormat::Mistral,
        r#"[TOOL_CALLS]"x"f{: 1}[TOOL_CALLS]f{"a": 1}"#,
        r#"[TOOL_CALLS]"x"f{: 1}"#,
        &[("f", r#"{"a": 1}"#)],
    );
    check(
        ToolFormat::Hermes,
        r#"<tool_call>{"a": 1}</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"a": 1}</tool_call>"#,
        &[("f", "{}")],
    );
    check(
        ToolFormat::Hermes,
        "<tool_call>{\"na",
        "<tool_call>{\"na",
        &[],
    );
    let call = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    for (before, shown) in [
        ("a\t\t\t", "a\t\t\t"),
        ("\n \n", ""),
        (" \n a \n", " \n a \n"),
    ] {
        let text = format!("{before}{call}");
        check(ToolFormat::Hermes, &text, shown, &[("f", "{}")]);
    }
    check(ToolFormat::Hermes, " \n ", " \n ", &[]);
}

#[test]
fn a_tag_that_is_cut_behind_a_call_is_no_text() {
    let hermes = r#"<tool_call>{"name": "f", "arguments": {}}"#;
    for cut in [
        "",
        "\n",
        "\n<",
        "\n</tool_call",
        "</tool_call>",
        "\n</tool_call>\n<tool_c",
    ] {
        let text = format!("{hermes}{cut}");
        check(ToolFormat::Hermes, &text, "", &[("f", "{}")]);
    }
    check(
        ToolFormat::Hermes,
        &format!("{hermes}</to!"),
        "</to!",
        &[("f", "{}")],
    );
}

#[test]
fn hermes_and_qwen_calls_are_found() {
    use ToolFormat::Hermes;
    let one = r#"<tool_call>
{"name": "f", "arguments": {"a": "x}\"", "b": [1, {"c": null}]}}
</tool_call>"#;
    let arguments = r#"{"a": "x}\"", "b": [1, {"c": null}]}"#;
    check(Hermes, one, "", &[("f", arguments)]);
    check(
        Hermes,
        &format!("Well.\n{one}"),
        "Well.\n",
        &[("f", arguments)],
    );
    let two = format!("{one}\n{one}");
    check(Hermes, &two, "", &[("f", arguments), ("f", arguments)]);
    check(
        Hermes,
        r#"<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>"#,
        "",
        &[("f", r#"{"a": 1}"#)],
    );
    check(
        Hermes,
        r#"<tool_call>{"name": "f"}</tool_call>"#,
        "",
        &[("f", "{}")],
    );
    check(
        Hermes,
        r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#,
        "",
        &[("f", r#"{"a": 1}"#)],
    );
}

#[test]
fn what_is_no_call_is_text() {
    use ToolFormat::{Hermes, Llama3, Mistral};
    for text in [
        "",
        "hello",
        "a < b <tool",
        "{\"a\": 1}",
        "né 🦀 <tool_calls>",
    ] {
        check(Hermes, text, text, &[]);
        check(Llama3, text, text, &[]);
        check(Mistral, text, text, &[]);
    }
    for text in ["<tool_call>{\"a\": 1}", "the tag <tool_call> \n is one"] {
        check(Hermes, text, text, &[]);
    }
    check(
        Llama3,
        r#"{"name": "other", "parameters": {}}"#,
        r#"{"name": "other", "parameters": {}}"#,
        &[],
    );
    check(Mistral, "[TOOL_CALLS]nope{}", "[TOOL_CALLS]nope{}", &[]);
}

#[test]
fn a_call_that_breaks_off_tells_what_there_was() {
    check(
        ToolFormat::Hermes,
        r#"<tool_call>{"name": "f", "arguments": {"a": "unfin"#,
        "",
        &[("f", r#"{"a": "unfin"#)],
    );
    check(
        ToolFormat::Mistral,
        r#"[TOOL_CALLS]f[ARGS]{"a": [1"#,
        "",
        &[("f", r#"{"a": [1"#)],
    );
}

#[test]
fn llama_3_calls_are_the_whole_answer() {
    use ToolFormat::Llama3;
    let call = r#"{"name": "get_weather", "parameters": {"city": "Köln"}}"#;
    let expected = [("get_weather", r#"{"city": "Köln"}"#)];
    check(Llama3, call, "", &expected);
    check(Llama3, &format!(" <|python_tag|>{call}"), "", &expected);
    check(
        Llama3,
        &format!("{call}; {call}"),
        "",
        &[expected[0], expected[0]],
    );
    let typed = r#"{"type": "function", "name": "f", "parameters": {}}"#;
    check(Llama3, typed, "", &[("f", "{}")]);
    check(Llama3, &format!("See {call}"), &format!("See {call}"), &[]);
}

#[test]
fn mistral_calls_are_found_in_both_forms() {
    use ToolFormat::Mistral;
    let list = r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, 2]}}, {"name": "f", "arguments": {}}]"#;
    check(Mistral, list, "", &[("f", r#"{"a": [1, 2]}"#), ("f", "{}")]);
    let bare = r#"Hm[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather{"b": "}"}"#;
    check(
        Mistral,
        bare,
        "Hm",
        &[("f", r#"{"a": 1}"#), ("get_weather", r#"{"b": "}"}"#)],
    );
}

#[test]
fn a_family_is_known_by_its_template() {
    for (source, format) in [
        ("{% if tools %}<tool_call>", Some(ToolFormat::Hermes)),
        ("{% if tools %}[TOOL_CALLS]", Some(ToolFormat::Mistral)),
        ("{% if tools %}<|python_tag|>", Some(ToolFormat::Llama3)),
        ("{% if tools %}", None),
        ("<tool_call>", None),
    ] {
        assert_eq!(ToolFormat::of_template(source), format, "{source}");
    }
}

/// What is found in `pieces`: text and calls.
fn found(mut parser: ToolParser, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut events: Vec<ToolEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    let (mut said, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for event in events {
        match event {
            ToolEvent::Text(text) => said.push_str(&text),
            ToolEvent::Call { index, name } => {
                assert_eq!(index as usize, calls.len());
                calls.push((name, String::new()));
            }
            ToolEvent::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
            ToolEvent::End => {}
        }
    }
    (said, calls)
}

#[test]
fn no_nonsense_breaks_the_parser_and_what_is_found_does_not_depend_on_the_cuts() {
    // What means something in one format or another, whole and in part.
    const WORDS: [&str; 39] = [
        "{\"name\": \"x\", ",
        "\"name\": \"f\", \"arguments\": {}}",
        "\"arguments\": {\"a\": 1}, ",
        "<tool_call>",
        "</tool_call>",
        "<tool_c",
        "</tool",
        "[TOOL_CALLS]",
        "[TOOL_",
        "<|python_tag|>",
        "[ARGS]",
        "[CALL_ID]",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"n\", \"arguments\": {\"a\": [1]}}",
        "\"name\": \"f\"",
        "\"arguments\": ",
        "\"parameters\": {",
        "f{",
        "n",
        "x",
        "{",
        "}",
        "[",
        "]",
        "\"",
        ",",
        ":",
        ";",
        "\\",
        " ",
        "\n",
        "\t\t",
        "null",
        "é",
        "<",
        "[",
        "{\"",
        "\"}",
        "}}",
    ];
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..40_000 {
        let text: String = (0..random.usize(..14))
            .map(|_| WORDS[random.usize(..WORDS.len())])
            .collect();
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let single: Vec<&str> = chars.iter().map(String::as_str).collect();
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let at = rest.char_indices().nth(random.usize(1..9));
            let (piece, more) = rest.split_at(at.map_or(rest.len(), |(at, _)| at));
            pieces.push(piece);
            rest = more;
        }
        for format in [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
            for make in [ToolParser::new, ToolParser::forced] {
                let parser = || make(format, vec!["f".into(), "n".into()]);
                let whole = found(parser(), &[&text]);
                assert_eq!(found(parser(), &single), whole, "{format:?} {text:?}");
                assert_eq!(found(parser(), &pieces), whole, "{format:?} {text:?}");
            }
        }
    }
}
