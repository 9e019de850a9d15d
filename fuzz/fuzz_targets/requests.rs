//! Bodies of requests: any bytes give a request or an error that can be told, never a panic.
#![no_main]

use hyprstream_openai::{
    ApiError, DetokenizeRequest, TokenizeRequest,
    adapters::{LoadAdapterRequest, UnloadAdapterRequest},
    chat::ChatRequest,
    completion::CompletionRequest,
    embeddings::EmbeddingRequest,
    responses::ResponseRequest,
};
use libfuzzer_sys::fuzz_target;

fn told<T>(read: Result<T, ApiError>) {
    if let Err(error) = read {
        let body = serde_json::to_string(&error.body()).expect("an error is JSON");
        assert!((400..500).contains(&error.kind.status()), "{body}");
        assert!(body.len() < 4_096, "errors do not repeat what was sent");
    }
}

fuzz_target!(|body: &[u8]| {
    told(ChatRequest::from_json(body));
    told(CompletionRequest::from_json(body));
    told(EmbeddingRequest::from_json(body));
    told(ResponseRequest::from_json(body));
    told(TokenizeRequest::from_json(body));
    told(DetokenizeRequest::from_json(body));
    told(LoadAdapterRequest::from_json(body));
    told(UnloadAdapterRequest::from_json(body));
});
