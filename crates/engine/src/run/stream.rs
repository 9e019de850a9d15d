//! The answer to a request as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use tokio::sync::mpsc;

use super::{
    error::GenerationError,
    event::{Event, Stats, TokenLogprobs},
};

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextPiece {
    /// Whole characters; may be empty when only tokens or log-probabilities are told.
    pub text: String,
    /// The tokens generated since the piece before. Their text may still be held back, as the
    /// beginning of a character or of a stop text.
    pub tokens: Vec<u32>,
    /// Of `tokens`, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// In the first piece, if asked for: of every token of the prompt. The first token, which
    /// follows nothing, has none.
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
}

/// An answer in pieces of whole UTF-8 text. Dropping it stops its generation at the next step.
#[derive(Debug)]
#[must_use = "dropping a stream stops its generation"]
pub struct TextStream {
    events: mpsc::Receiver<Event>,
    stats: Stats,
    ended: bool,
}

impl TextStream {
    pub(crate) fn new(events: mpsc::Receiver<Event>, prompt_tokens: usize) -> Self {
        let stats = Stats {
            prompt_tokens,
            ..Stats::default()
        };
        Self {
            events,
            stats,
            ended: false,
        }
    }

    /// What the request took, up to the latest piece; complete when the stream has ended.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

impl Stream for TextStream {
    type Item = Result<TextPiece, GenerationError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let Some(event) = ready!(this.events.poll_recv(context)) else {
            // The engine's thread is gone without a last word.
            this.ended = true;
            return Poll::Ready(Some(Err(GenerationError::EngineStopped)));
        };
        this.stats = event.stats;
        match event.end {
            Some(Err(error)) => {
                this.ended = true;
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(_))
                if event.text.is_empty()
                    && event.tokens.is_empty()
                    && event.prompt_logprobs.is_empty() =>
            {
                this.ended = true;
                Poll::Ready(None)
            }
            end => {
                this.ended = end.is_some();
                Poll::Ready(Some(Ok(TextPiece {
                    text: event.text,
                    tokens: event.tokens,
                    logprobs: event.logprobs,
                    prompt_logprobs: event.prompt_logprobs,
                })))
            }
        }
    }
}
