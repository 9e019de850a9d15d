//! Several answers of the engine as one stream of events.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt};
use hyprstream_engine::{
    EngineHandle, FinishReason, GenerationDefaults, GenerationError, Request, SamplingParams,
    Stats, StopRules, TextPiece, TextStream, Tokenizer,
};
use hyprstream_openai::{ApiError, PromptTokensDetails, Sampling, Timings, Usage};

use super::respond::submit_error;

/// What happens to one choice.
#[derive(Debug)]
pub(super) enum ChoiceEvent {
    /// It goes on.
    Piece(TextPiece),
    /// It is complete.
    End(FinishReason, Stats),
    /// It broke off.
    Broken(GenerationError),
}

/// The choices of a request, all under way. Dropping them stops their generation.
#[derive(Debug)]
pub(super) struct Choices {
    streams: Vec<Option<TextStream>>,
    /// Where the next look begins, so that none is starved.
    next: usize,
}

impl Choices {
    /// Submits `n` choices for each of `requests`, numbered in that order. All are accepted, or
    /// none is begun. Errors of the prompt name the field `prompt`.
    pub(super) fn submit(
        engine: &EngineHandle,
        requests: Vec<Request>,
        n: usize,
        prompt: &str,
    ) -> Result<Self, ApiError> {
        let several = requests.len() > 1;
        let groups = requests.into_iter().map(|request| {
            let choices = (0..n).map(|choice| {
                let mut request = request.clone();
                // Choices of one request differ, and each is reproducible.
                request.sampling.seed = request
                    .sampling
                    .seed
                    .map(|seed| seed.wrapping_add(choice as u64));
                // The first tells about the prompt; to have it computed again for the others
                // would undo the sharing.
                if choice > 0 {
                    request.prompt_logprobs = None;
                }
                request
            });
            choices.collect()
        });
        let streams = engine.submit_groups(groups.collect()).map_err(|error| {
            let mut error = submit_error(&error, prompt);
            // Of several prompts there are too many, not of choices.
            if several && error.param.as_deref() == Some("n") {
                error.param = Some(prompt.to_owned());
            }
            error
        })?;
        Ok(Self {
            streams: streams.into_iter().map(Some).collect(),
            next: 0,
        })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Gives the choice `index` up, and says what it took until now.
    pub(super) fn close(&mut self, index: usize) -> Option<Stats> {
        self.streams[index].take().map(|stream| *stream.stats())
    }

    /// The next event of any choice; `None` when all have ended.
    pub(super) async fn next(&mut self) -> Option<(usize, ChoiceEvent)> {
        poll_fn(|context| self.poll(context)).await
    }

    /// The next event if it is there already; `Some(None)` when all have ended.
    #[allow(clippy::option_option, reason = "not yet, and never again, differ")]
    pub(super) fn try_next(&mut self) -> Option<Option<(usize, ChoiceEvent)>> {
        self.next().now_or_never()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, ChoiceEvent)>> {
        let len = self.streams.len();
        let mut open = false;
        for offset in 0..len {
            let index = (self.next + offset) % len;
            let slot = &mut self.streams[index];
            let Some(stream) = slot else { continue };
            open = true;
            let event = match stream.poll_next_unpin(context) {
                Poll::Pending => continue,
                Poll::Ready(Some(Ok(piece))) => ChoiceEvent::Piece(piece),
                Poll::Ready(Some(Err(error))) => {
                    *slot = None;
                    ChoiceEvent::Broken(error)
                }
                Poll::Ready(None) => {
                    let stats = *stream.stats();
                    *slot = None;
                    // A stream that ends without an error says why.
                    let reason = stats.finish_reason.unwrap_or(FinishReason::Stop);
                    ChoiceEvent::End(reason, stats)
                }
            };
            self.next = index + 1;
            return Poll::Ready(Some((index, event)));
        }
        if open {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }
}

/// Counts the tokens of a request: a prompt once, however many choices it has.
#[derive(Debug)]
pub(super) struct UsageCount {
    prompt_tokens: u64,
    choices_per_prompt: usize,
    cached_tokens: u64,
    /// Of every choice, what it generated.
    completions: Vec<u64>,
    timings: Option<Timings>,
}

impl UsageCount {
    /// Nothing generated yet for `requests` with `n` choices each.
    pub(super) fn new(requests: &[Request], n: usize, with_timings: bool) -> Self {
        let prompt_tokens = requests
            .iter()
            .map(|request| request.prompt.len() as u64)
            .sum();
        Self {
            prompt_tokens,
            choices_per_prompt: n,
            cached_tokens: 0,
            completions: vec![0; requests.len() * n],
            timings: with_timings.then(Timings::default),
        }
    }

    /// Counts the tokens of a piece.
    pub(super) fn piece(&mut self, index: usize, piece: &TextPiece) {
        self.completions[index] += piece.tokens.len() as u64;
    }

    /// Counts what a choice took in the end.
    pub(super) fn end(&mut self, index: usize, stats: &Stats) {
        self.completions[index] = stats.completion_tokens as u64;
        if index.is_multiple_of(self.choices_per_prompt) {
            self.cached_tokens += stats.cached_tokens as u64;
        }
        if let Some(longest) = &mut self.timings {
            let queue = stats.queue_time.as_secs_f64();
            let prefill = stats.prefill_time.as_secs_f64();
            longest.queue_seconds = longest.queue_seconds.max(queue);
            longest.prefill_seconds = longest.prefill_seconds.max(prefill);
            longest.decode_seconds = longest.decode_seconds.max(stats.decode_time.as_secs_f64());
            let first = stats.time_to_first_token().as_secs_f64();
            longest.time_to_first_token_seconds = longest.time_to_first_token_seconds.max(first);
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: self.cached_tokens,
            }),
            timings: self.timings,
            ..Usage::new(self.prompt_tokens, self.completions.iter().sum())
        }
    }
}

/// The engine's request for `prompt`.
pub(super) fn request(
    prompt: Vec<u32>,
    sampling: &Sampling,
    defaults: &GenerationDefaults,
    tokenizer: &Tokenizer,
    max_tokens: Option<u32>,
    logprobs: Option<usize>,
) -> Result<Request, ApiError> {
    let number = |value: Option<f64>| value.map(|value| value as f32);
    let params = SamplingParams {
        temperature: number(sampling.temperature)
            .or(defaults.temperature)
            .unwrap_or(1.0),
        top_p: number(sampling.top_p).or(defaults.top_p).unwrap_or(1.0),
        top_k: match sampling.top_k {
            Some(top_k) => usize::try_from(top_k).unwrap_or(0),
            None => defaults.top_k.unwrap_or(0),
        },
        min_p: number(sampling.min_p).or(defaults.min_p).unwrap_or(0.0),
        typical_p: number(sampling.typical_p).unwrap_or(1.0),
        seed: sampling.seed.map(i64::cast_unsigned),
        repetition_penalty: number(sampling.repetition_penalty)
            .or(defaults.repetition_penalty)
            .unwrap_or(1.0),
        presence_penalty: sampling.presence_penalty.unwrap_or(0.0) as f32,
        frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0) as f32,
        logit_bias: sampling
            .logit_bias
            .iter()
            .map(|(&token, &bias)| (token, bias))
            .collect(),
        allowed_tokens: sampling.allowed_token_ids.as_deref().map(Into::into),
        bad_words: bad_words(&sampling.bad_words, tokenizer)?,
    };
    let stop = StopRules {
        max_tokens: max_tokens.map(|tokens| tokens as usize),
        min_tokens: sampling.min_tokens as usize,
        strings: sampling.stop.clone(),
        aside: None,
        tokens: sampling.stop_token_ids.clone(),
        include_string: sampling.include_stop_str_in_output,
        ignore_eos: sampling.ignore_eos,
    };
    Ok(Request {
        prompt,
        sampling: params,
        stop,
        logprobs,
        show_special_tokens: !sampling.skip_special_tokens,
        prompt_logprobs: sampling.prompt_logprobs,
        priority: sampling.priority,
        cache_salt: sampling.cache_salt.as_deref().map(Into::into),
        ..Request::default()
    })
}

/// The tokens of `words`, at the beginning of a text and after a space, as vLLM takes them.
fn bad_words(words: &[String], tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let mut sequences = Vec::new();
    for word in words {
        for text in [
            word.trim_start().to_owned(),
            format!(" {}", word.trim_start()),
        ] {
            let tokens = tokenizer
                .encode(&text, false)
                .map_err(|error| ApiError::invalid("bad_words", error))?;
            if !tokens.is_empty() && !sequences.contains(&tokens) {
                sequences.push(tokens);
            }
        }
    }
    Ok(sequences)
}
