//! The OpenAPI document of a worker, made of the readers of requests and the types of answers.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    DetokenizeRequest, DetokenizeResponse, ErrorBody, Model, ModelList, TokenizeRequest,
    TokenizeResponse,
    adapters::{AdapterErrorBody, LoadAdapterRequest, UnloadAdapterRequest},
    chat::{ChatCompletion, ChatRequest},
    completion::{Completion, CompletionRequest},
    embeddings::{EmbeddingList, EmbeddingRequest},
    responses::{Response, ResponseRequest},
};

/// Errors that any request with a body may meet, with the reason for each.
const BODY_ERRORS: [(&str, &str); 9] = [
    (
        "400",
        "A field is missing, unknown, malformed or out of bounds.",
    ),
    ("401", "No API key, or a wrong one."),
    ("404", "No such model or adapter."),
    ("408", "The body took too long to come."),
    ("413", "The body is longer than what is read."),
    ("415", "The body is not declared as JSON."),
    ("429", "Too many requests wait already; see Retry-After."),
    ("500", "The model failed on this request."),
    (
        "503",
        "The model is being loaded, or this worker shuts down; see Retry-After.",
    ),
];

/// Errors of the routes that load and unload adapters.
const LOAD_ERRORS: [(&str, &str); 9] = [
    (
        "400",
        "A field is wrong, the name is taken, or the adapter is refused.",
    ),
    ("404", "There is nothing at that path, or by that name."),
    BODY_ERRORS[3],
    ("409", "The files have another digest."),
    BODY_ERRORS[4],
    BODY_ERRORS[5],
    BODY_ERRORS[7],
    ("501", "This worker loads no adapters on request."),
    BODY_ERRORS[8],
];

/// The document of the version `version` of the server.
pub fn document(version: &str) -> Value {
    let mut paths = Paths {
        generator: SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into())
            .into_generator(),
        paths: Map::new(),
    };
    let chat = ChatRequest::schema();
    paths.post::<ChatCompletion>(
        "/v1/chat/completions",
        "Answer in a conversation.",
        &chat,
        true,
    );
    let completion = CompletionRequest::schema();
    paths.post::<Completion>("/v1/completions", "Continue texts.", &completion, true);
    let responses = ResponseRequest::schema();
    paths.post::<Response>(
        "/v1/responses",
        "Answer in a conversation.",
        &responses,
        true,
    );
    let embeddings = EmbeddingRequest::schema();
    paths.post::<EmbeddingList>("/v1/embeddings", "Embed texts.", &embeddings, false);
    let tokenize = TokenizeRequest::schema();
    paths.post::<TokenizeResponse>(
        "/tokenize",
        "Tokens of a text or conversation.",
        &tokenize,
        false,
    );
    let detokenize = DetokenizeRequest::schema();
    paths.post::<DetokenizeResponse>("/detokenize", "Text of tokens.", &detokenize, false);
    paths.get_json::<ModelList>("/v1/models", "What is served.", &[]);
    let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}});
    paths.get_json::<Model>("/v1/models/{id}", "One of what is served.", &[id]);
    paths.adapters();
    paths.probes();
    let schemas = paths.generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {"title": "hyprstream worker", "version": version, "license": {
            "name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths.paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer",
                "description": "Only where the worker was started with a key."}},
        },
        // Both are true: with a key, and without where none is set.
        "security": [{}, {"key": []}],
    })
}

struct Paths {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Paths {
    fn schema<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().to_value()
    }

    fn add(&mut self, path: &str, method: &str, operation: Value) {
        let item = self.paths.entry(path).or_insert_with(|| json!({}));
        item[method] = operation;
    }

    fn errors(&mut self, statuses: &[(&str, &str)]) -> Map<String, Value> {
        let schema = self.schema::<ErrorBody>();
        let errors = statuses.iter().map(|(status, why)| {
            let content = json!({"application/json": {"schema": schema}});
            (
                (*status).to_owned(),
                json!({"description": why, "content": content}),
            )
        });
        errors.collect()
    }

    fn post<T: JsonSchema>(&mut self, path: &str, summary: &str, body: &Value, streams: bool) {
        let mut content = json!({"application/json": {"schema": self.schema::<T>()}});
        if streams {
            content["text/event-stream"] = json!({"schema": {"type": "string"}});
        }
        let mut responses = self.errors(&BODY_ERRORS);
        responses.insert(
            "200".to_owned(),
            json!({"description": "The answer.", "content": content}),
        );
        let operation = json!({
            "summary": summary,
            "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
            "responses": responses,
        });
        self.add(path, "post", operation);
    }

    fn get_json<T: JsonSchema>(&mut self, path: &str, summary: &str, parameters: &[Value]) {
        let mut responses = self.errors(&[BODY_ERRORS[1], BODY_ERRORS[2]]);
        let content = json!({"application/json": {"schema": self.schema::<T>()}});
        responses.insert(
            "200".to_owned(),
            json!({"description": "The answer.", "content": content}),
        );
        self.add(
            path,
            "get",
            json!({"summary": summary, "parameters": parameters, "responses": responses}),
        );
    }

    fn adapters(&mut self) {
        let error = self.schema::<AdapterErrorBody>();
        let text = json!({"text/plain": {"schema": {"type": "string"}}});
        for (path, summary, body) in [
            (
                "/v1/load_lora_adapter",
                "Load an adapter.",
                LoadAdapterRequest::schema(),
            ),
            (
                "/v1/unload_lora_adapter",
                "Unload an adapter.",
                UnloadAdapterRequest::schema(),
            ),
        ] {
            // A key is asked for before anything else is.
            let mut responses = self.errors(&[BODY_ERRORS[1]]);
            responses.insert(
                "200".to_owned(),
                json!({"description": "Done.", "content": text}),
            );
            for (status, why) in LOAD_ERRORS {
                let content = json!({"application/json": {"schema": error}});
                responses.insert(
                    status.to_owned(),
                    json!({"description": why, "content": content}),
                );
            }
            let operation = json!({
                "summary": summary,
                "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
                "responses": responses,
            });
            self.add(path, "post", operation);
        }
        let mut responses = self.errors(&[BODY_ERRORS[1], BODY_ERRORS[8]]);
        let text = json!({"type": "string"});
        let adapter = json!({"type": "object",
            "properties": {"name": text, "origin": {"enum": ["followed", "repository", "request"]},
                "scale": {"type": "number"}, "source": text, "commit": text, "folder": text,
                "state": {"enum": ["loading", "loaded", "failed"]}, "reason": text,
                "message": text, "serving": {"type": "object"}, "warning": text},
            "required": ["name", "origin", "scale", "source", "state"]});
        let schema = json!({"type": "object", "properties": {"object": {"const": "list"},
            "revision": text, "data": {"type": "array", "items": adapter}},
            "required": ["object", "data"]});
        let content = json!({"application/json": {"schema": schema}});
        responses.insert(
            "200".to_owned(),
            json!({"description": "All, also those that are not served.", "content": content}),
        );
        self.add(
            "/v1/lora_adapters",
            "get",
            json!({"summary": "Adapters.", "responses": responses}),
        );
    }

    fn probes(&mut self) {
        let text = json!({"text/plain": {"schema": {"type": "string"}}});
        for (path, summary) in [
            ("/health", "Whether the engine lives."),
            ("/ready", "Whether requests are answered."),
            ("/ping", "The same as /health."),
            ("/metrics", "Metrics in the form of Prometheus."),
        ] {
            let mut responses = json!({"200": {"description": "Yes.", "content": text}});
            if path != "/metrics" {
                responses["503"] = json!({"description": "No, and why.", "content": text});
            }
            let operation = json!({"summary": summary, "responses": responses, "security": []});
            if path == "/ping" {
                // What asks with it may use either.
                self.add(path, "post", operation.clone());
            }
            self.add(path, "get", operation);
        }
        let object = json!({"application/json": {"schema": {"type": "object"}}});
        for (path, summary) in [
            ("/version", "Version and commit."),
            ("/load", "How busy the worker is."),
            ("/openapi.json", "This document."),
        ] {
            let mut responses = self.errors(&[BODY_ERRORS[1]]);
            if path == "/load" {
                responses.extend(self.errors(&[BODY_ERRORS[8]]));
            }
            responses.insert(
                "200".to_owned(),
                json!({"description": "The answer.", "content": object}),
            );
            self.add(
                path,
                "get",
                json!({"summary": summary, "responses": responses}),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    map.values().for_each(|value| check(value, document));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = document("1");
        check(&document, &document);
        assert!(document["paths"].as_object().unwrap().len() >= 15);
    }

    #[test]
    fn bounds_and_fields_are_those_of_the_reader() {
        let chat = ChatRequest::schema();
        let fields = &chat["properties"];
        assert_eq!(chat["additionalProperties"], false);
        assert_eq!(chat["required"], json!(["model", "messages"]));
        assert_eq!(
            fields["temperature"],
            json!({"type": ["number", "null"], "minimum": 0.0, "maximum": 2.0})
        );
        assert_eq!(fields["n"]["maximum"], 8);
        assert_eq!(
            fields["messages"]["items"]["properties"]["role"]["enum"][4],
            "tool"
        );
        assert_eq!(fields["stream_options"]["additionalProperties"], false);
        assert_eq!(fields["store"]["enum"], json!([false, null]));
        // Every bound of a number is also what the reader refuses beyond.
        for (name, schema) in fields.as_object().unwrap() {
            for (bound, step) in [("minimum", -1.0), ("maximum", 1.0)] {
                let Some(bound) = schema[bound].as_f64().filter(|b| b.abs() < 1e15) else {
                    continue;
                };
                let body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}],
                    "logprobs": true, name: bound + step});
                let error = ChatRequest::from_json(body.to_string().as_bytes()).unwrap_err();
                assert_eq!(error.param.as_deref(), Some(name.as_str()), "{error}");
            }
        }
    }
}
