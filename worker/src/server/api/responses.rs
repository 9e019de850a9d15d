//! `/v1/responses`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use hyprstream_engine::{FinishReason, Request as EngineRequest, TextPiece, Tokenizer};
use hyprstream_openai::{
    ApiError, Usage,
    chat::TokenLogprob,
    responses::{
        IncompleteDetails, OutputContent, OutputItem, Response as Body, ResponseRequest, Sampled,
        event,
    },
    tools::ToolChoice,
};
use serde_json::{Value, json};

use super::{
    Shared, compute, context, exact, logprobs, new_id,
    prompt::{self, Form, ToolUse},
    with_ignored,
};
use crate::{
    backend::Loaded,
    clock::now,
    server::{
        app::App,
        constraint,
        generate::{self, Choices, UsageCount},
        reading::{Part, ReadPlan, Reader},
        respond::Failure,
        sse::{self, Chunks},
        stack::Asked,
    },
};

pub(super) async fn respond(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (asked, prepared) = compute(&app, move |loaded| {
        let request = ResponseRequest::from_json(&body)?;
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
    let used = sampled(&engine_request);
    let requests = vec![engine_request];
    let usage = UsageCount::new(&requests, 1, request.sampling.include_timings);
    let choices = Choices::submit(&app.loaded()?.engine, requests, 1, "input")?;
    let id = new_id("resp_");
    let body = Body::begun(id, now(), request.model, &request.repeated, used);
    let mut chunks = ResponseChunks {
        output: Output::new(body),
        reader: plan.reader(),
        parts: Vec::new(),
        reason: FinishReason::Stop,
        tokenizer: Arc::clone(&app.loaded()?.tokenizer),
        logprobs: Vec::new(),
    };
    let answer = if request.sampling.stream {
        sse::answer(chunks, choices, usage, (in_flight, stack.clone()))
    } else {
        sse::gather(&mut chunks, choices, usage).await?;
        Json(chunks.output.body).into_response()
    };
    Ok(with_ignored(stack.tell(answer), &request.ignored))
}

type Prepared = (ResponseRequest, EngineRequest, ReadPlan, Form);

fn prepare(app: &App, loaded: &Loaded, mut request: ResponseRequest) -> Result<Prepared, ApiError> {
    let with_tools = !request.prompt.tools.is_empty() && request.tool_choice != ToolChoice::None;
    let renamed = |mut error: ApiError| {
        if error.param.as_deref() == Some("messages") {
            error.param = Some("input".to_owned());
        }
        error
    };
    let limit = loaded.engine.max_model_len();
    let rendered = if request.truncate {
        let answer = request.max_output_tokens.unwrap_or(1) as usize;
        context::render_truncated(app, loaded, &request.prompt, with_tools, answer)
    } else {
        prompt::render(app, loaded, &request.prompt, with_tools, limit)
    };
    let rendered = rendered.map_err(renamed)?;
    let wanted = ToolUse {
        choice: &request.tool_choice,
        parallel: request.parallel_tool_calls,
    };
    let structured = request.structured.take().map(|form| (form, "text.format"));
    let (plan, structured) =
        prompt::plan(app, loaded, &request.prompt, &rendered, &wanted, structured)?;
    let mut engine_request = generate::request(
        rendered.tokens,
        &request.sampling,
        &loaded.defaults,
        &loaded.tokenizer,
        request.max_output_tokens,
        request.logprobs,
    )?;
    engine_request.show_special_tokens |= prompt::needs_special_tokens(&plan);
    engine_request.stop.aside = plan.aside();
    Ok((request, engine_request, plan, structured))
}

/// How `request` has its tokens chosen.
fn sampled(request: &EngineRequest) -> Sampled {
    Sampled {
        temperature: exact(request.sampling.temperature),
        top_p: exact(request.sampling.top_p),
    }
}

/// The items of an answer as they come, and the events that tell about them.
struct Output {
    body: Body,
    /// The item that is under way, if any.
    open: Option<OutputItem>,
    sequence: u64,
}

impl Output {
    fn new(body: Body) -> Self {
        Self {
            body,
            open: None,
            sequence: 0,
        }
    }

    fn event(&mut self, kind: &str, data: Value, out: &mut Vec<u8>) {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'\n');
        sse::event(out, &event(kind, self.sequence, data));
        self.sequence += 1;
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        for kind in ["response.created", "response.in_progress"] {
            let data = json!({"response": self.body});
            self.event(kind, data, out);
        }
    }

    /// Takes a part of the answer: it goes on with the item under way, or begins the next. Text
    /// takes `logprobs` along.
    fn part(&mut self, part: Part, logprobs: &mut Vec<TokenLogprob>, out: &mut Vec<u8>) {
        match part {
            Part::Text(text) => {
                if !matches!(self.open, Some(OutputItem::Message { .. })) {
                    self.start(message(new_id("msg_"), String::new(), "in_progress"), out);
                }
                let logprobs = std::mem::take(logprobs);
                self.append("response.output_text.delta", &text, logprobs, out);
            }
            Part::Thought(text) => {
                if !matches!(self.open, Some(OutputItem::Reasoning { .. })) {
                    self.start(reasoning(new_id("rs_"), String::new(), "in_progress"), out);
                }
                self.append("response.reasoning_text.delta", &text, Vec::new(), out);
            }
            Part::Call { id, name, .. } => {
                let call = OutputItem::FunctionCall {
                    id: new_id("fc_"),
                    status: "in_progress".to_owned(),
                    call_id: id,
                    name,
                    arguments: String::new(),
                };
                self.start(call, out);
            }
            Part::Arguments(_, text) => {
                let kind = "response.function_call_arguments.delta";
                self.append(kind, &text, Vec::new(), out);
            }
            Part::CallEnd(_) => self.close("completed", out),
        }
    }

    /// Begins an item and, where it has parts, its part.
    fn start(&mut self, item: OutputItem, out: &mut Vec<u8>) {
        self.close("completed", out);
        let mut shown = item.clone();
        let part = match &mut shown {
            OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => {
                content.pop()
            }
            OutputItem::FunctionCall { .. } => None,
        };
        let index = self.body.output.len();
        let id = id(&item).to_owned();
        let data = json!({"output_index": index, "item": shown});
        self.event("response.output_item.added", data, out);
        if let Some(part) = part {
            let data =
                json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.event("response.content_part.added", data, out);
        }
        self.open = Some(item);
    }

    fn append(
        &mut self,
        kind: &str,
        text: &str,
        mut logprobs: Vec<TokenLogprob>,
        out: &mut Vec<u8>,
    ) {
        let index = self.body.output.len();
        let Some(item) = &mut self.open else { return };
        let mut data = json!({"item_id": id(item), "output_index": index, "delta": text});
        match item {
            OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => {
                data["content_index"] = 0.into();
                if kind == "response.output_text.delta" {
                    data["logprobs"] = json!(logprobs);
                }
                match content.first_mut() {
                    Some(OutputContent::OutputText {
                        text: so_far,
                        logprobs: told,
                        ..
                    }) => {
                        so_far.push_str(text);
                        told.append(&mut logprobs);
                    }
                    Some(OutputContent::ReasoningText { text: so_far }) => so_far.push_str(text),
                    None => {}
                }
            }
            OutputItem::FunctionCall { arguments, .. } => arguments.push_str(text),
        }
        self.event(kind, data, out);
    }

    /// Ends the item under way.
    fn close(&mut self, now: &str, out: &mut Vec<u8>) {
        let Some(mut item) = self.open.take() else {
            return;
        };
        let index = self.body.output.len();
        let item_id = id(&item).to_owned();
        match &mut item {
            OutputItem::Message {
                content, status, ..
            } => {
                now.clone_into(status);
                if let Some(part @ OutputContent::OutputText { text, logprobs, .. }) =
                    content.first()
                {
                    let part = part.clone();
                    let data = json!({"item_id": item_id, "output_index": index,
                        "content_index": 0, "text": text, "logprobs": logprobs});
                    self.event("response.output_text.done", data, out);
                    let data = json!({"item_id": item_id, "output_index": index,
                        "content_index": 0, "part": part});
                    self.event("response.content_part.done", data, out);
                }
            }
            OutputItem::Reasoning {
                content, status, ..
            } => {
                now.clone_into(status);
                if let Some(part @ OutputContent::ReasoningText { text }) = content.first() {
                    let (text, part) = (text.clone(), part.clone());
                    let data = json!({"item_id": item_id, "output_index": index,
                        "content_index": 0, "text": text});
                    self.event("response.reasoning_text.done", data, out);
                    let data = json!({"item_id": item_id, "output_index": index,
                        "content_index": 0, "part": part});
                    self.event("response.content_part.done", data, out);
                }
            }
            OutputItem::FunctionCall {
                status,
                arguments,
                name,
                ..
            } => {
                now.clone_into(status);
                let data = json!({"item_id": item_id, "output_index": index, "name": name,
                    "arguments": arguments});
                self.event("response.function_call_arguments.done", data, out);
            }
        }
        let data = json!({"output_index": index, "item": item});
        self.event("response.output_item.done", data, out);
        self.body.output.push(item);
    }

    fn end(&mut self, reason: FinishReason, usage: Usage, out: &mut Vec<u8>) {
        let cut = reason == FinishReason::Length;
        let (word, kind) = if cut {
            ("incomplete", "response.incomplete")
        } else {
            ("completed", "response.completed")
        };
        self.close(word, out);
        word.clone_into(&mut self.body.status);
        self.body.incomplete_details = cut.then(|| IncompleteDetails {
            reason: "max_output_tokens".to_owned(),
        });
        self.body.completed_at = Some(now());
        self.body.usage = Some(usage.into());
        let data = json!({"response": self.body});
        self.event(kind, data, out);
    }
}

fn id(item: &OutputItem) -> &str {
    match item {
        OutputItem::Message { id, .. }
        | OutputItem::Reasoning { id, .. }
        | OutputItem::FunctionCall { id, .. } => id,
    }
}

fn message(id: String, text: String, status: &str) -> OutputItem {
    OutputItem::Message {
        id,
        status: status.to_owned(),
        role: "assistant".to_owned(),
        content: vec![OutputContent::OutputText {
            text,
            annotations: Vec::new(),
            logprobs: Vec::new(),
        }],
    }
}

fn reasoning(id: String, text: String, status: &str) -> OutputItem {
    OutputItem::Reasoning {
        id,
        status: status.to_owned(),
        summary: Vec::new(),
        content: vec![OutputContent::ReasoningText { text }],
    }
}

/// The events of a streamed answer.
struct ResponseChunks {
    output: Output,
    reader: Reader,
    parts: Vec<Part>,
    reason: FinishReason,
    tokenizer: Arc<Tokenizer>,
    /// Of tokens whose text is not told yet.
    logprobs: Vec<TokenLogprob>,
}

impl ResponseChunks {
    fn parts(&mut self, out: &mut Vec<u8>) {
        // Tokens of thoughts and calls are told by no item.
        let is_text = |part: &Part| matches!(part, Part::Text(_));
        if !self.parts.is_empty() && !self.parts.iter().any(is_text) {
            self.logprobs.clear();
        }
        for part in self.parts.drain(..) {
            self.output.part(part, &mut self.logprobs, out);
        }
    }
}

impl Chunks for ResponseChunks {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.output.begin(out);
    }

    fn piece(&mut self, _: usize, piece: TextPiece, _: &UsageCount, out: &mut Vec<u8>) -> bool {
        self.logprobs
            .extend(logprobs::rows(&self.tokenizer, &piece.logprobs));
        self.reader.push(piece.text, &mut self.parts);
        self.parts(out);
        !self.reader.is_done()
    }

    fn end(&mut self, _: usize, reason: FinishReason, _: &UsageCount, out: &mut Vec<u8>) {
        self.reader.finish(&mut self.parts);
        self.parts(out);
        self.reason = reason;
    }

    fn broken(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.output.close("incomplete", out);
        let error = error.body().error;
        "failed".clone_into(&mut self.output.body.status);
        self.output.body.error = Some(error);
        let data = json!({"response": self.output.body});
        self.output.event("response.failed", data, out);
    }

    fn finish(&mut self, usage: Usage, out: &mut Vec<u8>) {
        self.output.end(self.reason, usage, out);
    }
}
