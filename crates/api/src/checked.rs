//! Objects that are decoded one by one.
//!
//! A list or a watch of `K` fails as a whole when one of its objects is not a `K`: the API server
//! holds to a schema, which may allow more than our types hold, and objects outlive schemas. One
//! such object must not hide all others. [`Checked`] decodes each by itself and never fails.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

/// An object as the API server holds it: a `K`, or why it is none. Its metadata can be read either
/// way, so that a bad object can be named, and so that it is known to be gone once it is.
///
/// Watch and list `Checked<K>` in place of `K`.
#[derive(Clone, Debug)]
pub struct Checked<K>(Content<K>);

#[derive(Clone, Debug)]
enum Content<K> {
    Good(K),
    Bad(Box<Bad>),
}

#[derive(Clone, Debug)]
struct Bad {
    metadata: ObjectMeta,
    raw: Value,
    error: DecodeError,
}

/// Why an object is not what its kind says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError(String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl<K> Checked<K> {
    /// The object.
    ///
    /// # Errors
    /// It is not a `K`.
    pub fn get(&self) -> Result<&K, &DecodeError> {
        match &self.0 {
            Content::Good(object) => Ok(object),
            Content::Bad(bad) => Err(&bad.error),
        }
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// It is not a `K`.
    pub fn get_mut(&mut self) -> Result<&mut K, &DecodeError> {
        match &mut self.0 {
            Content::Good(object) => Ok(object),
            Content::Bad(bad) => Err(&bad.error),
        }
    }

    /// The object itself.
    ///
    /// # Errors
    /// It is not a `K`; what it is comes back as it was.
    pub fn into_inner(self) -> Result<K, Self> {
        match self.0 {
            Content::Good(object) => Ok(object),
            bad @ Content::Bad(_) => Err(Self(bad)),
        }
    }

    /// What the API server sent, if it is not a `K`.
    pub fn raw(&self) -> Option<&Value> {
        match &self.0 {
            Content::Good(_) => None,
            Content::Bad(bad) => Some(&bad.raw),
        }
    }
}

impl<K> From<K> for Checked<K> {
    fn from(object: K) -> Self {
        Self(Content::Good(object))
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Checked<K> {
    /// Fails only on what is no JSON object.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        if !raw.is_object() {
            return Err(D::Error::custom("an object of Kubernetes is a JSON object"));
        }
        Ok(match serde_path_to_error::deserialize(&raw) {
            Ok(object) => Self(Content::Good(object)),
            Err(error) => Self(Content::Bad(Box::new(Bad {
                metadata: metadata(&raw["metadata"]),
                error: DecodeError(error.to_string()),
                raw,
            }))),
        })
    }
}

/// The metadata, or as much of it as names and dates the object.
fn metadata(raw: &Value) -> ObjectMeta {
    ObjectMeta::deserialize(raw).unwrap_or_else(|_| {
        let text = |key: &str| raw[key].as_str().map(str::to_owned);
        ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            generation: raw["generation"].as_i64(),
            labels: Deserialize::deserialize(&raw["labels"]).ok(),
            ..ObjectMeta::default()
        }
    })
}

impl<K: Resource> Resource for Checked<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn api_version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::api_version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn url_path(dt: &Self::DynamicType, namespace: Option<&str>) -> String {
        K::url_path(dt, namespace)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Content::Good(object) => object.meta(),
            Content::Bad(bad) => &bad.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Content::Good(object) => object.meta_mut(),
            Content::Bad(bad) => &mut bad.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{ResourceExt, core::ObjectList};
    use serde_json::json;

    use super::*;
    use crate::Model;

    fn model(name: &str, surge: &Value) -> Value {
        json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "Model",
            "metadata": {"name": name, "namespace": "ns", "uid": "u", "resourceVersion": "7"},
            "spec": {"source": {"url": "https://example.org/m"}, "rollout": {"maxSurge": surge}},
        })
    }

    #[test]
    fn one_bad_object_leaves_the_others_of_a_list_readable() {
        let list: ObjectList<Checked<Model>> = serde_json::from_value(json!({
            "apiVersion": "hyprstream.io/v1alpha1", "kind": "ModelList",
            "metadata": {"resourceVersion": "9"},
            "items": [model("good", &json!(1)), model("bad", &json!(3_000_000_000_u32))],
        }))
        .unwrap();
        let [good, bad] = list.items.as_slice() else {
            panic!("{list:?}");
        };
        assert_eq!(good.get().unwrap().name_any(), "good");
        let error = bad.get().unwrap_err().to_string();
        assert!(
            error.starts_with("spec.rollout.maxSurge: ") && error.contains("3000000000"),
            "{error}"
        );
        assert_eq!(
            (bad.name_any(), bad.namespace(), bad.resource_version()),
            ("bad".into(), Some("ns".into()), Some("7".into()))
        );
        let raw = bad.raw().unwrap();
        assert_eq!(raw["spec"]["rollout"]["maxSurge"], 3_000_000_000_u32);
    }

    #[test]
    fn any_json_object_has_a_name_if_it_says_one() {
        for object in [
            json!({}),
            json!({"metadata": null, "spec": 1}),
            json!({"metadata": {"name": "m", "creationTimestamp": "yesterday"}, "spec": 1}),
            json!({"apiVersion": "hyprstream.io/v9", "kind": "Pod", "metadata": {"name": "m"}}),
        ] {
            let said = object["metadata"]["name"].as_str().map(str::to_owned);
            let checked: Checked<Pod> = serde_json::from_value(object.clone()).unwrap();
            if let Err(error) = checked.get() {
                assert!(!error.to_string().is_empty());
                assert_eq!(checked.meta().name, said, "{object}");
            }
        }
        assert!(serde_json::from_value::<Checked<Pod>>(json!([])).is_err());
    }
}
