//! How a Model is named where a namespace alone is not understood.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A Model by its namespace and name, written `NAMESPACE/MODEL`, in JSON too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    namespace: String,
    model: String,
}

/// A text that is no [`ModelName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be NAMESPACE/MODEL, names of lower-case letters, digits and '-'")]
pub struct InvalidModelName;

impl ModelName {
    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Model in it.
    pub fn model(&self) -> &str {
        &self.model
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.model)
    }
}

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, model) = text.split_once('/').ok_or(InvalidModelName)?;
        let is_name = |name: &str, dots: bool| {
            (1..=63).contains(&name.len())
                && name.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.')
                })
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if !is_name(namespace, false) || !is_name(model, true) {
            return Err(InvalidModelName);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            model: model.to_owned(),
        })
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| {
            let text: String = text.chars().take(140).collect();
            de::Error::custom(format!("{text:?} is no Model: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_text_also_in_json() {
        let name: ModelName = "a-b/m.v2".parse().unwrap();
        assert_eq!((name.namespace(), name.model()), ("a-b", "m.v2"));
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, "\"a-b/m.v2\"");
        assert_eq!(serde_json::from_str::<ModelName>(&json).unwrap(), name);
        let error = serde_json::from_str::<ModelName>("\"A/m\"").unwrap_err();
        assert!(error.to_string().contains("\"A/m\" is no Model"), "{error}");
    }

    #[test]
    fn what_kubernetes_does_not_call_a_namespace_and_an_object_is_no_name() {
        let long = format!("a/{}", "m".repeat(64));
        for text in [
            "m", "/m", "a/", "a/m/n", "A/m", "a/M", "a.b/m", "a/.m", "a/-", "a/m-", "a/m n", &long,
        ] {
            assert_eq!(text.parse::<ModelName>(), Err(InvalidModelName), "{text}");
        }
    }
}
