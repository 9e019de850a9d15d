//! `/v1/completions`.

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
    completion::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, Prompt},
};

use super::{
    Answer, Shared, check_length, compute, encode, logprobs,
    offsets::{self, Offsets},
};
use crate::{
    backend::Loaded,
    server::{
        collect::{Collected, collect},
        constraint,
        generate::{self, Choices, UsageCount},
        reading::ReadPlan,
        respond::Failure,
        sse::{self, Chunks},
        stack::Asked,
    },
};

/// What the choices of an answer begin with and carry.
struct Shape {
    /// Of every prompt the text that is echoed before its choices.
    echoes: Vec<String>,
    /// Of every prompt its tokens and where they begin, if they stand in `logprobs` before those of
    /// the answer.
    prompts: Vec<Vec<(u32, usize)>>,
    /// Choices that are generated for each prompt.
    best_of: usize,
    with_logprobs: bool,
    shows_special: bool,
    with_prompt_logprobs: bool,
}

impl Shape {
    /// The log-probabilities of the prompt `index`, of which the engine tells `entries`.
    fn echo(
        &self,
        tokenizer: &Tokenizer,
        index: usize,
        entries: &[Option<TokenLogprobs>],
    ) -> CompletionLogprobs {
        let mut told = CompletionLogprobs::default();
        let tokens = self.prompts.get(index).into_iter().flatten();
        for (&(token, offset), entry) in tokens.zip(entries) {
            logprobs::push(tokenizer, token, entry.as_ref(), offset, &mut told);
        }
        told
    }

    /// Finds the offsets of answers to the prompt `index`.
    fn offsets(&self, index: usize) -> Offsets {
        Offsets::new(self.echoes[index].chars().count(), self.shows_special)
    }
}

pub(super) async fn complete(State(app): Shared, request: Request) -> Result<Response, Failure> {
    let in_flight = app.enter()?;
    let body = app.bodies.json(request).await?;
    let state = Arc::clone(&app);
    let (asked, mut request, mut requests, shape) = compute(&app, move |loaded| {
        let request = CompletionRequest::from_json(&body)?;
        drop(body);
        let asked = Asked::of(&state, &request.model, &request.sampling.adapters)?;
        let (requests, shape) = prepare(loaded, &request)?;
        Ok((asked, request, requests, shape))
    })
    .await?;
    let stack = asked.take(&app).await?;
    for request in &mut requests {
        request.adapters = stack.for_engine();
    }
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
            choices: (0..choices.len())
                .map(|index| CompletionStream {
                    begun: false,
                    offsets: shape.offsets(index / best_of),
                    told_chars: shape.echoes[index / best_of].chars().count(),
                    untold: VecDeque::new(),
                })
                .collect(),
            tokenizer,
            shape,
        };
        let streamed = sse::answer(chunks, choices, usage, (in_flight, stack.clone()));
        return Ok(stack.tell(streamed));
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
    Ok(stack.tell(Json(whole).into_response()))
}

fn prepare(
    loaded: &Loaded,
    request: &CompletionRequest,
) -> Result<(Vec<EngineRequest>, Shape), ApiError> {
    let tokenizer = &loaded.tokenizer;
    let invalid = |error| ApiError::invalid("prompt", error);
    let mut requests = Vec::with_capacity(request.prompts.len());
    let (mut echoes, mut echoed) = (Vec::new(), Vec::new());
    let echo_logprobs = request.echo && request.logprobs.is_some();
    for prompt in &request.prompts {
        let tokens = match prompt {
            Prompt::Text(text) => {
                check_length(loaded, text, "prompt")?;
                encode(loaded, text, true, "prompt")?
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
        if echo_logprobs {
            let text = echoes.last().map_or("", String::as_str);
            let begins = offsets::of_prompt(tokenizer, text, &tokens);
            echoed.push(tokens.iter().copied().zip(begins).collect());
        }
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
        prompts: echoed,
        best_of: request.best_of,
        with_logprobs: request.logprobs.is_some(),
        shows_special: !request.sampling.skip_special_tokens,
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
    let prompt = index as usize / n;
    let text = format!("{}{}", shape.echoes[prompt], choice.text());
    let mut told = shape.echo(tokenizer, prompt, &choice.prompt_logprobs);
    let (mut offsets, end) = (shape.offsets(prompt), text.chars().count());
    for entry in &choice.logprobs {
        // Tokens of what a stop text cut off begin at the end.
        let offset = offsets.next(tokenizer, entry.token).min(end);
        logprobs::push(tokenizer, entry.token, Some(entry), offset, &mut told);
    }
    CompletionChoice {
        index,
        text,
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
    choices: Vec<CompletionStream>,
    tokenizer: Arc<Tokenizer>,
    shape: Shape,
}

/// How far a choice is.
struct CompletionStream {
    /// Its echo was told.
    begun: bool,
    offsets: Offsets,
    /// Characters that were told.
    told_chars: usize,
    /// Tokens that begin beyond them: their text may still be cut off by a stop text.
    untold: VecDeque<(TokenLogprobs, usize)>,
}

impl CompletionStream {
    /// Takes what comes, and returns the columns of the tokens that begin within what is told.
    fn told(
        &mut self,
        tokenizer: &Tokenizer,
        entries: Vec<TokenLogprobs>,
        is_end: bool,
    ) -> CompletionLogprobs {
        for entry in entries {
            let offset = self.offsets.next(tokenizer, entry.token);
            self.untold.push_back((entry, offset));
        }
        let mut told = CompletionLogprobs::default();
        let end = self.told_chars;
        while let Some((entry, offset)) = self
            .untold
            .pop_front_if(|(_, offset)| is_end || *offset < end)
        {
            let offset = offset.min(end);
            logprobs::push(tokenizer, entry.token, Some(&entry), offset, &mut told);
        }
        told
    }
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
        if std::mem::replace(&mut self.choices[index].begun, true) {
            return;
        }
        let source = index / self.shape.best_of;
        let text = &self.shape.echoes[source];
        if text.is_empty() {
            return;
        }
        let has_logprobs = !self.shape.prompts.is_empty();
        let told = has_logprobs.then(|| self.shape.echo(&self.tokenizer, source, prompt));
        self.chunk(index, text, told.as_ref(), None, usage, out);
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
        let choice = &mut self.choices[index];
        choice.told_chars += piece.text.chars().count();
        let told = choice.told(&self.tokenizer, piece.logprobs, false);
        if !piece.text.is_empty() || !told.tokens.is_empty() {
            let told = self.shape.with_logprobs.then_some(&told);
            self.chunk(index, &piece.text, told, None, usage, out);
        }
        true
    }

    fn end(&mut self, index: usize, reason: FinishReason, usage: &UsageCount, out: &mut Vec<u8>) {
        self.echo(index, &[], usage, out);
        let told = self.choices[index].told(&self.tokenizer, Vec::new(), true);
        let told = (!told.tokens.is_empty()).then_some(&told);
        self.chunk(index, "", told, Some(reason), usage, out);
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
