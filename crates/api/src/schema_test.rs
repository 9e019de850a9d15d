//! Whatever the schema lets the API server store can be decoded.

use kube::CustomResourceExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Adapter, Model, TrainingJob};

/// Values that the schema allows, those at its limits among them. CEL rules are not looked at: they
/// may only narrow what can be decoded anyway.
fn allowed(schema: &Value) -> Vec<Value> {
    let mut values = Vec::new();
    if schema["nullable"] == true {
        values.push(Value::Null);
    }
    if let Some(words) = schema["enum"].as_array() {
        values.extend(words.iter().cloned());
        return values;
    }
    let is_either = schema["x-kubernetes-int-or-string"] == true;
    match schema["type"].as_str() {
        Some("integer") => values.extend(limits(schema)),
        _ if is_either => {
            values.extend(limits(schema));
            values.push(json!("any text"));
        }
        Some("boolean") => values.push(json!(true)),
        Some("string") if schema["format"] == "date-time" => {
            values.push(json!("2026-01-01T00:00:00Z"));
        }
        Some("string") => values.extend([json!(""), json!("any text")]),
        Some("array") => {
            values.push(json!([]));
            values.extend(allowed(&schema["items"]).into_iter().map(|v| json!([v])));
        }
        Some("object") if !schema["additionalProperties"].is_null() => {
            let inner = allowed(&schema["additionalProperties"]);
            values.extend(inner.into_iter().map(|v| json!({"any key": v})));
        }
        Some("object") => values.extend(objects(schema)),
        other => panic!("a schema of type {other:?}: teach this test to make values of it"),
    }
    values
}

/// What a JSON number may be: the API server holds integers of 64 bits.
fn limits(schema: &Value) -> [Value; 2] {
    let limit = |name: &str, otherwise: i64| {
        #[allow(clippy::cast_possible_truncation, reason = "limits are whole numbers")]
        let limit = schema[name].as_f64().map(|l| l as i64);
        json!(limit.unwrap_or(otherwise))
    };
    [limit("minimum", i64::MIN), limit("maximum", i64::MAX)]
}

/// An object of what is required, and for each property one for each of its values.
fn objects(schema: &Value) -> Vec<Value> {
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let required: Map<String, Value> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|name| {
            let name = name.as_str().unwrap();
            let value = allowed(&properties[name]).pop().unwrap();
            (name.to_owned(), value)
        })
        .collect();
    let mut objects = vec![Value::Object(required.clone())];
    for (name, schema) in properties {
        for value in allowed(schema) {
            let mut object = required.clone();
            object.insert(name.clone(), value);
            objects.push(Value::Object(object));
        }
    }
    objects
}

/// Values that the schema of `K` allows, each decoded.
fn decode_all<K: CustomResourceExt + for<'de> Deserialize<'de>>(kind: &str) -> usize {
    let crd = serde_json::to_value(K::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let objects = allowed(schema);
    let count = objects.len();
    for mut object in objects {
        object["apiVersion"] = json!("hyprstream.io/v1alpha1");
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "m"});
        if let Err(error) = K::deserialize(&object) {
            panic!("{error}: {object}");
        }
    }
    count
}

#[test]
fn what_the_schema_allows_can_be_decoded() {
    let models = decode_all::<Model>("Model");
    assert!(models > 100, "{models}");
    let adapters = decode_all::<Adapter>("Adapter");
    assert!(adapters > 20, "{adapters}");
    let jobs = decode_all::<TrainingJob>("TrainingJob");
    assert!(jobs > 100, "{jobs}");
}
