//! Schemas whose objects have the members that they name and no others.

use serde_json::{Map, Value};

/// What says of an object which further members it may have.
const OPENERS: [&str; 3] = [
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
];
/// What adds to the members that a schema names itself.
const COMPOSERS: [&str; 8] = [
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "$dynamicRef",
    "if",
    "dependentSchemas",
    "not",
];

/// `schema`, but an object that names its members and says nothing of others has no others. JSON
/// Schema allows any; a model that is led by the schema then invents some, and who wrote the
/// schema does not expect them. What the result allows `schema` allows as well.
///
/// A schema that has `allOf` somewhere stays as it is: its parts name the members of one object.
pub fn closed(mut schema: Value) -> Value {
    if !has(&schema, "allOf") {
        close(&mut schema);
    }
    schema
}

fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(members) => {
            members.contains_key(name) || members.values().any(|member| has(member, name))
        }
        Value::Array(items) => items.iter().any(|item| has(item, name)),
        _ => false,
    }
}

fn close(schema: &mut Value) {
    let Value::Object(members) = schema else {
        return;
    };
    let named = members.get("properties").is_some_and(Value::is_object);
    let says = |names: &[&str]| names.iter().any(|name| members.contains_key(*name));
    if named && !says(&OPENERS) && !says(&COMPOSERS) {
        members.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    // The parts of a schema that has members of its own would each forbid the others'.
    if !named {
        for name in ["anyOf", "oneOf"] {
            if let Some(Value::Array(parts)) = members.get_mut(name) {
                parts.iter_mut().for_each(close);
            }
        }
    }
    for name in ["properties", "$defs", "definitions"] {
        if let Some(Value::Object(parts)) = members.get_mut(name) {
            parts.values_mut().for_each(close);
        }
    }
    if let Some(Value::Array(items)) = members.get_mut("prefixItems") {
        items.iter_mut().for_each(close);
    }
    close_member(members, "items");
    close_member(members, "additionalProperties");
}

fn close_member(members: &mut Map<String, Value>, name: &str) {
    if let Some(member) = members.get_mut(name) {
        close(member);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_that_name_their_members_have_no_others() {
        let inner = json!({"type": "object", "properties": {"b": {"type": "string"}}});
        let shut = json!({"type": "object", "properties": {"b": {"type": "string"}},
            "additionalProperties": false});
        for (open, expected) in [
            (inner.clone(), shut.clone()),
            (
                json!({"type": "array", "items": inner}),
                json!({"type": "array", "items": shut}),
            ),
            (
                json!({"anyOf": [inner, {"type": "null"}]}),
                json!({"anyOf": [shut, {"type": "null"}]}),
            ),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": inner}}),
                json!({"$ref": "#/$defs/a", "$defs": {"a": shut}}),
            ),
            (
                json!({"properties": {}}),
                json!({"properties": {}, "additionalProperties": false}),
            ),
        ] {
            assert_eq!(closed(open), expected);
        }
    }

    #[test]
    fn what_the_author_says_stays() {
        let inner = json!({"properties": {"b": {}}});
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"properties": {"a": {}}, "unevaluatedProperties": {"type": "string"}}),
            json!({"allOf": [inner, {"properties": {"a": {}}}]}),
            json!({"properties": {"a": {}}, "anyOf": [{"properties": {"c": {}}}]}),
            json!({"properties": {"a": {}}, "$ref": "#/$defs/b"}),
            json!(true),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
