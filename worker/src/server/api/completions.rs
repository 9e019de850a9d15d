//! `/v1/completions`.

use std::sync::Arc;

use async_stream::stream;
use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::Stream;
use hyprstream_engine::Request as EngineRequest;
use hyprstream_openai::{
    ApiError,
    completion::{
        Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest,
        Prompt,
    },
};

use super::{Answer, Shared, check_length, compute, logprobs};
use crate::{
    backend::Loaded,
    server::{
        app::App,
        body,
        drain::InFlight,
        generate::{self, ChoiceEvent, Choices, UsageCount},
        respond::{Failure, generation_error},
        sse,
    },
};

/// What the choices of an answer begin with and carry.
struct Shape {
    /// Of every choice the text that is echoed before it.
    echoes: Vec<String>,
    with_logprobs: bool,
}

pub(super) async fn complete(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = body::json(request, app.max_body_bytes).await?;
    let state = Arc::clone(&app);
    let (request, requests, shape) = compute(&app, move |loaded| {
        let request = CompletionRequest::from_json(&body)?;
        state.identity.check(&request.model)?;
        let (requests, shape) = prepare(loaded, &request)?;
        Ok((request, requests, shape))
    })
    .await?;
    let usage = UsageCount::new(&requests);
    let choices = Choices::submit(
        &app.loaded()?.engine,
        requests,
        request.sampling.n,
        "prompt",
    )?;
    let include_usage = request.sampling.stream_options.include_usage;
    let answer = Answer::new(&app, "cmpl-", request.model, include_usage);
    if request.sampling.stream {
        Ok(sse::response(chunks(
            app, answer, choices, usage, shape, in_flight,
        )))
    } else {
        Ok(Json(whole(&app, answer, choices, usage, shape).await?).into_response())
    }
}

fn prepare(
    loaded: &Loaded,
    request: &CompletionRequest,
) -> Result<(Vec<EngineRequest>, Shape), ApiError> {
    let tokenizer = &loaded.tokenizer;
    let invalid = |error| ApiError::invalid("prompt", error);
    let mut requests = Vec::with_capacity(request.prompts.len());
    let mut echoes = Vec::new();
    for prompt in &request.prompts {
        let (tokens, text) = match prompt {
            Prompt::Text(text) => {
                check_length(loaded, text, "prompt")?;
                (tokenizer.encode(text, true).map_err(invalid)?, text.clone())
            }
            Prompt::Tokens(tokens) => {
                let text = if request.echo {
                    tokenizer.decode(tokens, false).map_err(invalid)?
                } else {
                    String::new()
                };
                (tokens.clone(), text)
            }
        };
        let text = if request.echo { text } else { String::new() };
        echoes.extend(std::iter::repeat_n(text, request.sampling.n));
        requests.push(generate::request(
            tokens,
            &request.sampling,
            &loaded.defaults,
            Some(request.max_tokens),
            request.logprobs,
        ));
    }
    Ok((
        requests,
        Shape {
            echoes,
            with_logprobs: request.logprobs.is_some(),
        },
    ))
}

async fn whole(
    app: &App,
    answer: Answer,
    mut choices: Choices,
    mut usage: UsageCount,
    shape: Shape,
) -> Result<Completion, ApiError> {
    let tokenizer = &app.loaded()?.tokenizer;
    let with_logprobs = shape.with_logprobs;
    let mut offsets = vec![0; choices.len];
    let mut done: Vec<CompletionChoice> = shape
        .echoes
        .into_iter()
        .zip(0..)
        .map(|(text, index)| CompletionChoice {
            index,
            text,
            logprobs: with_logprobs.then(CompletionLogprobs::default),
            finish_reason: None,
        })
        .collect();
    while let Some((index, event)) = choices.next().await {
        let choice = &mut done[index];
        match event {
            ChoiceEvent::Piece(piece) => {
                choice.text.push_str(&piece.text);
                if let Some(to) = &mut choice.logprobs {
                    logprobs::completion(tokenizer, &piece.logprobs, &mut offsets[index], to);
                }
            }
            ChoiceEvent::End(reason, stats) => {
                choice.finish_reason = Some(reason.as_str().to_owned());
                usage.add(&stats);
            }
            ChoiceEvent::Broken(error) => return Err(generation_error(&error)),
        }
    }
    Ok(Completion {
        id: answer.id,
        object: "text_completion".to_owned(),
        created: answer.created,
        model: answer.model,
        choices: done,
        usage: usage.usage(),
        system_fingerprint: answer.fingerprint,
    })
}

fn chunks(
    app: Arc<App>,
    answer: Answer,
    mut choices: Choices,
    mut usage: UsageCount,
    shape: Shape,
    in_flight: InFlight,
) -> impl Stream<Item = Bytes> + Send {
    stream! {
        let _in_flight = in_flight;
        let mut offsets = vec![0; choices.len];
        for (index, echo) in shape.echoes.into_iter().enumerate() {
            if !echo.is_empty() {
                yield sse::event(&chunk(&answer, index, echo, None, None));
            }
        }
        while let Some((index, event)) = choices.next().await {
            match event {
                ChoiceEvent::Piece(piece) => {
                    let logprobs = shape
                        .with_logprobs
                        .then(|| app.loaded().ok())
                        .flatten()
                        .map(|loaded| {
                            let mut told = CompletionLogprobs::default();
                            let (tokenizer, offset) = (&loaded.tokenizer, &mut offsets[index]);
                            logprobs::completion(tokenizer, &piece.logprobs, offset, &mut told);
                            told
                        });
                    yield sse::event(&chunk(&answer, index, piece.text, logprobs, None));
                }
                ChoiceEvent::End(reason, stats) => {
                    usage.add(&stats);
                    let reason = Some(reason.as_str().to_owned());
                    yield sse::event(&chunk(&answer, index, String::new(), None, reason));
                }
                ChoiceEvent::Broken(error) => {
                    yield sse::event(&generation_error(&error).body());
                    yield sse::done();
                    return;
                }
            }
        }
        if answer.include_usage {
            let last = CompletionChunk { usage: Some(Some(usage.usage())), ..empty(&answer) };
            yield sse::event(&last);
        }
        yield sse::done();
    }
}

fn chunk(
    answer: &Answer,
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<String>,
) -> CompletionChunk {
    let choice = CompletionChoice {
        index: index as u32,
        text,
        logprobs,
        finish_reason,
    };
    CompletionChunk {
        choices: vec![choice],
        ..empty(answer)
    }
}

fn empty(answer: &Answer) -> CompletionChunk {
    CompletionChunk {
        id: answer.id.clone(),
        object: "text_completion".to_owned(),
        created: answer.created,
        model: answer.model.clone(),
        choices: Vec::new(),
        usage: answer.include_usage.then_some(None),
        system_fingerprint: answer.fingerprint.clone(),
    }
}
