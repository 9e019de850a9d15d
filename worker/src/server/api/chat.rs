//! `/v1/chat/completions`.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyprstream_engine::{
    FinishReason, Request as EngineRequest, TextPiece, TokenLogprobs, Tokenizer,
};
use hyprstream_openai::{
    ApiError, Usage,
    chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatRequest, Delta},
    tools::{FunctionCall, FunctionDelta, ToolCall, ToolCallDelta, ToolChoice},
};

use super::{
    Answer, Shared, compute, logprobs,
    prompt::{self, Form, ToolUse},
    with_ignored,
};
use crate::{
    backend::Loaded,
    server::{
        app::App,
        collect::{Collected, collect},
        constraint,
        generate::{self, Choices, UsageCount},
        reading::{Part, ReadPlan, Reader},
        respond::Failure,
        sse::{self, Chunks},
        stack::Asked,
    },
};

pub(super) async fn complete(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (asked, prepared) = compute(&app, move |loaded| {
        let request = ChatRequest::from_json(&body)?;
        drop(body);
        let asked = Asked::of(&state, &request.model, &request.sampling.adapters)?;
        Ok((asked, prepare(&state, loaded, request)?))
    })
    .await?;
    let (request, mut engine_request, plan, structured) = prepared;
    let stack = asked.take(&app).await?;
    engine_request.adapters = stack.for_engine();
    if let Some((form, param)) = structured {
        let grammar = constraint::grammar(form);
        engine_request.constraint = Some(constraint::compile(&app, grammar, param).await?);
    }
    let n = request.sampling.n;
    let requests = vec![engine_request];
    let mut usage = UsageCount::new(&requests, n, request.sampling.include_timings);
    let choices = Choices::submit(&app.loaded()?.engine, requests, n, "messages")?;
    let with_logprobs = request.logprobs.is_some();
    let with_prompt_logprobs = request.sampling.prompt_logprobs.is_some();
    let answer = Answer::new(
        &app,
        "chatcmpl-",
        &request.model,
        request.sampling.stream_options,
    );
    if request.sampling.stream {
        let chunks = ChatChunks::new(&app, &answer, &plan, choices.len(), with_logprobs)?;
        let streamed = sse::answer(chunks, choices, usage, (in_flight, stack.clone()));
        return Ok(with_ignored(stack.tell(streamed), &request.ignored));
    }
    let done = collect(choices, &plan, &mut usage).await?;
    let tokenizer = &app.loaded()?.tokenizer;
    let prompt_logprobs = with_prompt_logprobs
        .then(|| {
            done.first()
                .map(|first| logprobs::prompt(tokenizer, &first.prompt_logprobs))
        })
        .flatten();
    let choices = done
        .into_iter()
        .zip(0..)
        .map(|(choice, index)| whole(tokenizer, &choice, index, with_logprobs))
        .collect();
    let whole = ChatCompletion {
        id: answer.id,
        object: "chat.completion".to_owned(),
        created: answer.created,
        model: answer.model,
        choices,
        usage: usage.usage(),
        system_fingerprint: answer.fingerprint,
        prompt_logprobs,
    };
    let answer = stack.tell(Json(whole).into_response());
    Ok(with_ignored(answer, &request.ignored))
}

type Prepared = (ChatRequest, EngineRequest, ReadPlan, Form);

fn prepare(app: &App, loaded: &Loaded, mut request: ChatRequest) -> Result<Prepared, ApiError> {
    let with_tools = !request.prompt.tools.is_empty() && request.tool_choice != ToolChoice::None;
    let limit = loaded.engine.max_model_len();
    let rendered = prompt::render(app, loaded, &request.prompt, with_tools, limit)?;
    let wanted = ToolUse {
        choice: &request.tool_choice,
        parallel: request.parallel_tool_calls,
    };
    let structured = request.structured.take();
    let (mut plan, structured) =
        prompt::plan(app, loaded, &request.prompt, &rendered, &wanted, structured)?;
    plan.tell_thoughts = request.include_reasoning;
    let mut engine_request = generate::request(
        rendered.tokens,
        &request.sampling,
        &loaded.defaults,
        &loaded.tokenizer,
        request.max_tokens,
        request.logprobs,
    )?;
    engine_request.show_special_tokens |= prompt::needs_special_tokens(&plan);
    engine_request.stop.aside = plan.aside();
    Ok((request, engine_request, plan, structured))
}

fn whole(tokenizer: &Tokenizer, choice: &Collected, index: u32, with_logprobs: bool) -> ChatChoice {
    let text = choice.text();
    let tool_calls: Vec<ToolCall> = choice
        .calls()
        .into_iter()
        .map(|(id, name, arguments)| ToolCall {
            id,
            kind: "function".to_owned(),
            function: FunctionCall { name, arguments },
        })
        .collect();
    ChatChoice {
        index,
        message: AssistantMessage {
            role: "assistant".to_owned(),
            content: (!text.is_empty() || tool_calls.is_empty()).then_some(text),
            refusal: None,
            annotations: Vec::new(),
            reasoning_content: choice.thoughts(),
            tool_calls,
        },
        logprobs: with_logprobs.then(|| logprobs::chat(tokenizer, &choice.logprobs)),
        finish_reason: choice.reason.to_owned(),
    }
}

/// The events of a streamed answer. What is the same in all is written once.
struct ChatChunks {
    /// From `data:` to the bracket of the choices.
    head: Vec<u8>,
    include_usage: bool,
    continuous_usage: bool,
    choices: Vec<ChatStream>,
    /// Kept only where log-probabilities are told.
    tokenizer: Option<Arc<Tokenizer>>,
    parts: Vec<Part>,
}

struct ChatStream {
    reader: Reader,
    /// Log-probabilities of tokens whose text is not told yet.
    logprobs: VecDeque<TokenLogprobs>,
}

impl ChatChunks {
    fn new(
        app: &App,
        answer: &Answer,
        plan: &ReadPlan,
        len: usize,
        with_logprobs: bool,
    ) -> Result<Self, ApiError> {
        let choices = (0..len).map(|_| ChatStream {
            reader: plan.reader(),
            logprobs: VecDeque::new(),
        });
        Ok(Self {
            head: answer.head("chat.completion.chunk"),
            include_usage: answer.include_usage,
            continuous_usage: answer.continuous_usage,
            choices: choices.collect(),
            tokenizer: with_logprobs
                .then(|| app.loaded().map(|loaded| Arc::clone(&loaded.tokenizer)))
                .transpose()?,
            parts: Vec::new(),
        })
    }

    fn chunk(
        &mut self,
        index: usize,
        delta: &Delta,
        reason: Option<&str>,
        usage: Option<&UsageCount>,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":");
        sse::number(out, index);
        out.extend_from_slice(b",\"delta\":");
        sse::json(out, delta);
        out.extend_from_slice(b",\"logprobs\":");
        let entries = self.choices[index].logprobs.make_contiguous();
        match &self.tokenizer {
            Some(tokenizer) if !entries.is_empty() => {
                sse::json(out, &logprobs::chat(tokenizer, entries));
                self.choices[index].logprobs.clear();
            }
            _ => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"finish_reason\":");
        sse::json(out, &reason);
        out.extend_from_slice(b"}]");
        self.tail(usage, out);
    }

    fn tail(&self, usage: Option<&UsageCount>, out: &mut Vec<u8>) {
        if self.include_usage {
            out.extend_from_slice(b",\"usage\":");
            let usage = usage.filter(|_| self.continuous_usage);
            sse::json(out, &usage.map(UsageCount::usage));
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// Writes what the reader has found.
    fn parts(&mut self, index: usize, usage: &UsageCount, out: &mut Vec<u8>) {
        let mut parts = std::mem::take(&mut self.parts);
        for part in parts.drain(..) {
            if let Some(delta) = delta(part) {
                self.chunk(index, &delta, None, Some(usage), out);
            }
        }
        self.parts = parts;
    }
}

fn delta(part: Part) -> Option<Delta> {
    let call = |index, id: Option<String>, name: Option<String>, arguments| Delta {
        tool_calls: vec![ToolCallDelta {
            index,
            kind: id.is_some().then(|| "function".to_owned()),
            id,
            function: FunctionDelta {
                name,
                arguments: Some(arguments),
            },
        }],
        ..Delta::default()
    };
    Some(match part {
        Part::Text(text) => Delta {
            content: Some(text),
            ..Delta::default()
        },
        Part::Thought(text) => Delta {
            reasoning_content: Some(text),
            ..Delta::default()
        },
        Part::Call { index, id, name } => call(index, Some(id), Some(name), String::new()),
        Part::Arguments(index, text) => call(index, None, None, text),
        Part::CallEnd(_) => return None,
    })
}

impl Chunks for ChatChunks {
    fn begin(&mut self, out: &mut Vec<u8>) {
        let delta = Delta {
            role: Some("assistant".to_owned()),
            content: Some(String::new()),
            ..Delta::default()
        };
        for index in 0..self.choices.len() {
            self.chunk(index, &delta, None, None, out);
        }
    }

    fn piece(
        &mut self,
        index: usize,
        piece: TextPiece,
        usage: &UsageCount,
        out: &mut Vec<u8>,
    ) -> bool {
        let choice = &mut self.choices[index];
        choice.logprobs.extend(piece.logprobs);
        choice.reader.push(piece.text, &mut self.parts);
        // Tokens whose text is held back are told all the same, as they come.
        if self.parts.is_empty() && self.tokenizer.is_some() {
            let empty = Delta {
                content: Some(String::new()),
                ..Delta::default()
            };
            self.chunk(index, &empty, None, Some(usage), out);
        }
        self.parts(index, usage, out);
        !self.choices[index].reader.is_done()
    }

    fn end(&mut self, index: usize, reason: FinishReason, usage: &UsageCount, out: &mut Vec<u8>) {
        self.choices[index].reader.finish(&mut self.parts);
        self.parts(index, usage, out);
        let reason = match reason {
            FinishReason::Stop => self.choices[index].reader.stop_reason(),
            FinishReason::Length => reason.as_str(),
        };
        self.chunk(index, &Delta::default(), Some(reason), Some(usage), out);
    }

    fn finish(&mut self, usage: Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"],\"usage\":");
            sse::json(out, &usage);
            out.extend_from_slice(b"}\n\n");
        }
        sse::done(out);
    }
}
