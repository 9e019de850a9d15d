//! The options of an adapter's configuration, each to be taken once.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{adapter::AdapterError, config::of_python};

/// Longest part of a value that a message repeats, in characters.
const MAX_SHOWN: usize = 80;

/// The options that have not been looked at yet.
pub(super) struct Options<'a> {
    path: &'a Path,
    left: Map<String, Value>,
}

impl<'a> Options<'a> {
    /// The options in the text of the file at `path`.
    pub(super) fn parse(path: &'a Path, text: &str) -> Result<Self, AdapterError> {
        let left = serde_json::from_str(&of_python(text)).map_err(|error| {
            let path = path.to_owned();
            if text.starts_with("version https://git-lfs") {
                AdapterError::NotFetched { path }
            } else {
                AdapterError::InvalidConfig {
                    path,
                    why: error.to_string(),
                }
            }
        })?;
        Ok(Self { path, left })
    }

    /// The options in an option that is an object; none where it is absent or null.
    pub(super) fn nested(&mut self, name: &str) -> Result<Self, AdapterError> {
        let left = self.optional(name)?.unwrap_or_default();
        Ok(Self {
            path: self.path,
            left,
        })
    }

    /// Whether the option is there, null or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Takes an option that may be absent or null.
    pub(super) fn optional<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, AdapterError> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| self.invalid(format!("{name}: {error}"))),
        }
    }

    /// Takes an option that is true or false, false where it is absent.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, AdapterError> {
        Ok(self.optional(name)?.unwrap_or(false))
    }

    /// Takes an option that is not honoured; it may be there as long as it is not set.
    pub(super) fn must_be_unset(&mut self, name: &str, why: &str) -> Result<(), AdapterError> {
        match self.left.remove(name) {
            Some(value) if is_set(&value) => Err(self.refused(name, &value, why)),
            _ => Ok(()),
        }
    }

    /// Takes options that change nothing in what is served.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.left.remove(*name);
        }
    }

    /// Refuses what is set and was not taken.
    pub(super) fn finish(self) -> Result<(), AdapterError> {
        match self.left.iter().find(|(_, value)| is_set(value)) {
            Some((name, value)) => Err(self.refused(name, value, "this option is not known")),
            None => Ok(()),
        }
    }

    /// Refuses an option.
    pub(super) fn refused(&self, name: &str, value: &Value, why: &str) -> AdapterError {
        let text = value.to_string();
        let cut: String = text.chars().take(MAX_SHOWN).collect();
        let value = if cut.len() < text.len() {
            format!("{cut}...")
        } else {
            cut
        };
        AdapterError::RefusedOption {
            path: self.path.to_owned(),
            option: name.to_owned(),
            value,
            why: why.to_owned(),
        }
    }

    /// Refuses the configuration.
    pub(super) fn invalid(&self, why: String) -> AdapterError {
        AdapterError::InvalidConfig {
            path: self.path.to_owned(),
            why,
        }
    }
}

/// Whether an option says anything: PEFT writes all of them, most of them like this.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}
