//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::try_join_all;
use hyprstream_engine::Pooling;
use hyprstream_openai::{
    ApiError,
    completion::Prompt,
    embeddings::{
        Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, Pooling as WirePooling, Vector,
    },
};

use super::{Shared, check_length, compute};
use crate::{
    backend::Loaded,
    server::respond::{Failure, generation_error},
};

pub(super) async fn embed(
    State(app): Shared,
    request: Request,
) -> Result<Json<EmbeddingList>, Failure> {
    let _in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (request, prompts) = compute(&app, move |loaded| {
        let request = EmbeddingRequest::from_json(&body)?;
        drop(body);
        state.identity.check(&request.model)?;
        let prompts = prompts(loaded, &request)?;
        Ok((request, prompts))
    })
    .await?;
    let pooling = match request.pooling {
        WirePooling::Mean => Pooling::Mean,
        WirePooling::Last => Pooling::Last,
    };
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let engine = &app.loaded()?.engine;
    // Dropping the rest when one fails, or when the client goes away, stops them.
    let vectors = prompts
        .into_iter()
        .map(|prompt| engine.embed(prompt, pooling));
    let vectors = try_join_all(vectors)
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
    Ok(Json(EmbeddingList {
        object: "list".to_owned(),
        data: data.collect(),
        model: request.model.clone(),
        usage: EmbeddingUsage {
            prompt_tokens: tokens as u64,
            total_tokens: tokens as u64,
        },
    }))
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
    request
        .inputs
        .iter()
        .map(|input| match input {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => {
                check_length(loaded, text, "input")?;
                loaded
                    .tokenizer
                    .encode(text, request.add_special_tokens)
                    .map_err(|error| ApiError::invalid("input", error))
            }
        })
        .collect()
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
