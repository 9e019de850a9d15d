//! `/v1/chat/completions`.

use std::sync::Arc;

use async_stream::stream;
use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::Stream;
use hyprstream_engine::{ChatTemplate, Guard, TemplateError, TemplateMessage, TokenLogprobs};
use hyprstream_openai::{
    ApiError,
    chat::{
        AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs,
        ChatRequest, Delta,
    },
};

use super::{Answer, Prepared, Shared, check_length, compute, logprobs};
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

pub(super) async fn complete(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = body::json(request, app.max_body_bytes).await?;
    let state = Arc::clone(&app);
    let (request, prepared) = compute(&app, move |loaded| {
        let request = ChatRequest::from_json(&body)?;
        state.identity.check(&request.model)?;
        let prompt = prompt(loaded, &request)?;
        let engine_request = generate::request(
            prompt,
            &request.sampling,
            &loaded.defaults,
            request.max_tokens,
            request.logprobs,
        );
        Ok((
            request,
            Prepared {
                requests: vec![engine_request],
            },
        ))
    })
    .await?;
    let usage = UsageCount::new(&prepared.requests);
    let engine = &app.loaded()?.engine;
    let choices = Choices::submit(engine, prepared.requests, request.sampling.n, "messages")?;
    let include_usage = request.sampling.stream_options.include_usage;
    let answer = Answer::new(&app, "chatcmpl-", request.model, include_usage);
    let with_logprobs = request.logprobs.is_some();
    if request.sampling.stream {
        Ok(sse::response(chunks(
            app,
            answer,
            choices,
            usage,
            with_logprobs,
            in_flight,
        )))
    } else {
        let whole = whole(&app, answer, choices, usage, with_logprobs).await?;
        Ok(Json(whole).into_response())
    }
}

/// The tokens of a conversation.
pub(super) fn prompt(loaded: &Loaded, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    let template = loaded.template.as_ref().ok_or_else(|| {
        let why = "this model has no chat template: use /v1/completions";
        ApiError::invalid("messages", why)
    })?;
    let texts = request.messages.iter().flat_map(|message| {
        [Some(message.content.as_str()), message.name.as_deref()]
            .into_iter()
            .flatten()
    });
    let mut guard = Guard::new(&loaded.tokenizer, texts);
    let messages: Vec<TemplateMessage> = request
        .messages
        .iter()
        .map(|message| TemplateMessage {
            role: message.role.as_str().to_owned(),
            content: guard.mark(&message.content),
            name: message.name.as_deref().map(|name| guard.mark(name)),
        })
        .collect();
    for message in &messages {
        check_length(loaded, &message.content, "messages")?;
    }
    let rendered = render(template, &messages, request.add_generation_prompt)?;
    check_length(loaded, &rendered, "messages")?;
    guard
        .encode(&rendered)
        .map_err(|error| ApiError::invalid("messages", error))
}

fn render(
    template: &ChatTemplate,
    messages: &[TemplateMessage],
    add_generation_prompt: bool,
) -> Result<String, ApiError> {
    template
        .render(messages, add_generation_prompt)
        .map_err(|error| match error {
            TemplateError::Refused(_) | TemplateError::TooMuchWork => {
                ApiError::invalid("messages", error)
            }
            // The template did not foresee this conversation. Its error names its own source, which
            // is public with the model.
            TemplateError::Failed(_) | TemplateError::Syntax(_) => {
                ApiError::invalid("messages", error).with_code("chat_template_failed")
            }
        })
}

async fn whole(
    app: &App,
    answer: Answer,
    mut choices: Choices,
    mut usage: UsageCount,
    with_logprobs: bool,
) -> Result<ChatCompletion, ApiError> {
    let mut texts = vec![String::new(); choices.len];
    let mut entries: Vec<Vec<TokenLogprobs>> = vec![Vec::new(); choices.len];
    let mut reasons = vec![""; choices.len];
    while let Some((index, event)) = choices.next().await {
        match event {
            ChoiceEvent::Piece(piece) => {
                texts[index].push_str(&piece.text);
                entries[index].extend(piece.logprobs);
            }
            ChoiceEvent::End(reason, stats) => {
                reasons[index] = reason.as_str();
                usage.add(&stats);
            }
            ChoiceEvent::Broken(error) => return Err(generation_error(&error)),
        }
    }
    let tokenizer = &app.loaded()?.tokenizer;
    let choices = texts
        .into_iter()
        .zip(entries)
        .zip(reasons)
        .zip(0..)
        .map(|(((text, entries), reason), index)| ChatChoice {
            index,
            message: AssistantMessage::new(text),
            logprobs: with_logprobs.then(|| logprobs::chat(tokenizer, &entries)),
            finish_reason: reason.to_owned(),
        })
        .collect();
    Ok(ChatCompletion {
        id: answer.id,
        object: "chat.completion".to_owned(),
        created: answer.created,
        model: answer.model,
        choices,
        usage: usage.usage(),
        system_fingerprint: answer.fingerprint,
    })
}

fn chunks(
    app: Arc<App>,
    answer: Answer,
    mut choices: Choices,
    mut usage: UsageCount,
    with_logprobs: bool,
    in_flight: InFlight,
) -> impl Stream<Item = Bytes> + Send {
    stream! {
        let _in_flight = in_flight;
        for index in 0..choices.len {
            let delta = Delta { role: Some("assistant".to_owned()), content: Some(String::new()) };
            yield sse::event(&chunk(&answer, index, delta, None, None));
        }
        while let Some((index, event)) = choices.next().await {
            match event {
                ChoiceEvent::Piece(piece) => {
                    let logprobs = with_logprobs
                        .then(|| app.loaded().ok())
                        .flatten()
                        .map(|loaded| logprobs::chat(&loaded.tokenizer, &piece.logprobs));
                    let delta = Delta { role: None, content: Some(piece.text) };
                    yield sse::event(&chunk(&answer, index, delta, logprobs, None));
                }
                ChoiceEvent::End(reason, stats) => {
                    usage.add(&stats);
                    let reason = Some(reason.as_str().to_owned());
                    yield sse::event(&chunk(&answer, index, Delta::default(), None, reason));
                }
                ChoiceEvent::Broken(error) => {
                    yield sse::event(&generation_error(&error).body());
                    yield sse::done();
                    return;
                }
            }
        }
        if answer.include_usage {
            let last = ChatChunk { usage: Some(Some(usage.usage())), ..empty(&answer) };
            yield sse::event(&last);
        }
        yield sse::done();
    }
}

fn chunk(
    answer: &Answer,
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<String>,
) -> ChatChunk {
    let choice = ChatChunkChoice {
        index: index as u32,
        delta,
        logprobs,
        finish_reason,
    };
    ChatChunk {
        choices: vec![choice],
        ..empty(answer)
    }
}

fn empty(answer: &Answer) -> ChatChunk {
    ChatChunk {
        id: answer.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: answer.created,
        model: answer.model.clone(),
        system_fingerprint: answer.fingerprint.clone(),
        choices: Vec::new(),
        usage: answer.include_usage.then_some(None),
    }
}
