//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use hyprstream_openai::{
    ApiError, DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
    tools::ToolChoice,
};

use super::{Shared, compute, prompt};
use crate::server::respond::Failure;

pub(super) async fn tokenize(
    State(app): Shared,
    request: Request,
) -> Result<Json<TokenizeResponse>, Failure> {
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let answer = compute(&app, move |loaded| {
        let request = TokenizeRequest::from_json(&body)?;
        let mut with_texts = false;
        let tokens = match request {
            TokenizeRequest::Chat(request) => {
                state.identity.check(&request.model)?;
                let with_tools =
                    !request.prompt.tools.is_empty() && request.tool_choice != ToolChoice::None;
                prompt::render(&state, loaded, &request.prompt, with_tools)?.tokens
            }
            TokenizeRequest::Text {
                model,
                prompt,
                add_special_tokens,
                return_token_strs,
            } => {
                with_texts = return_token_strs;
                model.map_or(Ok(()), |model| state.identity.check(&model))?;
                loaded
                    .tokenizer
                    .encode(&prompt, add_special_tokens)
                    .map_err(|error| ApiError::invalid("prompt", error))?
            }
        };
        let max_model_len = loaded.engine.max_model_len();
        Ok(TokenizeResponse {
            count: tokens.len(),
            max_model_len,
            token_strs: with_texts.then(|| {
                let text = |&token: &u32| {
                    String::from_utf8_lossy(loaded.tokenizer.token_bytes(token)).into_owned()
                };
                tokens.iter().map(text).collect()
            }),
            tokens,
        })
    });
    Ok(Json(answer.await?))
}

pub(super) async fn detokenize(
    State(app): Shared,
    request: Request,
) -> Result<Json<DetokenizeResponse>, Failure> {
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let answer = compute(&app, move |loaded| {
        let request = DetokenizeRequest::from_json(&body)?;
        request
            .model
            .map_or(Ok(()), |model| state.identity.check(&model))?;
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
