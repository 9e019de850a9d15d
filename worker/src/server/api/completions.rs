//! `/v1/completions`.

use std::sync::Arc;

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
    completion::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, Prompt},
};

use super::{Answer, Shared, check_length, compute, logprobs};
use crate::{
    backend::Loaded,
    server::{
        collect::{Collected, collect},
        constraint,
        generate::{self, Choices, UsageCount},
        reading::ReadPlan,
        respond::Failure,
        sse::{self, Chunks},
    },
};

/// What the choices of an answer begin with and carry.
struct Shape {
    /// Of every prompt the text that is echoed before its choices.
    echoes: Vec<String>,
    /// Of every prompt its first token.
    firsts: Vec<u32>,
    /// Choices that are generated for each prompt.
    best_of: usize,
    with_logprobs: bool,
    /// The prompt's tokens stand in `logprobs`, before those of the answer.
    echo_logprobs: bool,
    with_prompt_logprobs: bool,
}

pub(super) async fn complete(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (mut request, mut requests, shape) = compute(&app, move |loaded| {
        let request = CompletionRequest::from_json(&body)?;
        drop(body);
        state.identity.check(&request.model)?;
        let (requests, shape) = prepare(loaded, &request)?;
        Ok((request, requests, shape))
    })
    .await?;
    if let Some((form, param)) = request.structured.take() {
        let grammar = constraint::grammar(form);
        let constraint = constraint::compile(&app, grammar, param).await?;
        for request in &mut requests {
            request.constraint = Some(constraint.clone());
        }
    }
    let best_of = request.best_of;
    let mut usage = UsageCount::new(&requests, best_of, request.sampling.include_timings);
    let choices = Choices::submit(&app.loaded()?.engine, requests, best_of, "prompt")?;
    let answer = Answer::new(
        &app,
        "cmpl-",
        &request.model,
        request.sampling.stream_options,
    );
    let tokenizer = Arc::clone(&app.loaded()?.tokenizer);
    if request.sampling.stream {
        let chunks = CompletionChunks {
            head: answer.head("text_completion"),
            include_usage: answer.include_usage,
            continuous_usage: answer.continuous_usage,
            begun: vec![false; choices.len()],
            offsets: vec![0; choices.len()],
            tokenizer,
            shape,
        };
        return Ok(sse::answer(chunks, choices, usage, in_flight));
    }
    let done = collect(choices, &ReadPlan::default(), &mut usage).await?;
    let choices = best(done, best_of, request.sampling.n)
        .into_iter()
        .zip(0..)
        .map(|(choice, index)| whole(&tokenizer, &shape, request.sampling.n, &choice, index))
        .collect();
    let whole = Completion {
        id: answer.id,
        object: "text_completion".to_owned(),
        created: answer.created,
        model: answer.model,
        choices,
        usage: usage.usage(),
        system_fingerprint: answer.fingerprint,
    };
    Ok(Json(whole).into_response())
}

fn prepare(
    loaded: &Loaded,
    request: &CompletionRequest,
) -> Result<(Vec<EngineRequest>, Shape), ApiError> {
    let tokenizer = &loaded.tokenizer;
    let invalid = |error| ApiError::invalid("prompt", error);
    let mut requests = Vec::with_capacity(request.prompts.len());
    let (mut echoes, mut firsts) = (Vec::new(), Vec::new());
    let echo_logprobs = request.echo && request.logprobs.is_some();
    for prompt in &request.prompts {
        let tokens = match prompt {
            Prompt::Text(text) => {
                check_length(loaded, text, "prompt")?;
                tokenizer.encode(text, true).map_err(invalid)?
            }
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        echoes.push(match prompt {
            _ if !request.echo => String::new(),
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(tokens) => {
                check_tokens(loaded, tokens)?;
                tokenizer.decode(tokens, false).map_err(invalid)?
            }
        });
        firsts.push(tokens.first().copied().unwrap_or(0));
        let mut engine_request = generate::request(
            tokens,
            &request.sampling,
            &loaded.defaults,
            tokenizer,
            Some(request.max_tokens),
            request.logprobs,
        )?;
        if request.max_tokens == 0 && engine_request.prompt_logprobs.is_none() {
            // Nothing is generated, and the echo is known: the prompt is scored all the same, as
            // the engine has no requests of nothing.
            engine_request.prompt_logprobs = Some(0);
        }
        if echo_logprobs {
            engine_request.prompt_logprobs = engine_request.prompt_logprobs.max(request.logprobs);
        }
        engine_request.rank = request.best_of > request.sampling.n;
        requests.push(engine_request);
    }
    let shape = Shape {
        echoes,
        firsts,
        best_of: request.best_of,
        with_logprobs: request.logprobs.is_some(),
        echo_logprobs,
        with_prompt_logprobs: request.sampling.prompt_logprobs.is_some(),
    };
    Ok((requests, shape))
}

/// Refuses ids that cannot be decoded, as the engine does later for all.
fn check_tokens(loaded: &Loaded, tokens: &[u32]) -> Result<(), ApiError> {
    let vocab_size = loaded.engine.spec().vocab_size;
    match tokens.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            let why = format!("{id} is not a token: the model has {vocab_size}");
            Err(ApiError::invalid("prompt", why))
        }
    }
}

/// Of every `best_of` choices the `n` whose tokens are likeliest on average, best first.
fn best(mut done: Vec<Collected>, best_of: usize, n: usize) -> Vec<Collected> {
    if best_of == n {
        return done;
    }
    let score = |choice: &Collected| {
        let tokens = choice.stats.completion_tokens.max(1) as f64;
        choice.stats.cumulative_logprob.unwrap_or(f64::NEG_INFINITY) / tokens
    };
    let mut kept = Vec::new();
    while !done.is_empty() {
        let rest = done.split_off(best_of.min(done.len()));
        let mut group = std::mem::replace(&mut done, rest);
        // The first choice alone tells about the prompt.
        let told = group
            .first_mut()
            .map(|first| std::mem::take(&mut first.prompt_logprobs));
        group.sort_by(|a, b| score(b).total_cmp(&score(a)));
        group.truncate(n);
        if let (Some(first), Some(told)) = (group.first_mut(), told) {
            first.prompt_logprobs = told;
        }
        kept.extend(group);
    }
    kept
}

#[allow(clippy::needless_pass_by_value, reason = "callers are done with it")]
fn whole(
    tokenizer: &Tokenizer,
    shape: &Shape,
    n: usize,
    choice: &Collected,
    index: u32,
) -> CompletionChoice {
    let echo = &shape.echoes[index as usize / n];
    let mut told = CompletionLogprobs::default();
    let mut offset = 0;
    if shape.echo_logprobs {
        let first = shape.firsts[index as usize / n];
        logprobs::echo(
            tokenizer,
            first,
            &choice.prompt_logprobs,
            &mut offset,
            &mut told,
        );
    } else {
        offset = echo.chars().count();
    }
    logprobs::completion(tokenizer, &choice.logprobs, &mut offset, &mut told);
    CompletionChoice {
        index,
        text: format!("{echo}{}", choice.text()),
        logprobs: shape.with_logprobs.then_some(told),
        finish_reason: Some(choice.reason.to_owned()),
        prompt_logprobs: shape
            .with_prompt_logprobs
            .then(|| logprobs::prompt(tokenizer, &choice.prompt_logprobs)),
    }
}

/// The events of a streamed answer. What is the same in all is written once.
struct CompletionChunks {
    /// From `data:` to the bracket of the choices.
    head: Vec<u8>,
    include_usage: bool,
    continuous_usage: bool,
    /// Of every choice, whether its echo was told.
    begun: Vec<bool>,
    /// Of every choice, where its next token begins, in characters.
    offsets: Vec<usize>,
    tokenizer: Arc<Tokenizer>,
    shape: Shape,
}

impl CompletionChunks {
    fn chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<&CompletionLogprobs>,
        reason: Option<FinishReason>,
        usage: &UsageCount,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":");
        sse::number(out, index);
        out.extend_from_slice(b",\"text\":");
        sse::json(out, &text);
        out.extend_from_slice(b",\"logprobs\":");
        sse::json(out, &logprobs);
        out.extend_from_slice(b",\"finish_reason\":");
        sse::json(out, &reason.map(FinishReason::as_str));
        out.extend_from_slice(b"}]");
        if self.include_usage {
            out.extend_from_slice(b",\"usage\":");
            sse::json(out, &self.continuous_usage.then(|| usage.usage()));
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// Tells the echo of a choice, before its first piece.
    fn echo(
        &mut self,
        index: usize,
        prompt: &[Option<TokenLogprobs>],
        usage: &UsageCount,
        out: &mut Vec<u8>,
    ) {
        if std::mem::replace(&mut self.begun[index], true) {
            return;
        }
        let text = self.shape.echoes[index / self.shape.best_of].clone();
        if text.is_empty() {
            return;
        }
        let told = self.shape.echo_logprobs.then(|| {
            let mut told = CompletionLogprobs::default();
            let first = self.shape.firsts[index / self.shape.best_of];
            let offset = &mut self.offsets[index];
            logprobs::echo(&self.tokenizer, first, prompt, offset, &mut told);
            told
        });
        if told.is_none() {
            self.offsets[index] = text.chars().count();
        }
        self.chunk(index, &text, told.as_ref(), None, usage, out);
    }
}

impl Chunks for CompletionChunks {
    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn piece(
        &mut self,
        index: usize,
        piece: TextPiece,
        usage: &UsageCount,
        out: &mut Vec<u8>,
    ) -> bool {
        self.echo(index, &piece.prompt_logprobs, usage, out);
        let told = self.shape.with_logprobs.then(|| {
            let mut told = CompletionLogprobs::default();
            let offset = &mut self.offsets[index];
            logprobs::completion(&self.tokenizer, &piece.logprobs, offset, &mut told);
            told
        });
        let silent = piece.text.is_empty() && piece.logprobs.is_empty();
        if !silent {
            self.chunk(index, &piece.text, told.as_ref(), None, usage, out);
        }
        true
    }

    fn end(&mut self, index: usize, reason: FinishReason, usage: &UsageCount, out: &mut Vec<u8>) {
        self.echo(index, &[], usage, out);
        self.chunk(index, "", None, Some(reason), usage, out);
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

#[cfg(test)]
mod tests {
    use hyprstream_engine::Stats;

    use super::*;

    fn choice(logprob: f64, tokens: usize) -> Collected {
        Collected {
            parts: vec![],
            logprobs: vec![],
            prompt_logprobs: vec![],
            reason: "stop",
            stats: Stats {
                cumulative_logprob: Some(logprob),
                completion_tokens: tokens,
                ..Stats::default()
            },
        }
    }

    #[test]
    fn the_best_are_the_likeliest_per_token_within_each_prompt() {
        let done = vec![
            choice(-4.0, 1),
            choice(-4.0, 8),
            choice(-4.0, 2),
            choice(-1.0, 1),
            choice(-2.0, 1),
            choice(-3.0, 1),
        ];
        let kept: Vec<_> = best(done, 3, 2)
            .iter()
            .map(|c| c.stats.completion_tokens)
            .collect();
        assert_eq!(kept, [8, 2, 1, 1]);
    }
}
