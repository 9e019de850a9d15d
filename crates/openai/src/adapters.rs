//! Adapters that a request is answered with, and the routes that load them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    error::{ApiError, ErrorObject},
    fields::{self, Fields},
};

/// Most adapters of one request.
pub const MAX_ADAPTERS: usize = 8;
/// Largest scale of an adapter, and as a negative number the smallest.
pub const MAX_ADAPTER_SCALE: f64 = 10.0;
/// Code of the errors of requests with more adapters than [`MAX_ADAPTERS`], or than a server takes.
pub const TOO_MANY_ADAPTERS: &str = "too_many_adapters";
/// Longest name of an adapter in bytes.
const MAX_NAME_BYTES: usize = 63;
/// Longest path of an adapter in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// An adapter that a request names in its field `adapters`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterRequest {
    /// Its served name: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// From `-`[`MAX_ADAPTER_SCALE`] to it; `None` is the adapter's own.
    pub scale: Option<f32>,
}

/// The field `adapters`.
pub(crate) fn read(fields: &mut Fields) -> Result<Vec<AdapterRequest>, ApiError> {
    if fields.entries("adapters") > MAX_ADAPTERS {
        return Err(too_many("adapters", MAX_ADAPTERS));
    }
    let read = fields.each("adapters", MAX_ADAPTERS, |adapter| {
        let scale = adapter.number("scale", -MAX_ADAPTER_SCALE..=MAX_ADAPTER_SCALE)?;
        Ok(AdapterRequest {
            name: name(adapter, "name")?,
            scale: scale.map(|scale| scale as f32),
        })
    })?;
    Ok(read.unwrap_or_default())
}

/// The 400 for more than `most` adapters, which the field `param` names.
pub fn too_many(param: &str, most: usize) -> ApiError {
    ApiError::invalid(param, format!("more than {most} adapters")).with_code(TOO_MANY_ADAPTERS)
}

fn name(fields: &mut Fields, field: &str) -> Result<String, ApiError> {
    let pattern = format!("^[A-Za-z0-9_.-]{{1,{MAX_NAME_BYTES}}}$");
    let schema = || json!({"type": "string", "pattern": pattern});
    let is_name = |text: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(known)
    };
    match fields.required(field, schema)? {
        Value::String(text) if is_name(&text) || fields.describes() => Ok(text),
        other => {
            let expected =
                format!("letters, digits, '-', '_' and '.', at most {MAX_NAME_BYTES} of them");
            Err(fields.wrong(field, &expected, &other))
        }
    }
}

/// What a client asks of `/v1/load_lora_adapter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadAdapterRequest {
    /// The name to serve it by. What may be one is not looked at here.
    pub name: String,
    /// Where it lies.
    pub path: String,
    /// Replace what is loaded by that name.
    pub in_place: bool,
    /// The digest that it must have, 64 hexadecimal digits in lower case.
    pub expected_digest: Option<String>,
}

impl LoadAdapterRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        Fields::read_body(body, Self::read)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let read = Self {
            name: filled(fields, "lora_name", MAX_NAME_BYTES)?,
            path: filled(fields, "lora_path", MAX_PATH_BYTES)?,
            in_place: fields.boolean("load_inplace")?.unwrap_or(false),
            expected_digest: digest(fields)?,
        };
        // Who serves one model knows what its adapters are for; shapes say whether they fit.
        fields.string("base_model_name")?;
        fields.only(
            "is_3d_lora_weight",
            &[json!(false)],
            "weights of experts in one tensor are not served",
        )?;
        Ok(read)
    }
}

/// What a client asks of `/v1/unload_lora_adapter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnloadAdapterRequest {
    /// The name that it is served by.
    pub name: String,
}

impl UnloadAdapterRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// A 400 that names the field at fault.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        Fields::read_body(body, Self::read)
    }

    /// JSON schema of what [`Self::from_json`] takes.
    pub fn schema() -> Value {
        fields::schema(Self::read)
    }

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        // A number that vLLM once gave its adapters. Names are what counts there too.
        fields.integer("lora_int_id", i64::MIN..=i64::MAX)?;
        Ok(Self {
            name: filled(fields, "lora_name", MAX_NAME_BYTES)?,
        })
    }
}

/// A text that must be there and not be empty, of at most `most` bytes. Its lack has the code
/// [`MISSING_FIELD`].
fn filled(fields: &mut Fields, name: &str, most: usize) -> Result<String, ApiError> {
    let text = fields.short_string(name, most)?;
    fields.require(name);
    match text {
        None if fields.describes() => Ok(String::new()),
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(fields.error(name, "is required").with_code(MISSING_FIELD)),
    }
}

/// Code of the error that a field of a load route is missing or empty.
pub const MISSING_FIELD: &str = "missing_field";

fn digest(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let name = "expected_digest";
    let schema = || json!({"type": "string", "pattern": "^[0-9a-fA-F]{64}$"});
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match fields.take(name, schema) {
        None => Ok(None),
        Some(Value::String(text)) if is_digest(&text) => Ok(Some(text.to_ascii_lowercase())),
        Some(other) => Err(fields.wrong(name, "64 hexadecimal digits", &other)),
    }
}

/// An error of the routes that load adapters, in the form that vLLM has now and in the one that it
/// had, which clients still read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdapterErrorBody {
    /// The form of now.
    pub error: ErrorObject,
    /// Always `error`.
    pub object: String,
    /// As in `error`.
    pub message: String,
    /// As in `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// As in `error`.
    pub param: Option<String>,
    /// The status.
    pub code: u16,
}

impl AdapterErrorBody {
    /// `error` in both forms, of an answer with `status`.
    pub fn new(error: ErrorObject, status: u16) -> Self {
        Self {
            object: "error".to_owned(),
            message: error.message.clone(),
            kind: error.kind.clone(),
            param: error.param.clone(),
            code: status,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(value: &Value) -> Result<Vec<AdapterRequest>, ApiError> {
        Fields::read_body(json!({ "adapters": value }).to_string().as_bytes(), read)
    }

    #[track_caller]
    fn refused(value: &Value, param: &str) {
        let error = stack(value).expect_err(&value.to_string());
        assert_eq!(error.kind.status(), 400);
        assert_eq!(error.param.as_deref(), Some(param), "{value}: {error}");
    }

    #[test]
    fn names_and_scales_are_read_and_null_is_absent() {
        let read = stack(&json!([{"name": "sql", "scale": 0.8}, {"name": "Tone_1.b"},
            {"name": "c", "scale": null}, {"name": "d", "scale": -10}]));
        let scales: Vec<_> = read
            .unwrap()
            .into_iter()
            .map(|a| (a.name, a.scale))
            .collect();
        let name = |name: &str| name.to_owned();
        assert_eq!(
            scales,
            [
                (name("sql"), Some(0.8)),
                (name("Tone_1.b"), None),
                (name("c"), None),
                (name("d"), Some(-10.0))
            ]
        );
        assert_eq!(stack(&Value::Null).unwrap(), []);
        assert_eq!(stack(&json!([])).unwrap(), []);
    }

    #[test]
    fn what_is_no_stack_is_refused_by_name() {
        refused(&json!({"name": "a"}), "adapters");
        refused(&json!(["a"]), "adapters[0]");
        refused(&json!([{}]), "adapters[0].name");
        refused(&json!([{"name": 1}]), "adapters[0].name");
        for name in ["", "a b", "a,b", "a+b", "é", &"x".repeat(64)] {
            refused(&json!([{"name": "a"}, {"name": name}]), "adapters[1].name");
        }
        for scale in [
            json!(10.01),
            json!(-11),
            json!("1"),
            json!(true),
            json!(1e39),
        ] {
            refused(&json!([{"name": "a", "scale": scale}]), "adapters[0].scale");
        }
        refused(&json!([{"name": "a", "weight": 1}]), "adapters[0].weight");
        let many = json!(vec![json!({"name": "a"}); MAX_ADAPTERS + 1]);
        refused(&many, "adapters");
        assert_eq!(
            stack(&many).unwrap_err().code.as_deref(),
            Some(TOO_MANY_ADAPTERS)
        );
        // No JSON says NaN, and what is beyond any number is none.
        let body = br#"{"adapters": [{"name": "a", "scale": 1e999}]}"#;
        assert_eq!(
            Fields::read_body(body, read).unwrap_err().kind.status(),
            400
        );
    }

    #[test]
    fn load_routes_take_what_vllms_take_and_refuse_the_rest_by_name() {
        let load = |value: Value| LoadAdapterRequest::from_json(value.to_string().as_bytes());
        let digest = "AB".repeat(32);
        let read = load(
            json!({"lora_name": "a", "lora_path": "/x", "load_inplace": true,
            "is_3d_lora_weight": false, "base_model_name": "m", "expected_digest": digest}),
        );
        let read = read.unwrap();
        assert!(read.in_place);
        assert_eq!(read.expected_digest, Some("ab".repeat(32)));
        for (value, param, code) in [
            (json!({"lora_path": "/x"}), "lora_name", Some(MISSING_FIELD)),
            (
                json!({"lora_name": "a", "lora_path": ""}),
                "lora_path",
                Some(MISSING_FIELD),
            ),
            (
                json!({"lora_name": 1, "lora_path": "/x"}),
                "lora_name",
                None,
            ),
            (
                json!({"lora_name": "a", "lora_path": "/x", "pinned": true}),
                "pinned",
                Some("unknown_field"),
            ),
            (
                json!({"lora_name": "a", "lora_path": "/x", "is_3d_lora_weight": true}),
                "is_3d_lora_weight",
                None,
            ),
            (
                json!({"lora_name": "a", "lora_path": "/x", "expected_digest": "ab"}),
                "expected_digest",
                None,
            ),
        ] {
            let error = load(value.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{value}");
            assert_eq!(error.code.as_deref(), code, "{value}");
        }
        let unload = |value: Value| UnloadAdapterRequest::from_json(value.to_string().as_bytes());
        assert_eq!(
            unload(json!({"lora_name": "a", "lora_int_id": 3}))
                .unwrap()
                .name,
            "a"
        );
        assert!(unload(json!({"lora_int_id": 3})).is_err());
    }

    #[test]
    fn schemas_require_what_the_readers_do() {
        let load = LoadAdapterRequest::schema();
        assert_eq!(load["required"], json!(["lora_name", "lora_path"]));
        assert_eq!(
            UnloadAdapterRequest::schema()["required"],
            json!(["lora_name"])
        );
        let field = fields::schema(read);
        let field = &field["properties"]["adapters"];
        assert_eq!(field["type"], json!(["array", "null"]));
        assert_eq!(field["maxItems"], MAX_ADAPTERS);
        assert_eq!(field["items"]["required"], json!(["name"]));
        assert_eq!(
            field["items"]["properties"]["scale"]["maximum"],
            MAX_ADAPTER_SCALE
        );
    }
}
