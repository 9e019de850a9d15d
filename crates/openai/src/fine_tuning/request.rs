//! The request that makes a job.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Hyperparameters, Method, Objective, Setting};
use crate::{
    error::ApiError,
    fields::{self, Fields},
};

/// Longest suffix, in characters.
pub const MAX_SUFFIX_CHARS: usize = 64;
/// Most entries of the metadata.
pub const MAX_METADATA: usize = 16;
/// Largest seed: the largest whole number that a JSON number names exactly.
pub const MAX_SEED: i64 = 9_007_199_254_740_991;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;
const MAX_EPOCHS: i64 = 1_000_000;
const MAX_BATCH: i64 = 65_536;
const MAX_MULTIPLIER: f64 = 1000.0;
const MAX_BETA: f64 = 1000.0;
/// Smallest of both: what is smaller is written as 0 by a decimal number of nine digits.
const LEAST: f64 = 1e-6;

/// What a client asks of `POST /v1/fine_tuning/jobs`.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateJob {
    /// Name of the model.
    pub model: String,
    /// Id of the file to learn from.
    pub training_file: String,
    /// Id of the file to be judged by.
    pub validation_file: Option<String>,
    /// What it learns, and how.
    pub method: Method,
    /// What random numbers follow from, from 0 to [`MAX_SEED`].
    pub seed: Option<i64>,
    /// What the name of the result begins with; at most [`MAX_SUFFIX_CHARS`].
    pub suffix: Option<String>,
    /// The client's own; at most [`MAX_METADATA`] entries.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl CreateJob {
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
            model: fields.required_string("model")?,
            training_file: fields.required_string("training_file")?,
            validation_file: fields.string("validation_file")?,
            method: method(fields)?,
            seed: fields.integer("seed", 0..=MAX_SEED)?,
            suffix: fields.string("suffix")?,
            metadata: metadata(fields)?,
        };
        if let Some(suffix) = &read.suffix
            && !(1..=MAX_SUFFIX_CHARS).contains(&suffix.chars().count())
        {
            let why = format!("must have from 1 to {MAX_SUFFIX_CHARS} characters");
            return Err(fields.error("suffix", why));
        }
        fields.only(
            "integrations",
            &[json!([])],
            "nothing is reported to other services",
        )?;
        Ok(read)
    }
}

fn method(fields: &mut Fields) -> Result<Method, ApiError> {
    let has_method = fields.has("method");
    let old = fields.nested("hyperparameters", |old| hyperparameters(old, false))?;
    if old.is_some() && has_method {
        let why = "is the old form of method.supervised.hyperparameters: use one of them";
        return Err(fields.error("hyperparameters", why));
    }
    let method = fields.nested("method", |method| {
        let kind = method.word("type", &["supervised", "dpo"])?;
        method.require("type");
        let objective = match kind {
            Some("dpo") => Objective::Dpo,
            Some(_) => Objective::Supervised,
            None if method.describes() => Objective::Supervised,
            None => return Err(method.error("type", "is required: supervised or dpo")),
        };
        let supervised = of_method(method, Objective::Supervised)?;
        let dpo = of_method(method, Objective::Dpo)?;
        let (own, other, other_name) = match objective {
            Objective::Supervised => (supervised, dpo, "dpo"),
            Objective::Dpo => (dpo, supervised, "supervised"),
        };
        if other.is_some() {
            let why = format!("is not the method of type {}", objective.name());
            return Err(method.error(other_name, why));
        }
        Ok(Method {
            objective,
            hyperparameters: own.unwrap_or_else(|| Hyperparameters {
                beta: (objective == Objective::Dpo).then(Setting::default),
                ..Hyperparameters::default()
            }),
        })
    })?;
    Ok(method.unwrap_or_else(|| Method {
        objective: Objective::Supervised,
        hyperparameters: old.unwrap_or_default(),
    }))
}

fn of_method(
    fields: &mut Fields,
    objective: Objective,
) -> Result<Option<Hyperparameters>, ApiError> {
    let is_dpo = objective == Objective::Dpo;
    fields.nested(objective.name(), |own| {
        let read = own.nested("hyperparameters", |h| hyperparameters(h, is_dpo))?;
        Ok(read.unwrap_or_else(|| Hyperparameters {
            beta: is_dpo.then(Setting::default),
            ..Hyperparameters::default()
        }))
    })
}

fn hyperparameters(fields: &mut Fields, is_dpo: bool) -> Result<Hyperparameters, ApiError> {
    Ok(Hyperparameters {
        n_epochs: integer(fields, "n_epochs", MAX_EPOCHS)?,
        batch_size: integer(fields, "batch_size", MAX_BATCH)?,
        learning_rate_multiplier: number(fields, "learning_rate_multiplier", MAX_MULTIPLIER)?,
        beta: if is_dpo {
            Some(number(fields, "beta", MAX_BETA)?)
        } else {
            None
        },
    })
}

fn integer(fields: &mut Fields, name: &str, most: i64) -> Result<Setting<i64>, ApiError> {
    let schema = || json!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": most}]});
    let expected = format!("\"auto\" or a whole number from 1 to {most}");
    setting(fields, name, &expected, schema, |value| {
        fields::integer(value).filter(|value| (1..=most).contains(value))
    })
}

fn number(fields: &mut Fields, name: &str, most: f64) -> Result<Setting<f64>, ApiError> {
    let schema = || json!({"anyOf": [{"const": "auto"}, {"type": "number", "minimum": LEAST, "maximum": most}]});
    let expected = format!("\"auto\" or a number from {LEAST} to {most}");
    setting(fields, name, &expected, schema, |value| {
        value
            .as_f64()
            .filter(|value| (LEAST..=most).contains(value))
    })
}

fn setting<T>(
    fields: &mut Fields,
    name: &str,
    expected: &str,
    schema: impl FnOnce() -> Value,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Setting<T>, ApiError> {
    match fields.take(name, schema) {
        None => Ok(Setting::default()),
        Some(Value::String(word)) if word == "auto" => Ok(Setting::default()),
        Some(value) => match read(&value) {
            Some(read) => Ok(Setting::Value(read)),
            None => Err(fields.wrong(name, expected, &value)),
        },
    }
}

fn metadata(fields: &mut Fields) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let Some(map) = fields.object("metadata")? else {
        return Ok(None);
    };
    if map.len() > MAX_METADATA {
        let why = format!("has more than {MAX_METADATA} entries");
        return Err(fields.error("metadata", why));
    }
    let wrong = || {
        let why = format!(
            "holds texts of at most {MAX_METADATA_VALUE_CHARS} characters under names of at most \
             {MAX_METADATA_KEY_CHARS}"
        );
        fields.error("metadata", why)
    };
    let entries = map.into_iter().map(|(key, value)| match value {
        Value::String(value)
            if key.chars().count() <= MAX_METADATA_KEY_CHARS
                && value.chars().count() <= MAX_METADATA_VALUE_CHARS =>
        {
            Ok((key, value))
        }
        _ => Err(wrong()),
    });
    entries.collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn read(body: &Value) -> Result<CreateJob, (String, Option<String>)> {
        CreateJob::from_json(body.to_string().as_bytes()).map_err(|e| (e.message, e.param))
    }

    #[test]
    fn the_requests_of_openais_documentation_are_read() {
        let least = read(&json!({"training_file": "file-BK7bzQj3FfZFXr7DbL6xJwfo",
                                 "model": "gpt-4o-mini"}))
        .unwrap();
        assert_eq!(least.method, Method::default());
        let dpo = read(&json!({
            "training_file": "file-abc123", "validation_file": "file-abc123", "model": "gpt-4o-mini",
            "integrations": [], "suffix": "custom-model-name", "seed": 42,
            "metadata": {"team": "a"},
            "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}}},
        }))
        .unwrap();
        assert_eq!(dpo.method.objective, Objective::Dpo);
        assert_eq!(dpo.method.hyperparameters.beta, Some(Setting::Value(0.1)));
        let old = read(&json!({"training_file": "f", "model": "m",
                               "hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}))
        .unwrap();
        let hyper = old.method.hyperparameters;
        assert_eq!(
            (hyper.n_epochs, hyper.batch_size.value()),
            (Setting::Value(2), None)
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        for (field, value) in [
            ("integrations", json!([{"type": "wandb"}])),
            ("suffix", json!("s".repeat(65))),
            ("seed", json!(-1)),
            ("metadata", json!({"a": 1})),
            ("method.type", json!({"type": "reinforcement"})),
            ("method.dpo", json!({"type": "supervised", "dpo": {}})),
            (
                "method.supervised.hyperparameters.beta",
                json!({"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}),
            ),
            (
                "method.supervised.hyperparameters.n_epochs",
                json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}),
            ),
            ("learning_rate", json!(1)),
        ] {
            let mut body = json!({"training_file": "f", "model": "m"});
            let top = field.split('.').next().unwrap();
            body[top] = value;
            let error = read(&body).unwrap_err();
            assert_eq!(error.1.as_deref(), Some(field), "{}", error.0);
        }
        let both = json!({"training_file": "f", "model": "m", "hyperparameters": {},
                          "method": {"type": "supervised"}});
        assert_eq!(
            read(&both).unwrap_err().1.as_deref(),
            Some("hyperparameters")
        );
        let schema = CreateJob::schema();
        assert_eq!(schema["required"], json!(["model", "training_file"]));
    }
}
