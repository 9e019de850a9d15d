//! What the engine keeps of a request while it runs.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{
    event::{Event, FinishReason, GenerationError, Stats, TokenLogprobs},
    observer::Observer,
    request::Request,
};
use crate::{
    sampling::{SampleError, Sampler},
    text::{Detokenizer, StopMatch, StopMatcher, Tokenizer},
};

/// From logits to events: sampling, detokenising, stopping, telling.
pub(crate) struct Answer {
    sampler: Sampler,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    logprobs: Option<usize>,
    max_tokens: usize,
    min_tokens: usize,
    /// Tokens that end the answer.
    ending: Vec<u32>,
    events: mpsc::Sender<Event>,
    untold_tokens: Vec<u32>,
    untold_logprobs: Vec<TokenLogprobs>,
    stats: Stats,
    submitted: Instant,
    first_step: Option<Instant>,
    latest_token: Option<Instant>,
    ended: bool,
}

impl Answer {
    /// The answer to `request`, which was validated to generate at most `max_tokens`.
    pub(crate) fn new(
        request: Request,
        max_tokens: usize,
        eos: &[u32],
        events: mpsc::Sender<Event>,
    ) -> (Vec<u32>, Self) {
        let stop = request.stop;
        let mut ending = stop.tokens;
        if !stop.ignore_eos {
            ending.extend_from_slice(eos);
        }
        let stats = Stats {
            prompt_tokens: request.prompt.len(),
            ..Stats::default()
        };
        let answer = Self {
            sampler: Sampler::new(request.sampling, &request.prompt),
            detokenizer: Detokenizer::new(!request.show_special_tokens),
            matcher: StopMatcher::new(stop.strings, stop.include_string),
            logprobs: request.logprobs,
            max_tokens,
            min_tokens: stop.min_tokens,
            ending,
            events,
            untold_tokens: Vec::new(),
            untold_logprobs: Vec::new(),
            stats,
            submitted: Instant::now(),
            first_step: None,
            latest_token: None,
            ended: false,
        };
        (request.prompt, answer)
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Notes the first step of the request, and says whether it was that.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let first = self.first_step.is_none();
        if first {
            self.first_step = Some(now);
            self.stats.queue_time = now - self.submitted;
        }
        first
    }

    /// Whether the request had a step.
    pub(crate) fn has_begun(&self) -> bool {
        self.first_step.is_some()
    }

    /// Chooses the next token from `logits`, tells what it completes, and returns it.
    ///
    /// # Errors
    /// No token can be chosen.
    pub(crate) fn advance(
        &mut self,
        logits: &mut [f32],
        tokenizer: &Tokenizer,
        observer: &dyn Observer,
    ) -> Result<u32, SampleError> {
        let early = self.stats.completion_tokens < self.min_tokens;
        let banned = if early { self.ending.as_slice() } else { &[] };
        let sampled = self.sampler.sample(logits, banned, self.logprobs)?;
        let token = sampled.token;
        self.stats.completion_tokens += 1;
        self.clock(observer);
        self.untold_tokens.push(token);
        if let Some(logprobs) = sampled.logprobs {
            let (logprob, top) = (logprobs.chosen, logprobs.top);
            self.untold_logprobs.push(TokenLogprobs {
                token,
                logprob,
                top,
            });
        }
        let (text, end) = self.read(token, tokenizer);
        if let Some(reason) = end {
            self.stats.finish_reason = Some(reason);
            observer.finished(&self.stats, reason.as_str());
        }
        self.tell(text, end.map(Ok));
        Ok(token)
    }

    /// Ends the answer with an error.
    pub(crate) fn fail(&mut self, error: GenerationError, observer: &dyn Observer) {
        observer.finished(&self.stats, "error");
        self.tell(String::new(), Some(Err(error)));
    }

    /// The text that `token` settles, and whether it ends the answer.
    fn read(&mut self, token: u32, tokenizer: &Tokenizer) -> (String, Option<FinishReason>) {
        let count = self.stats.completion_tokens;
        if self.ending.contains(&token) {
            // What a character or a stop text lacked will not come any more.
            return (self.matcher.finish(), Some(FinishReason::Stop));
        }
        let mut piece = String::new();
        self.detokenizer.push(tokenizer, token, &mut piece);
        let mut text = if count < self.min_tokens {
            self.matcher.pass(&piece)
        } else {
            match self.matcher.push(&piece) {
                StopMatch::None(text) => text,
                StopMatch::Stopped(text) => return (text, Some(FinishReason::Stop)),
            }
        };
        if count >= self.max_tokens {
            text.push_str(&self.matcher.finish());
            return (text, Some(FinishReason::Length));
        }
        (text, None)
    }

    fn clock(&mut self, observer: &dyn Observer) {
        let now = Instant::now();
        match self.latest_token.replace(now) {
            None => {
                self.stats.prefill_time = now - self.first_step.unwrap_or(now);
                observer.first_token(self.stats.time_to_first_token());
            }
            Some(before) => {
                self.stats.decode_time += now - before;
                observer.next_token(now - before);
            }
        }
    }

    fn tell(&mut self, text: String, end: Option<Result<FinishReason, GenerationError>>) {
        self.ended = end.is_some();
        if text.is_empty() && end.is_none() && self.logprobs.is_none() {
            return;
        }
        let event = Event {
            text,
            tokens: std::mem::take(&mut self.untold_tokens),
            logprobs: std::mem::take(&mut self.untold_logprobs),
            prompt_logprobs: Vec::new(),
            stats: self.stats,
            end,
        };
        // The channel has room for as many events as the answer can have, so this fails only
        // when the stream was dropped, which the next step sees.
        let _ = self.events.try_send(event);
    }
}
