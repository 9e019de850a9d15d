//! Several answers of the engine as one stream of events.

use std::pin::Pin;

use futures::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use hyprstream_engine::{
    EngineHandle, FinishReason, GenerationDefaults, GenerationError, Request, SamplingParams,
    Stats, StopRules, TextPiece, TextStream,
};
use hyprstream_openai::{ApiError, Sampling, Usage};

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

type ChoiceStream = Pin<Box<dyn Stream<Item = (usize, ChoiceEvent)> + Send>>;

/// The choices of a request, all under way. Dropping them stops their generation.
pub(super) struct Choices {
    streams: SelectAll<ChoiceStream>,
    /// How many.
    pub(super) len: usize,
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
        let mut streams: Vec<ChoiceStream> = Vec::with_capacity(requests.len() * n);
        for request in requests {
            for choice in 0..n {
                let mut request = request.clone();
                // Choices of one request differ, and each is reproducible.
                request.sampling.seed = request
                    .sampling
                    .seed
                    .map(|seed| seed.wrapping_add(choice as u64));
                let stream = engine
                    .submit(request)
                    .map_err(|error| submit_error(&error, prompt))?;
                let index = streams.len();
                streams.push(Box::pin(events(stream).map(move |event| (index, event))));
            }
        }
        let len = streams.len();
        Ok(Self {
            streams: stream::select_all(streams),
            len,
        })
    }

    /// The next event of any choice; `None` when all have ended.
    pub(super) async fn next(&mut self) -> Option<(usize, ChoiceEvent)> {
        self.streams.next().await
    }
}

fn events(stream: TextStream) -> impl Stream<Item = ChoiceEvent> + Send {
    stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        Some(match stream.next().await {
            Some(Ok(piece)) => (ChoiceEvent::Piece(piece), Some(stream)),
            Some(Err(error)) => (ChoiceEvent::Broken(error), None),
            None => {
                let stats = *stream.stats();
                // A stream that ends without an error says why.
                let reason = stats.finish_reason.unwrap_or(FinishReason::Stop);
                (ChoiceEvent::End(reason, stats), None)
            }
        })
    })
}

/// Counts the tokens of a request: a prompt once, however many choices it has.
#[derive(Debug, Default)]
pub(super) struct UsageCount {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl UsageCount {
    pub(super) fn new(requests: &[Request]) -> Self {
        let prompt_tokens = requests
            .iter()
            .map(|request| request.prompt.len() as u64)
            .sum();
        Self {
            prompt_tokens,
            completion_tokens: 0,
        }
    }

    pub(super) fn add(&mut self, stats: &Stats) {
        self.completion_tokens += stats.completion_tokens as u64;
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.completion_tokens)
    }
}

/// The engine's request for `prompt`.
pub(super) fn request(
    prompt: Vec<u32>,
    sampling: &Sampling,
    defaults: &GenerationDefaults,
    max_tokens: Option<u32>,
    logprobs: Option<usize>,
) -> Request {
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
        ..SamplingParams::default()
    };
    let stop = StopRules {
        max_tokens: max_tokens.map(|tokens| tokens as usize),
        min_tokens: sampling.min_tokens as usize,
        strings: sampling.stop.clone(),
        tokens: sampling.stop_token_ids.clone(),
        include_string: sampling.include_stop_str_in_output,
        ignore_eos: sampling.ignore_eos,
    };
    Request {
        prompt,
        sampling: params,
        stop,
        logprobs,
        show_special_tokens: !sampling.skip_special_tokens,
        ..Request::default()
    }
}
