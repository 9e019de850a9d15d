//! Grammars of calls.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Tool, ToolFormat};

/// Most calls of one forced answer.
const MAX_CALLS: usize = 8;

/// A grammar, in llguidance's form of Lark, of one call of one of `tools` (with `parallel` up to
/// eight) in the form `format`, without the text that triggers it where that is a special token.
/// With `or_else`, a rule for `%json` or a regular expression, an answer of that form is fine too.
pub fn grammar(
    format: ToolFormat,
    tools: &[&Tool],
    parallel: bool,
    or_else: Option<&Value>,
) -> String {
    let more = if parallel { MAX_CALLS - 1 } else { 0 };
    let (before, between, after) = match format {
        ToolFormat::Hermes => (
            "<tool_call>\n",
            "\n</tool_call>\n<tool_call>\n",
            "\n</tool_call>",
        ),
        ToolFormat::Llama3 => ("", "", ""),
        ToolFormat::Mistral => ("[", ", ", "]"),
    };
    let literal = |text: &str| Value::from(text).to_string();
    let mut lark = String::from("start: calls");
    if or_else.is_some() {
        lark.push_str(" | other");
    }
    lark.push_str("\ncalls: ");
    if !before.is_empty() {
        let _ = write!(lark, "{} ", literal(before));
    }
    lark.push_str("call");
    // A second call of Llama 3 would be parted by ";", which its own template does not teach.
    if more > 0 && format != ToolFormat::Llama3 {
        let _ = write!(lark, " ({} call){{0,{more}}}", literal(between));
    }
    if !after.is_empty() {
        let _ = write!(lark, " {}", literal(after));
    }
    let names: Vec<String> = (0..tools.len())
        .map(|index| format!("call_{index}"))
        .collect();
    let _ = write!(lark, "\ncall: {}", names.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        let head = format!(
            r#"{{"name": {}, "{}": "#,
            literal(&tool.name),
            format.arguments()
        );
        let head = literal(&head);
        let _ = write!(lark, "\ncall_{index}: {head} arguments_{index} \"}}\"");
        let _ = write!(lark, "\narguments_{index}: %json {}", arguments(tool));
    }
    if let Some(schema) = or_else {
        let _ = write!(lark, "\nother: %json {schema}");
    }
    lark.push('\n');
    lark
}

/// Schema of a call's arguments, written compactly: a model may otherwise go on with spaces.
fn arguments(tool: &Tool) -> Value {
    let mut schema = match &tool.parameters {
        Some(schema) => schema.clone(),
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    if let Some(map) = schema.as_object_mut() {
        map.entry("type").or_insert_with(|| "object".into());
        let spacing =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.insert("x-guidance".to_owned(), spacing);
    }
    schema
}
