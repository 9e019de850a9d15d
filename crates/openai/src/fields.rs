//! Strict reading of a JSON object, field by field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind, excerpt};

/// The fields of an object that were not looked at yet. Every getter takes its field out;
/// [`Fields::finish`] refuses what is left. `null` counts as absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

type Result<T> = std::result::Result<T, ApiError>;

impl Fields {
    /// The object in `body`, the body of a request.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(ErrorKind::Invalid, format!("the body is not JSON: {error}"))
                .with_code("invalid_json")
        })?;
        match value {
            Value::Object(map) => Ok(Self {
                map,
                path: String::new(),
            }),
            other => Err(ApiError::new(
                ErrorKind::Invalid,
                format!("the body must be a JSON object, not {}", kind(&other)),
            )),
        }
    }

    /// The object `value` that lies at `path`.
    pub(crate) fn new(value: Value, path: String) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(ApiError::invalid(
                path,
                format!("must be an object, not {}", kind(&other)),
            )),
        }
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

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value> {
        self.take(name)
            .ok_or_else(|| self.error(name, "is required"))
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(name, "an array", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// A finite number within `range`.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.typed(name, &expected, |value| {
            value.as_f64().filter(|v| range.contains(v))
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
        self.typed(name, &expected, |value| {
            integer(value).filter(|v| range.contains(v))
        })
    }

    /// Refuses the field `name` if it is there.
    pub(crate) fn refuse(&mut self, name: &str, why: &str) -> Result<()> {
        match self.take(name) {
            None => Ok(()),
            Some(_) => Err(self.error(name, why)),
        }
    }

    /// Refuses the field `name` unless it is absent or one of `harmless`.
    pub(crate) fn only(&mut self, name: &str, harmless: &[Value], why: &str) -> Result<()> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => Err(self.error(name, why)),
            _ => Ok(()),
        }
    }

    /// Refuses what no getter took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
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
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.take(name) {
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
