//! Grammars of answers, in llguidance's form of Lark.
//!
//! An answer is a call, one of several, or of a prescribed form; a model that thinks may think
//! before it. One grammar says all of that, since it holds from the first token on.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    Structured,
    closed::closed,
    structured::WHITESPACE,
    tools::{Tool, ToolFormat},
};

/// Most calls of one answer.
const MAX_CALLS: usize = 8;
/// Any text.
const TEXT: &str = r"/(.|\n)*/";

/// Whether thoughts come before an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// They do not.
    No,
    /// They may.
    Maybe,
    /// The prompt ends within them.
    Begun,
}

/// What an answer may be beside a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Otherwise {
    /// Nothing: it is a call.
    Nothing,
    /// JSON of this schema.
    Json(Value),
    /// Any text. Only calls of tools that are strict are held to their schema.
    Text,
}

/// A grammar of `structured` after thoughts. One that the client wrote stays as it is.
pub fn thoughtful(structured: Structured, thinking: Thinking) -> Structured {
    let main = match &structured {
        _ if thinking == Thinking::No => return structured,
        Structured::Lark(_) => return structured,
        Structured::JsonSchema(schema) => format!("%json {}", on_one_line(schema.clone())),
        Structured::JsonObject => format!("%json {}", on_one_line(json!({"type": "object"}))),
        Structured::Regex(regex) => format!("/{}/", regex.replace('/', r"\/")),
        Structured::Choice(choice) => {
            let quoted: Vec<String> = choice.iter().map(|text| quote(text)).collect();
            quoted.join(" | ")
        }
    };
    let mut lark = start(thinking);
    let _ = writeln!(lark, "main: {main}");
    Structured::Lark(lark)
}

/// A grammar of calls of `tools` in the form `format`, one or with `parallel` up to eight, without
/// the text that triggers them where that is a special token. `None` where a trigger that cannot
/// be written would have to be looked for in a text.
pub fn calls(
    format: ToolFormat,
    tools: &[&Tool],
    parallel: bool,
    otherwise: &Otherwise,
    thinking: Thinking,
) -> Option<String> {
    let mut lark = match (otherwise, format) {
        (Otherwise::Text, ToolFormat::Mistral) => return None,
        // Thoughts are texts like others.
        (Otherwise::Text, ToolFormat::Hermes) => format!(
            "start: written* text\ntext: {TEXT}\nwritten: head \"\\n\" call \"\\n</tool_call>\"\n\
             head[lazy]: {TEXT} \"<tool_call>\"\n"
        ),
        (Otherwise::Text, ToolFormat::Llama3) => {
            "start: call | text\ntext: /([^{](.|\\n)*)?/\n".to_owned()
        }
        (Otherwise::Json(schema), _) => {
            let schema = on_one_line(schema.clone());
            let mut lark = start(thinking);
            let _ = writeln!(lark, "main: calls | other\nother: %json {schema}");
            lark
        }
        (Otherwise::Nothing, _) => format!("{}main: calls\n", start(thinking)),
    };
    if *otherwise != Otherwise::Text {
        lark.push_str(&sequence(format, parallel));
    }
    let names: Vec<String> = (0..tools.len())
        .map(|index| format!("call_{index}"))
        .collect();
    let _ = writeln!(lark, "call: {}", names.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        let free = *otherwise == Otherwise::Text && !tool.strict;
        let name = Value::from(tool.name.as_str());
        let head = format!(r#"{{"name": {name}, "{}": "#, format.arguments());
        let _ = writeln!(
            lark,
            "call_{index}: {} arguments_{index} \"}}\"",
            quote(&head)
        );
        let schema = if free {
            json!({"type": "object"})
        } else {
            arguments(tool)
        };
        let _ = writeln!(lark, "arguments_{index}: %json {}", on_one_line(schema));
    }
    Some(lark)
}

fn start(thinking: Thinking) -> String {
    match thinking {
        Thinking::No => "start: main\n".to_owned(),
        Thinking::Maybe => format!(
            "start: (thoughts gap)? main\nthoughts[lazy]: \"<think>\" {TEXT} \"</think>\"\n\
             gap: /[ \\n]{{0,4}}/\n"
        ),
        Thinking::Begun => format!(
            "start: thoughts gap main\nthoughts[lazy]: {TEXT} \"</think>\"\n\
             gap: /[ \\n]{{0,4}}/\n"
        ),
    }
}

/// One call, or several.
fn sequence(format: ToolFormat, parallel: bool) -> String {
    let more = MAX_CALLS - 1;
    let (before, between, after) = match format {
        ToolFormat::Hermes => (
            "\"<tool_call>\\n\" ",
            "\"\\n</tool_call>\\n<tool_call>\\n\"",
            " \"\\n</tool_call>\"",
        ),
        // A second call would be parted by ";", which Llama's own template does not teach.
        ToolFormat::Llama3 => return "calls: call\n".to_owned(),
        ToolFormat::Mistral => ("\"[\" ", "\", \"", " \"]\""),
    };
    if parallel {
        format!("calls: {before}call ({between} call){{0,{more}}}{after}\n")
    } else {
        format!("calls: {before}call{after}\n")
    }
}

fn arguments(tool: &Tool) -> Value {
    let mut schema = match &tool.parameters {
        Some(schema) => schema.clone(),
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    if let Some(map) = schema.as_object_mut() {
        map.entry("type").or_insert_with(|| "object".into());
    }
    schema
}

/// The schema for JSON with one space after a separator: a model may go on with spaces without
/// end otherwise.
fn on_one_line(schema: Value) -> Value {
    let mut schema = closed(schema);
    if let Some(map) = schema.as_object_mut() {
        let spacing =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        // Unless the client says how.
        map.entry(WHITESPACE).or_insert(spacing);
    }
    schema
}

/// Lark's strings are written like JSON's.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}
