//! What the engine keeps of a request for text while it runs.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{
    error::GenerationError,
    event::{Event, FinishReason, Stats, TokenLogprobs},
    observer::Observer,
    request::Request,
};
use crate::{
    grammar::{Constraint, Matcher, MatcherError},
    sampling::{self, Logprobs, SampleError, Sampler, Scratch, Tell},
    text::{Detokenizer, StopMatch, StopMatcher, Tokenizer},
};

/// From logits to events: sampling, detokenising, stopping, telling.
pub(crate) struct Answer {
    sampler: Sampler,
    matcher: Option<Matcher>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    ranks: bool,
    max_tokens: usize,
    min_tokens: usize,
    /// Tokens that end the answer.
    ending: Vec<u32>,
    events: mpsc::Sender<Event>,
    untold_tokens: Vec<u32>,
    untold_logprobs: Vec<TokenLogprobs>,
    untold_prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(super) stats: Stats,
    pub(super) first_step: Option<Instant>,
    latest_token: Option<Instant>,
    ended: bool,
}

/// No token can be chosen for a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdvanceError {
    #[error(transparent)]
    Sample(#[from] SampleError<MatcherError>),
    /// A mistake of ours or of a library, which must not end the engine.
    #[error("panic: {0}")]
    Panic(String),
}

/// What all answers of a thread need to go on.
pub(crate) struct Tools<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) scratch: &'a mut Scratch,
}

impl Answer {
    /// The answer to `request`, which was validated to generate at most `max_tokens`.
    pub(crate) fn new(
        request: &Request,
        max_tokens: usize,
        eos: &[u32],
        events: mpsc::Sender<Event>,
    ) -> Self {
        let stop = &request.stop;
        let mut ending = stop.tokens.clone();
        if !stop.ignore_eos {
            ending.extend_from_slice(eos);
        }
        let ranks = request.rank || request.logprobs.is_some();
        let stats = Stats {
            prompt_tokens: request.prompt.len(),
            cumulative_logprob: ranks.then_some(0.0),
            ..Stats::default()
        };
        // Nothing comes before the first token that its log-probability could depend on.
        let first = request.prompt_logprobs.map(|_| None);
        Self {
            sampler: Sampler::new(request.sampling.clone(), &request.prompt),
            matcher: request.constraint.as_ref().map(Constraint::start),
            detokenizer: Detokenizer::new(!request.show_special_tokens),
            stops: StopMatcher::new(
                stop.strings.clone(),
                stop.include_string,
                stop.aside.clone(),
            ),
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            ranks,
            max_tokens,
            min_tokens: stop.min_tokens,
            ending,
            events,
            untold_tokens: Vec::new(),
            untold_logprobs: Vec::new(),
            untold_prompt_logprobs: first.into_iter().collect(),
            stats,
            first_step: None,
            latest_token: None,
            ended: false,
        }
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes the logits of a position within the prompt, after which `token` comes.
    ///
    /// # Errors
    /// The logits are no numbers.
    pub(crate) fn score(&mut self, logits: &[f32], token: u32) -> Result<(), AdvanceError> {
        if let Some(count) = self.prompt_logprobs {
            let told = told(token, sampling::logprobs_of(logits, token, count)?);
            self.untold_prompt_logprobs.push(Some(told));
        }
        Ok(())
    }

    /// Takes the logits after the last token: chooses the next token, tells what it completes,
    /// and returns it. There is none when the answer ended without one.
    ///
    /// # Errors
    /// No token can be chosen.
    pub(crate) fn advance(
        &mut self,
        logits: &mut [f32],
        tools: &mut Tools<'_>,
    ) -> Result<Option<u32>, AdvanceError> {
        if self.max_tokens == 0 {
            self.clock(tools.observer, false);
            self.end(String::new(), FinishReason::Length, tools);
            return Ok(None);
        }
        let Some(sampled) = self.choose(logits, tools.scratch)? else {
            self.clock(tools.observer, false);
            let rest = self.stops.finish();
            self.end(rest, FinishReason::Stop, tools);
            return Ok(None);
        };
        let token = sampled.token;
        let complete = match &mut self.matcher {
            None => false,
            Some(matcher) => matcher.accept(token).map_err(SampleError::Grammar)?,
        };
        self.stats.completion_tokens += 1;
        self.clock(tools.observer, true);
        self.untold_tokens.push(token);
        if let Some(logprobs) = sampled.logprobs {
            if let Some(sum) = &mut self.stats.cumulative_logprob {
                *sum += f64::from(logprobs.chosen);
            }
            if self.logprobs.is_some() {
                self.untold_logprobs.push(told(token, logprobs));
            }
        }
        let (mut text, mut end) = self.read(token, tools.tokenizer);
        if complete && end.is_none_or(|reason| reason == FinishReason::Length) {
            text.push_str(&self.stops.finish());
            end = Some(FinishReason::Stop);
        }
        match end {
            Some(reason) => self.end(text, reason, tools),
            None => self.tell(text, None),
        }
        Ok(Some(token))
    }

    /// Ends the answer with an error.
    pub(crate) fn fail(&mut self, error: GenerationError, observer: &dyn Observer) {
        observer.finished(&self.stats, "error");
        self.tell(String::new(), Some(Err(error)));
    }

    /// The next token; none when a grammar allows no further one.
    fn choose(
        &mut self,
        logits: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Option<sampling::Sampled>, AdvanceError> {
        let early = self.stats.completion_tokens < self.min_tokens;
        let banned = if early { self.ending.as_slice() } else { &[] };
        let tell = match (self.logprobs, self.ranks) {
            (Some(count), _) => Tell::Logprobs(count),
            (None, true) => Tell::Logprobs(0),
            (None, false) => Tell::Token,
        };
        let grammar = self.matcher.as_mut();
        match self.sampler.sample(logits, banned, grammar, tell, scratch) {
            Ok(sampled) => Ok(Some(sampled)),
            Err(SampleError::Grammar(MatcherError::Ended)) => Ok(None),
            // Everything that the grammar still allows is forbidden otherwise.
            Err(SampleError::NothingPossible) if self.matcher.is_some() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The text that `token` settles, and whether it ends the answer.
    fn read(&mut self, token: u32, tokenizer: &Tokenizer) -> (String, Option<FinishReason>) {
        let count = self.stats.completion_tokens;
        if self.ending.contains(&token) {
            // What a character or a stop text lacked will not come any more.
            return (self.stops.finish(), Some(FinishReason::Stop));
        }
        let mut piece = String::new();
        self.detokenizer.push(tokenizer, token, &mut piece);
        let mut text = if count < self.min_tokens {
            self.stops.pass(&piece)
        } else {
            match self.stops.push(&piece) {
                StopMatch::None(text) => text,
                StopMatch::Stopped(text) => return (text, Some(FinishReason::Stop)),
            }
        };
        if count >= self.max_tokens {
            text.push_str(&self.stops.finish());
            return (text, Some(FinishReason::Length));
        }
        (text, None)
    }

    fn clock(&mut self, observer: &dyn Observer, is_token: bool) {
        let now = Instant::now();
        match self.latest_token.replace(now) {
            None => {
                self.stats.prefill_time = now - self.first_step.unwrap_or(now);
                if is_token {
                    observer.first_token(self.stats.time_to_first_token());
                }
            }
            Some(before) => {
                self.stats.decode_time += now - before;
                if is_token {
                    observer.next_token(now - before);
                }
            }
        }
    }

    fn end(&mut self, text: String, reason: FinishReason, tools: &Tools<'_>) {
        self.stats.finish_reason = Some(reason);
        tools.observer.finished(&self.stats, reason.as_str());
        self.tell(text, Some(Ok(reason)));
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
            prompt_logprobs: std::mem::take(&mut self.untold_prompt_logprobs),
            stats: self.stats,
            end,
        };
        // The channel has room for as many events as the answer can have, so this fails only
        // when the stream was dropped, which the next step sees.
        let _ = self.events.try_send(event);
    }
}

fn told(token: u32, logprobs: Logprobs) -> TokenLogprobs {
    TokenLogprobs {
        token,
        logprob: logprobs.chosen,
        top: logprobs.top,
    }
}
