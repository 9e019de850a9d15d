//! What the documentation and the samples tell users to apply is what the API server takes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path};

use hyprstream_api::{Adapter, Model, TrainingJob};
use kube::CustomResourceExt;
use serde::Deserialize;
use serde_json::Value;

/// Where an example stands, and what it is.
type Example = (String, Value);

/// Objects of our kinds in a text, those in Markdown in fences of their own or behind `<<EOF`.
fn examples(name: &str, text: &str) -> Vec<Example> {
    let is_yaml = Path::new(name).extension() == Some("yaml".as_ref());
    let mut documents = vec![String::new()];
    let mut is_inside = is_yaml;
    for line in text.lines() {
        let is_end = !is_yaml && (line.starts_with("```") || line == "EOF");
        if line == "---" || is_inside && is_end {
            documents.push(String::new());
            is_inside = is_yaml;
        } else if line == "```yaml" || line.ends_with("<<EOF") {
            is_inside = true;
        } else if is_inside {
            let document = documents.last_mut().unwrap();
            document.push_str(line);
            document.push('\n');
        }
    }
    let ours = documents.into_iter().filter(|one| {
        let mut lines = one.lines();
        lines.any(|line| line.starts_with("apiVersion: hyprstream.io/"))
    });
    let read = |one: String| {
        let value: Value =
            serde_yaml::from_str(&one).unwrap_or_else(|error| panic!("{name}: {error}\n{one}"));
        (format!("{name}: {}", value["kind"]), value)
    };
    ours.map(read).collect()
}

/// All that a user can copy.
fn all() -> Vec<Example> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = Vec::new();
    for (folder, extension) in [("", "md"), ("docs", "md"), ("deploy/samples", "yaml")] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|found| found == extension) {
                let name = format!("{folder}/{}", path.file_name().unwrap().to_string_lossy());
                all.extend(examples(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    all
}

/// What a schema refuses in a value, or would drop of it. CEL rules are not looked at.
fn faults(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let words = schema["enum"].as_array();
    if words.is_some_and(|words| !words.contains(value)) {
        found.push(format!("{path} is none of its words"));
    }
    let is_of_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        _ => true,
    };
    if !is_of_type {
        found.push(format!("{path} is of another type"));
    }
    if let Some(number) = value.as_f64() {
        let is_below = schema["minimum"]
            .as_f64()
            .is_some_and(|least| number < least);
        let is_above = schema["maximum"].as_f64().is_some_and(|most| number > most);
        if is_below || is_above {
            found.push(format!("{path} is out of bounds"));
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value[name.as_str().unwrap()].is_null() {
            found.push(format!("{path} lacks {name}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        found.extend(faults(&schema["items"], item, path));
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let additional = &schema["additionalProperties"];
        match schema["properties"].get(name) {
            Some(schema) => found.extend(faults(schema, value, &path)),
            None if additional.is_object() => found.extend(faults(additional, value, &path)),
            None => found.push(format!("{path} is no field")),
        }
    }
    found
}

fn check<K: CustomResourceExt + for<'de> Deserialize<'de>>(value: &Value) -> Vec<String> {
    let crd = serde_json::to_value(K::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = faults(&schema["properties"]["spec"], &value["spec"], "spec");
    if let Err(error) = K::deserialize(value) {
        found.push(error.to_string());
    }
    found
}

fn faults_of(value: &Value) -> Vec<String> {
    match value["kind"].as_str().unwrap() {
        "Model" => check::<Model>(value),
        "Adapter" => check::<Adapter>(value),
        "TrainingJob" => check::<TrainingJob>(value),
        other => vec![format!("the kind {other} is not ours")],
    }
}

#[test]
fn every_example_fits_the_schema_of_its_kind() {
    let all = all();
    for (name, value) in &all {
        assert_eq!(faults_of(value), [""; 0], "{name}");
    }
    for wanted in [
        "README.md",
        "docs/models.md",
        "docs/adapters.md",
        "docs/training-jobs.md",
    ] {
        assert!(
            all.iter().any(|(name, _)| name.contains(wanted)),
            "{wanted}"
        );
    }
    assert!(all.len() >= 11, "{}", all.len());
}

#[test]
fn what_does_not_fit_is_found() {
    let found = |spec: &str| {
        let text = format!(
            "```yaml\napiVersion: hyprstream.io/v1alpha1\nkind: TrainingJob\nmetadata: {{name: a}}\n\
             spec: {{modelRef: {{name: m}}, dataset: {{path: a, {spec}\n```\n"
        );
        let [(_, value)] = examples("a.md", &text).try_into().unwrap();
        faults_of(&value).join("; ")
    };
    assert_eq!(found("url: u}}"), "");
    for (spec, told) in [
        ("url: u}, steps: 2}", "spec.steps is no field"),
        (
            "url: u}, method: {rank: many}}",
            "spec.method.rank is of another type",
        ),
        (
            "url: u}, method: {rank: 0}}",
            "spec.method.rank is out of bounds",
        ),
        (
            "url: u}, output: {onSuccess: Serve}}",
            "spec.output.onSuccess is none of its words",
        ),
        ("configMap: {}}}", "spec.dataset.configMap lacks"),
    ] {
        let found = found(spec);
        assert!(found.contains(told), "{told}: {found}");
    }
}
