use super::*;

const NAMES: [&str; 2] = ["f", "get_weather"];

/// What is found in `text`, taken in pieces of every size: text for people and calls.
#[track_caller]
fn check(format: ToolFormat, text: &str, shown: &str, calls: &[(&str, &str)]) {
    let chars: Vec<char> = text.chars().collect();
    for size in 1..=chars.len().max(1) {
        let mut parser = ToolParser::new(format, NAMES.map(str::to_owned).to_vec());
        let mut events = Vec::new();
        for piece in chars.chunks(size) {
            events.extend(parser.push(&piece.iter().collect::<String>()));
        }
        events.extend(parser.finish());
        let (mut said, mut found) = (String::new(), Vec::<(String, String)>::new());
        for event in events {
            match event {
                ToolEvent::Text(text) => said.push_str(&text),
                ToolEvent::Call { index, name } => {
                    assert_eq!(index as usize, found.len());
                    found.push((name, String::new()));
                }
                ToolEvent::Arguments(more) => found.last_mut().unwrap().1.push_str(&more),
                ToolEvent::End => {}
            }
        }
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
    check(
        Hermes,
        "<tool_call>{\"a\": 1}",
        "<tool_call>{\"a\": 1}",
        &[],
    );
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

#[test]
fn no_nonsense_breaks_the_parser_or_gets_lost() {
    // Deterministic noise over the characters that mean something.
    let alphabet: Vec<char> = "{}[]\",:\\ \n;nfam<tool_call></[TOOL_CALLS]é"
        .chars()
        .collect();
    let mut seed = 1_u64;
    for _ in 0..20_000 {
        let text: String = (0..seed % 40)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                alphabet[(seed >> 33) as usize % alphabet.len()]
            })
            .collect();
        seed = seed.wrapping_add(7);
        for format in [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
            let mut parser = ToolParser::new(format, vec!["f".into(), "n".into()]);
            for c in text.chars() {
                parser.push(&c.to_string());
            }
            parser.finish();
        }
    }
}
