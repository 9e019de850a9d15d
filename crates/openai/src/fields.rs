//! Strict reading of a JSON object, field by field, and the schema of what is read.
//!
//! One piece of code both reads a request and describes it: [`schema`] runs the same reader on
//! [`Fields`] that note which fields are asked for, with which bounds, and answer as if all were
//! absent. So the schema cannot say anything else than the reader does.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, ErrorKind, excerpt},
    ignored::Ignored,
};

/// The fields of an object that were not looked at yet. Every getter takes its field out;
/// [`Fields::finish`] refuses what is left. `null` counts as absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
    /// Only while a reader is described.
    sketch: Option<Sketch>,
    /// These are of a past message: what no getter takes is noted instead of refused.
    is_past: bool,
    /// What was noted, here and further in.
    ignored: Ignored,
}

/// What a reader asked for.
#[derive(Default)]
struct Sketch {
    properties: Map<String, Value>,
    required: Vec<String>,
}

type Result<T> = std::result::Result<T, ApiError>;

/// JSON schema of the objects that `read` takes.
///
/// # Panics
/// `read` refuses an object for what it says about absent fields: a mistake in the reader, which
/// the test of the OpenAPI document finds.
pub(crate) fn schema<T>(read: impl FnOnce(&mut Fields) -> Result<T>) -> Value {
    describe(false, read)
}

fn describe<T>(is_past: bool, read: impl FnOnce(&mut Fields) -> Result<T>) -> Value {
    let mut fields = Fields {
        sketch: Some(Sketch::default()),
        ..Fields::of(Map::new(), String::new(), is_past)
    };
    let described = read(&mut fields).map(|_| ());
    debug_assert!(described.is_ok(), "{described:?}");
    let sketch = fields.sketch.unwrap_or_default();
    json!({
        "type": "object",
        "properties": sketch.properties,
        "required": sketch.required,
        "additionalProperties": is_past,
    })
}

impl Fields {
    fn of(map: Map<String, Value>, path: String, is_past: bool) -> Self {
        Self {
            map,
            path,
            sketch: None,
            is_past,
            ignored: Ignored::default(),
        }
    }

    /// What `read` makes of the object in `body`, the body of a request.
    pub(crate) fn read_body<T>(
        body: &[u8],
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut fields = Self::from_body(body)?;
        let value = read(&mut fields)?;
        fields.finish()?;
        Ok(value)
    }

    /// The object in `body`, the body of a request.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let why = excerpt(&error.to_string());
            ApiError::new(ErrorKind::Invalid, format!("the body is not JSON: {why}"))
                .with_code("invalid_json")
        })?;
        match value {
            Value::Object(map) => Ok(Self::of(map, String::new(), false)),
            other => Err(ApiError::new(
                ErrorKind::Invalid,
                format!("the body must be a JSON object, not {}", kind(&other)),
            )),
        }
    }

    /// The object `value` that lies at `path`.
    pub(crate) fn new(value: Value, path: String) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self::of(map, path, false)),
            other => Err(ApiError::invalid(
                path,
                format!("must be an object, not {}", kind(&other)),
            )),
        }
    }

    /// The object `value` that lies at `path` within these, and is read as strictly.
    pub(crate) fn child(&self, value: Value, path: String) -> Result<Self> {
        let child = Self::new(value, path)?;
        Ok(Self {
            is_past: self.is_past,
            ..child
        })
    }

    /// The object `value` of a past message that lies at `path`.
    pub(crate) fn past(value: Value, path: String) -> Result<Self> {
        let fields = Self::new(value, path)?;
        Ok(Self {
            is_past: true,
            ..fields
        })
    }

    /// Ends the reading of `child`, which lies within these.
    pub(crate) fn absorb(&mut self, child: Self) -> Result<()> {
        self.ignored.append(child.finish()?);
        Ok(())
    }

    /// Takes the field `name` out if it is `nothing`, a value that says nothing.
    pub(crate) fn without(&mut self, name: &str, nothing: &Value) {
        if self.map.get(name) == Some(nothing) {
            self.map.shift_remove(name);
        }
    }

    /// Whether these describe a reader instead of holding a request.
    pub(crate) fn describes(&self) -> bool {
        self.sketch.is_some()
    }

    /// Whether the field `name` is there and not taken yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// Whether the field `name` is there, not taken yet, and a text.
    pub(crate) fn has_string(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_string)
    }

    /// How many entries the array in the field `name` has; 0 if it is none.
    pub(crate) fn entries(&self, name: &str) -> usize {
        let entries = self.map.get(name).and_then(Value::as_array);
        entries.map_or(0, Vec::len)
    }

    /// Copies of the fields `names` that are there.
    pub(crate) fn copy(&self, names: &[&str]) -> Map<String, Value> {
        let there = names.iter().filter_map(|name| {
            let value = self.map.get(*name)?;
            Some(((*name).to_owned(), value.clone()))
        });
        there.collect()
    }

    /// The full name of the field `name`.
    pub(crate) fn name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The error that the field `name` is wrong because of `why`.
    pub(crate) fn error(&self, name: &str, why: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(self.name(name), why)
    }

    /// The value of the field `name`, which `schema` describes.
    pub(crate) fn take(&mut self, name: &str, schema: impl FnOnce() -> Value) -> Option<Value> {
        if let Some(sketch) = &mut self.sketch {
            sketch
                .properties
                .insert(name.to_owned(), nullable(schema()));
        }
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// The value of the field `name`, which must be there. A description gets an empty text.
    pub(crate) fn required(&mut self, name: &str, schema: impl FnOnce() -> Value) -> Result<Value> {
        if let Some(sketch) = &mut self.sketch {
            sketch.properties.insert(name.to_owned(), schema());
            sketch.required.push(name.to_owned());
            return Ok(Value::String(String::new()));
        }
        self.take(name, || Value::Null)
            .ok_or_else(|| self.error(name, "is required"))
    }

    /// Notes in a description that the field `name` must be there.
    pub(crate) fn require(&mut self, name: &str) {
        if let Some(sketch) = &mut self.sketch {
            sketch.required.push(name.to_owned());
        }
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String> {
        match self.required(name, || json!({"type": "string"}))? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        let schema = || json!({"type": "boolean"});
        self.typed(name, "true or false", schema, Value::as_bool)
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name, || json!({"type": "string"})) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    /// A text of at most `most` bytes.
    pub(crate) fn short_string(&mut self, name: &str, most: usize) -> Result<Option<String>> {
        match self.take(name, || json!({"type": "string", "maxLength": most})) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= most => Ok(Some(text)),
            Some(Value::String(_)) => Err(self.error(name, format!("is longer than {most} bytes"))),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    /// One of `words`.
    pub(crate) fn word(
        &mut self,
        name: &str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>> {
        match self.take(name, || json!({"type": "string", "enum": words})) {
            None => Ok(None),
            Some(value) => match words.iter().find(|word| value == **word) {
                Some(word) => Ok(Some(word)),
                None => Err(self.wrong(name, &format!("one of {}", words.join(", ")), &value)),
            },
        }
    }

    /// An array of at most `most` items that `item` describes.
    pub(crate) fn array(
        &mut self,
        name: &str,
        most: usize,
        item: impl FnOnce() -> Value,
    ) -> Result<Option<Vec<Value>>> {
        let schema = || json!({"type": "array", "items": item(), "maxItems": most});
        match self.take(name, schema) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= most => Ok(Some(items)),
            Some(Value::Array(_)) => Err(self.error(name, format!("has more than {most} entries"))),
            Some(other) => Err(self.wrong(name, "an array", &other)),
        }
    }

    /// An array of at most `most` texts of at most `bytes` bytes, none of them empty.
    pub(crate) fn strings(&mut self, name: &str, most: usize, bytes: usize) -> Result<Vec<String>> {
        let item = || json!({"type": "string", "minLength": 1, "maxLength": bytes});
        let items = self.array(name, most, item)?.unwrap_or_default();
        items
            .into_iter()
            .map(|item| match item {
                Value::String(text) if (1..=bytes).contains(&text.len()) => Ok(text),
                Value::String(_) => {
                    Err(self.error(name, format!("each must have from 1 to {bytes} bytes")))
                }
                other => Err(self.wrong(name, "an array of strings", &other)),
            })
            .collect()
    }

    /// An object of any content.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(name, || json!({"type": "object"})) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// What `read` makes of the object in the field `name`. A description gets `None`.
    pub(crate) fn nested<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.describes() {
            let described = describe(self.is_past, read);
            self.take(name, || described);
            return Ok(None);
        }
        let Some(value) = self.take(name, || Value::Null) else {
            return Ok(None);
        };
        let mut fields = self.child(value, self.name(name))?;
        let value = read(&mut fields)?;
        self.absorb(fields)?;
        Ok(Some(value))
    }

    /// What `read` makes of each object in the array `name` of at most `most` entries.
    pub(crate) fn each<T>(
        &mut self,
        name: &str,
        most: usize,
        read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        self.each_of(name, most, self.is_past, read)
    }

    /// The same of past messages, whose further members are noted instead of refused.
    pub(crate) fn each_past<T>(
        &mut self,
        name: &str,
        most: usize,
        read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        self.each_of(name, most, true, read)
    }

    fn each_of<T>(
        &mut self,
        name: &str,
        most: usize,
        is_past: bool,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        if self.describes() {
            let described = describe(is_past, read);
            self.array(name, most, || described)?;
            return Ok(None);
        }
        let Some(items) = self.array(name, most, || Value::Null)? else {
            return Ok(None);
        };
        items
            .into_iter()
            .enumerate()
            .map(|(index, item)| {
                let fields = Self::new(item, format!("{}[{index}]", self.name(name)))?;
                let mut fields = Self { is_past, ..fields };
                let value = read(&mut fields)?;
                self.absorb(fields)?;
                Ok(value)
            })
            .collect::<Result<Vec<T>>>()
            .map(Some)
    }

    /// A finite number within `range`.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let schema = || json!({"type": "number", "minimum": range.start(), "maximum": range.end()});
        self.typed(name, &expected, schema, |value| {
            value.as_f64().filter(|v| range.contains(v))
        })
    }

    /// A number above 0 and up to `most`.
    pub(crate) fn above_zero(&mut self, name: &str, most: f64) -> Result<Option<f64>> {
        let expected = format!("a number above 0 and at most {most}");
        let schema = || json!({"type": "number", "exclusiveMinimum": 0, "maximum": most});
        self.typed(name, &expected, schema, |value| {
            value.as_f64().filter(|v| *v > 0.0 && *v <= most)
        })
    }

    /// A whole number within `range`; `1.0` is one, as in JSON schema.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let expected = if range == (i64::MIN..=i64::MAX) {
            "a whole number of 64 bits".to_owned()
        } else if *range.end() == i64::MAX {
            format!("a whole number of at least {}", range.start())
        } else {
            format!("a whole number from {} to {}", range.start(), range.end())
        };
        let schema =
            || json!({"type": "integer", "minimum": range.start(), "maximum": range.end()});
        self.typed(name, &expected, schema, |value| {
            integer(value).filter(|v| range.contains(v))
        })
    }

    /// Refuses the field `name` if it is there.
    pub(crate) fn refuse(&mut self, name: &str, why: &str) -> Result<()> {
        match self.take(name, || json!({"type": "null", "description": why})) {
            None => Ok(()),
            Some(_) => Err(self.error(name, why)),
        }
    }

    /// Refuses the field `name` unless it is absent or one of `harmless`.
    pub(crate) fn only(&mut self, name: &str, harmless: &[Value], why: &str) -> Result<()> {
        match self.take(name, || json!({"enum": harmless, "description": why})) {
            Some(value) if !harmless.contains(&value) => Err(self.error(name, why)),
            _ => Ok(()),
        }
    }

    /// Refuses what no getter took, and returns what was noted instead.
    pub(crate) fn finish(mut self) -> Result<Ignored> {
        if self.is_past {
            let left = self.map.iter().filter(|(_, value)| !value.is_null());
            for (name, _) in left {
                let path = self.name(&excerpt(name));
                self.ignored.note(&path);
            }
            return Ok(self.ignored);
        }
        match self.map.keys().next() {
            None => Ok(self.ignored),
            Some(name) => {
                let name = self.name(&excerpt(name));
                Err(
                    ApiError::invalid(name, "is not a field that this server knows")
                        .with_code("unknown_field"),
                )
            }
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &str,
        schema: impl FnOnce() -> Value,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.take(name, schema) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.wrong(name, expected, &value)),
            },
        }
    }

    pub(crate) fn wrong(&self, name: &str, expected: &str, value: &Value) -> ApiError {
        wrong(self.name(name), expected, value)
    }
}

/// `schema`, with null beside what it allows.
fn nullable(mut schema: Value) -> Value {
    if schema["type"] == "null" {
        return schema;
    }
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.push(Value::Null);
    }
    let has_values = schema.get("enum").is_some();
    match schema.get_mut("type") {
        Some(name @ Value::String(_)) => *name = json!([name.take(), "null"]),
        Some(Value::Array(names)) => names.push("null".into()),
        _ if has_values => {}
        _ => return json!({"anyOf": [schema, {"type": "null"}]}),
    }
    schema
}

/// The error that the field `param` must be `expected` and not `value`.
pub(crate) fn wrong(param: String, expected: &str, value: &Value) -> ApiError {
    let found = match value {
        Value::Number(number) => excerpt(&number.to_string()),
        Value::String(text) => format!("{:?}", excerpt(text)),
        other => kind(other).to_owned(),
    };
    ApiError::invalid(param, format!("must be {expected}, not {found}"))
}

/// The whole number that `value` is.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    // 2^53: beyond it a float names no particular integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        value
            .as_f64()
            .filter(|v| v.fract() == 0.0 && v.abs() <= EXACT)
            .map(|v| v as i64)
    })
}

/// Levels of arrays and objects in `value`.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
