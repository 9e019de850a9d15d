//! Answers of a prescribed form.

use serde_json::{Value, json};

use crate::{
    error::ApiError,
    fields::{Fields, depth},
};

/// Longest schema or grammar in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 32;
/// Longest regular expression in bytes.
const MAX_REGEX_BYTES: usize = 4 << 10;
/// Most choices, and the longest in bytes.
const MAX_OPTIONS: usize = 512;
const MAX_OPTION_BYTES: usize = 1 << 10;

/// Member of a schema in which llguidance looks for how JSON is spaced.
pub(crate) const WHITESPACE: &str = "x-guidance";

/// What every answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Structured {
    /// An object of JSON.
    JsonObject,
    /// JSON that this schema describes.
    JsonSchema(Value),
    /// A text that this regular expression matches from end to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in llguidance's form of Lark.
    Lark(String),
}

/// What `response_format` and `structured_outputs` ask for, with the name of the one that does.
pub(crate) fn read(fields: &mut Fields) -> Result<Option<(Structured, &'static str)>, ApiError> {
    let format = fields
        .nested("response_format", response_format)?
        .flatten()
        .map(|form| (form, "response_format"));
    let outputs = fields
        .nested("structured_outputs", structured_outputs)?
        .map(|form| (form, "structured_outputs"));
    if format.is_some() && outputs.is_some() {
        return Err(fields.error(
            "structured_outputs",
            "is given beside response_format; set one",
        ));
    }
    Ok(format.or(outputs))
}

fn response_format(fields: &mut Fields) -> Result<Option<Structured>, ApiError> {
    const KINDS: [&str; 3] = ["text", "json_object", "json_schema"];
    let kind = fields.word("type", &KINDS)?;
    let schema = fields.nested("json_schema", json_schema)?;
    match (kind, schema) {
        (None, _) if fields.describes() => Ok(None),
        (None, _) => Err(fields.error("type", "is required")),
        (Some("json_schema"), Some(schema)) => Ok(Some(Structured::JsonSchema(schema))),
        (Some("json_schema"), None) => Err(fields.error("json_schema", "is required")),
        (Some(_), Some(_)) => {
            Err(fields.error("json_schema", "is allowed only with the type json_schema"))
        }
        (Some("json_object"), None) => Ok(Some(Structured::JsonObject)),
        (Some(_), None) => Ok(None),
    }
}

/// `text.format` of the responses API: the same with the schema's fields beside the type.
pub(crate) fn text_format(fields: &mut Fields) -> Result<Option<Structured>, ApiError> {
    const KINDS: [&str; 3] = ["text", "json_object", "json_schema"];
    let kind = fields.word("type", &KINDS)?;
    fields.short_string("name", 64)?;
    fields.string("description")?;
    fields.boolean("strict")?;
    let there = fields.has("schema");
    match kind {
        None if fields.describes() => {
            fields.object("schema")?;
            Ok(None)
        }
        None => Err(fields.error("type", "is required")),
        Some("json_schema") => Ok(Some(Structured::JsonSchema(required_schema(fields)?))),
        Some(_) if there => {
            Err(fields.error("schema", "is allowed only with the type json_schema"))
        }
        Some("json_object") => Ok(Some(Structured::JsonObject)),
        Some(_) => Ok(None),
    }
}

fn json_schema(fields: &mut Fields) -> Result<Value, ApiError> {
    fields.short_string("name", 64)?;
    fields.string("description")?;
    // Answers always follow the schema, also where it is not strict.
    fields.boolean("strict")?;
    required_schema(fields)
}

fn required_schema(fields: &mut Fields) -> Result<Value, ApiError> {
    let schema = fields.required("schema", || json!({"type": "object"}))?;
    if fields.describes() {
        return Ok(schema);
    }
    if !schema.is_object() {
        return Err(fields.wrong("schema", "an object", &schema));
    }
    check_schema(&schema, &fields.name("schema"))?;
    Ok(schema)
}

/// Refuses a schema that is too large or too deep to be worth compiling.
pub(crate) fn check_schema(schema: &Value, param: &str) -> Result<(), ApiError> {
    if depth(schema) > MAX_SCHEMA_DEPTH {
        let why = format!("is nested more than {MAX_SCHEMA_DEPTH} levels deep");
        return Err(ApiError::invalid(param, why));
    }
    if schema.to_string().len() > MAX_GRAMMAR_BYTES {
        let why = format!("is longer than {MAX_GRAMMAR_BYTES} bytes");
        return Err(ApiError::invalid(param, why));
    }
    Ok(())
}

fn structured_outputs(fields: &mut Fields) -> Result<Structured, ApiError> {
    let mut found = Vec::new();
    if let Some(schema) = fields.take("json", || json!({"type": ["object", "string"]})) {
        let schema = match schema {
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|error| fields.error("json", format!("is not JSON: {error}")))?,
            other => other,
        };
        if !schema.is_object() {
            return Err(fields.wrong("json", "a schema", &schema));
        }
        check_schema(&schema, &fields.name("json"))?;
        found.push(Structured::JsonSchema(schema));
    }
    if fields.boolean("json_object")?.unwrap_or(false) {
        found.push(Structured::JsonObject);
    }
    if let Some(regex) = fields.short_string("regex", MAX_REGEX_BYTES)? {
        found.push(Structured::Regex(regex));
    }
    let choice = fields.strings("choice", MAX_OPTIONS, MAX_OPTION_BYTES)?;
    if !choice.is_empty() {
        found.push(Structured::Choice(choice));
    }
    if let Some(grammar) = fields.short_string("grammar", MAX_GRAMMAR_BYTES)? {
        found.push(Structured::Lark(grammar));
    }
    let pattern = fields.short_string("whitespace_pattern", MAX_REGEX_BYTES)?;
    let one = found.pop();
    match one {
        Some(one) if found.is_empty() => match pattern {
            None => Ok(one),
            Some(pattern) => spaced(one, &pattern)
                .ok_or_else(|| fields.error("whitespace_pattern", "is allowed only with json")),
        },
        _ if fields.describes() => Ok(Structured::JsonObject),
        _ => Err(fields.error(
            "json",
            "exactly one of json, json_object, regex, choice and grammar must be given",
        )),
    }
}

/// JSON with white space between its tokens that the regular expression `pattern` matches. `None`
/// for what is not JSON.
fn spaced(form: Structured, pattern: &str) -> Option<Structured> {
    let mut schema = match form {
        Structured::JsonObject => json!({"type": "object"}),
        Structured::JsonSchema(schema) => schema,
        Structured::Regex(_) | Structured::Choice(_) | Structured::Lark(_) => return None,
    };
    // An option of llguidance's, which stands in the schema.
    schema[WHITESPACE] = json!({ "whitespace_pattern": pattern });
    Some(Structured::JsonSchema(schema))
}
