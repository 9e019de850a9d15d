//! Whether answers are JSON of a schema.

use serde_json::Value;

/// A JSON schema. It decides what JSON Schema says, and thus more than the engine's grammars, which
/// order the members of objects.
pub(super) struct Schema(Option<jsonschema::Validator>);

impl Schema {
    /// This schema, or none: then any JSON has it.
    ///
    /// # Errors
    /// It is no schema, or refers to what is elsewhere.
    pub(super) fn new(schema: Option<&Value>) -> Result<Self, String> {
        let compiled = schema.map(jsonschema::validator_for).transpose();
        let compiled = compiled.map_err(|error| {
            format!("the schema cannot be used: {error}: correct it in the gate")
        })?;
        Ok(Self(compiled))
    }

    /// Whether `answer`, white space around it left out, is JSON and has it.
    pub(super) fn has(&self, answer: &str) -> bool {
        let Ok(value) = serde_json::from_str::<Value>(answer) else {
            return false;
        };
        self.0.as_ref().is_none_or(|schema| schema.is_valid(&value))
    }
}
