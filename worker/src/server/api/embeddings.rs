//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_engine::{InvalidRequest, Pooling, SubmitError};
use hyprstream_openai::{
    ApiError,
    completion::Prompt,
    embeddings::{
        Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, Pooling as WirePooling, Vector,
    },
};

use super::{Shared, check_length, compute, encode};
use crate::{
    backend::Loaded,
    server::{
        respond::{Failure, generation_error, submit_error},
        stack::Asked,
    },
};

/// Most tokens over all inputs of one request, as in the OpenAI API.
const MAX_TOKENS: usize = 300_000;

pub(super) async fn embed(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let _in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (asked, request, prompts) = compute(&app, move |loaded| {
        let request = EmbeddingRequest::from_json(&body)?;
        drop(body);
        let asked = Asked::of(&state, &request.model, &request.adapters)?;
        let prompts = prompts(loaded, &request)?;
        Ok((asked, request, prompts))
    })
    .await?;
    let stack = asked.take(&app).await?;
    let pooling = match request.pooling {
        WirePooling::Mean => Pooling::Mean,
        WirePooling::Last => Pooling::Last,
    };
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let engine = &app.loaded()?.engine;
    // Dropping it, when the client goes away, stops them.
    let vectors = engine
        .embed(prompts, pooling, stack.for_engine())
        .await
        .map_err(|error| generation_error(&error))?;
    let data = vectors
        .into_iter()
        .zip(0..)
        .map(|(vector, index)| Embedding {
            index,
            object: "embedding".to_owned(),
            embedding: on_the_wire(vector, &request),
        });
    let list = EmbeddingList {
        object: "list".to_owned(),
        data: data.collect(),
        model: request.model.clone(),
        usage: EmbeddingUsage {
            prompt_tokens: tokens as u64,
            total_tokens: tokens as u64,
        },
    };
    Ok(stack.tell(Json(list).into_response()))
}

fn prompts(loaded: &Loaded, request: &EmbeddingRequest) -> Result<Vec<Vec<u32>>, ApiError> {
    let own = loaded.engine.spec().hidden_size;
    if request
        .dimensions
        .is_some_and(|dimensions| dimensions != own)
    {
        let why = format!("the vectors of this model have {own} dimensions, and are not cut");
        return Err(ApiError::invalid("dimensions", why));
    }
    let mut prompts = Vec::with_capacity(request.inputs.len());
    let mut sum = 0;
    for input in &request.inputs {
        let tokens = match input {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => {
                check_length(loaded, text, "input")?;
                encode(loaded, text, request.add_special_tokens, "input")?
            }
        };
        // All are looked at before the first is computed.
        check(loaded, &tokens)?;
        sum += tokens.len();
        if sum > MAX_TOKENS {
            let why = format!("has more than {MAX_TOKENS} tokens: send it in several requests");
            return Err(ApiError::invalid("input", why).with_code("max_tokens_per_request"));
        }
        prompts.push(tokens);
    }
    Ok(prompts)
}

fn check(loaded: &Loaded, tokens: &[u32]) -> Result<(), ApiError> {
    let (vocab_size, limit) = (
        loaded.engine.spec().vocab_size,
        loaded.engine.max_model_len(),
    );
    let unknown = tokens.iter().find(|token| **token as usize >= vocab_size);
    let why = match (tokens.len(), unknown) {
        (0, _) => InvalidRequest::EmptyPrompt,
        (tokens, _) if tokens > limit => InvalidRequest::PromptTooLong { tokens, limit },
        (_, Some(&token)) => InvalidRequest::UnknownToken {
            name: "prompt",
            token,
            vocab_size,
        },
        _ => return Ok(()),
    };
    Err(submit_error(&SubmitError::Invalid(why), "input"))
}

fn on_the_wire(mut vector: Vec<f32>, request: &EmbeddingRequest) -> Vector {
    if request.normalize {
        let length = vector
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        if length > 0.0 {
            for x in &mut vector {
                *x = (f64::from(*x) / length) as f32;
            }
        }
    }
    if request.base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        Vector::Base64(STANDARD.encode(bytes))
    } else {
        Vector::Float(vector)
    }
}
