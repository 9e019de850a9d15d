//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyprstream_openai::{
    ApiError, DetokenizeRequest, DetokenizeResponse, Ignored, TokenizeRequest, TokenizeResponse,
    tools::ToolChoice,
};

use super::{Shared, compute, prompt, with_ignored};
use crate::server::{app::App, respond::Failure, stack::Asked};

pub(super) async fn tokenize(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (answer, ignored) = compute(&app, move |loaded| {
        let request = TokenizeRequest::from_json(&body)?;
        let mut with_texts = false;
        let mut ignored = Ignored::default();
        let tokens = match request {
            TokenizeRequest::Chat(request) => {
                let asked = Asked::of(&state, &request.model, &request.sampling.adapters)?;
                asked.check(&state)?;
                ignored = request.ignored;
                let with_tools =
                    !request.prompt.tools.is_empty() && request.tool_choice != ToolChoice::None;
                // To be counted it may be longer than what can be answered.
                let limit = usize::MAX;
                prompt::render(&state, loaded, &request.prompt, with_tools, limit)?.tokens
            }
            TokenizeRequest::Text {
                model,
                prompt,
                add_special_tokens,
                return_token_strs,
            } => {
                with_texts = return_token_strs;
                check(&state, model.as_deref())?;
                loaded
                    .tokenizer
                    .encode(&prompt, add_special_tokens)
                    .map_err(|error| ApiError::invalid("prompt", error))?
            }
        };
        let max_model_len = loaded.engine.max_model_len();
        let answer = TokenizeResponse {
            count: tokens.len(),
            max_model_len,
            token_strs: with_texts.then(|| {
                let text = |&token: &u32| {
                    String::from_utf8_lossy(loaded.tokenizer.token_bytes(token)).into_owned()
                };
                tokens.iter().map(text).collect()
            }),
            tokens,
        };
        Ok((answer, ignored))
    })
    .await?;
    Ok(with_ignored(Json(answer).into_response(), &ignored))
}

pub(super) async fn detokenize(
    State(app): Shared,
    request: Request,
) -> Result<Json<DetokenizeResponse>, Failure> {
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let answer = compute(&app, move |loaded| {
        let request = DetokenizeRequest::from_json(&body)?;
        check(&state, request.model.as_deref())?;
        let vocab_size = loaded.engine.spec().vocab_size;
        if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocab_size) {
            let why = format!("{id} is not a token: the model has {vocab_size}");
            return Err(ApiError::invalid("tokens", why));
        }
        let prompt = loaded
            .tokenizer
            .decode(&request.tokens, false)
            .map_err(|error| ApiError::invalid("tokens", error))?;
        Ok(DetokenizeResponse { prompt })
    });
    Ok(Json(answer.await?))
}

/// Refuses a `model` that is not served here. Tokens are the same whatever the adapters are.
fn check(app: &App, model: Option<&str>) -> Result<(), ApiError> {
    model.map_or(Ok(()), |model| Asked::of(app, model, &[])?.check(app))
}
