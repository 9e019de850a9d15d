//! How a job learns.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A value, or the server's own choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting<T> {
    /// `"auto"`.
    Auto(Auto),
    /// The value.
    Value(T),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// `auto`.
    Auto,
}

impl<T> From<Option<T>> for Setting<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Auto(Auto::Auto), Self::Value)
    }
}

impl<T> Default for Setting<T> {
    fn default() -> Self {
        Self::Auto(Auto::Auto)
    }
}

impl<T: Copy> Setting<T> {
    /// The value, unless the server chooses.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Auto(_) => None,
            Self::Value(value) => Some(value),
        }
    }
}

/// What a job learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// To write what the data writes.
    #[default]
    Supervised,
    /// To prefer one answer to another.
    Dpo,
}

impl Objective {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
        }
    }
}

/// Numbers that a client may set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// How often every sample is seen.
    #[serde(default)]
    pub n_epochs: Setting<i64>,
    /// Samples of one update.
    #[serde(default)]
    pub batch_size: Setting<i64>,
    /// What the server's own learning rate is multiplied by.
    #[serde(default)]
    pub learning_rate_multiplier: Setting<f64>,
    /// Strength of the pull towards the reference; only of `dpo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<Setting<f64>>,
}

/// The method of a job: on the wire `{"type": T, T: {"hyperparameters": {...}}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Method {
    /// What it learns.
    pub objective: Objective,
    /// How.
    pub hyperparameters: Hyperparameters,
}

impl Serialize for Method {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.objective.name();
        let mut map = Map::new();
        map.insert("type".to_owned(), name.into());
        let parameters = serde_json::json!({"hyperparameters": self.hyperparameters});
        map.insert(name.to_owned(), parameters);
        map.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut map = Map::deserialize(deserializer)?;
        let kind = map.remove("type").unwrap_or(Value::Null);
        let objective: Objective = serde_json::from_value(kind).map_err(D::Error::custom)?;
        let own = map.remove(objective.name()).unwrap_or_default();
        let own = own.get("hyperparameters").cloned().unwrap_or_default();
        let hyperparameters = match own {
            Value::Null => Hyperparameters::default(),
            own => serde_json::from_value(own).map_err(D::Error::custom)?,
        };
        Ok(Self {
            objective,
            hyperparameters,
        })
    }
}
