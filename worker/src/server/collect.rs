//! Whole answers.

use hyprstream_engine::{FinishReason, Stats, TokenLogprobs};
use hyprstream_openai::ApiError;

use super::{
    generate::{ChoiceEvent, Choices, UsageCount},
    reading::{Part, ReadPlan, Reader},
    respond::generation_error,
};

/// One choice, complete.
#[derive(Debug)]
pub(super) struct Collected {
    /// What it says, in order.
    pub(super) parts: Vec<Part>,
    /// Of its tokens, if asked for.
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens, if asked for.
    pub(super) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// Why it ended, in the word of the API.
    pub(super) reason: &'static str,
    /// What it took.
    pub(super) stats: Stats,
}

impl Collected {
    /// All words.
    pub(super) fn text(&self) -> String {
        self.parts
            .iter()
            .filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// All thoughts, if there are any.
    pub(super) fn thoughts(&self) -> Option<String> {
        let thoughts: Vec<&str> = self
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Thought(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        (!thoughts.is_empty()).then(|| thoughts.concat())
    }

    /// All calls: id, name, arguments.
    pub(super) fn calls(&self) -> Vec<(String, String, String)> {
        let mut calls: Vec<(String, String, String)> = Vec::new();
        for part in &self.parts {
            match part {
                Part::Call { id, name, .. } => {
                    calls.push((id.clone(), name.clone(), String::new()));
                }
                Part::Arguments(_, text) => {
                    if let Some((_, _, arguments)) = calls.last_mut() {
                        arguments.push_str(text);
                    }
                }
                _ => {}
            }
        }
        calls
    }
}

/// Waits for all of `choices`, read as `plan` says.
///
/// # Errors
/// One of them broke off.
pub(super) async fn collect(
    mut choices: Choices,
    plan: &ReadPlan,
    usage: &mut UsageCount,
) -> Result<Vec<Collected>, ApiError> {
    let mut readers: Vec<Reader> = (0..choices.len()).map(|_| plan.reader()).collect();
    let mut done: Vec<Collected> = (0..choices.len())
        .map(|_| Collected {
            parts: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            reason: "stop",
            stats: Stats::default(),
        })
        .collect();
    while let Some((index, event)) = choices.next().await {
        let (choice, reader) = (&mut done[index], &mut readers[index]);
        let end = match event {
            ChoiceEvent::Piece(piece) => {
                usage.piece(index, &piece);
                choice.logprobs.extend(piece.logprobs);
                choice.prompt_logprobs.extend(piece.prompt_logprobs);
                reader.push(piece.text, &mut choice.parts);
                let closed = reader.is_done().then(|| choices.close(index)).flatten();
                closed.map(|stats| (FinishReason::Stop, stats))
            }
            ChoiceEvent::End(reason, stats) => Some((reason, stats)),
            ChoiceEvent::Broken(error) => return Err(generation_error(&error)),
        };
        if let Some((reason, stats)) = end {
            reader.finish(&mut choice.parts);
            usage.end(index, &stats);
            choice.stats = stats;
            choice.reason = match reason {
                FinishReason::Stop => reader.stop_reason(),
                FinishReason::Length => reason.as_str(),
            };
        }
    }
    Ok(done)
}
