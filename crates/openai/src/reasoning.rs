//! Parting what a model thinks from what it says.

use crate::tools::overlap;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thought {
    /// Thinking.
    Reasoning(String),
    /// The answer.
    Answer(String),
}

/// Finds `<think>...</think>` at the beginning of an answer that comes in pieces.
#[derive(Debug)]
pub struct ReasoningParser {
    state: State,
    held: String,
    /// Some of the thoughts were told; white space before is no part of them.
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Start,
    Thinking,
    /// White space after the thoughts is no part of the answer.
    Thought,
    Answering,
}

impl ReasoningParser {
    /// A parser of an answer to `prompt`; some templates let the prompt end within the thoughts.
    pub fn new(prompt: &str) -> Self {
        let state = if prompt.trim_end().ends_with(OPEN) {
            State::Thinking
        } else {
            State::Start
        };
        Self {
            state,
            held: String::new(),
            told: false,
        }
    }

    /// What begins the thoughts, if they have not begun, and what ends them.
    pub fn marks(&self) -> (Option<&'static str>, &'static str) {
        ((self.state == State::Start).then_some(OPEN), CLOSE)
    }

    /// Whether the answer proper has not begun.
    pub fn is_thinking(&self) -> bool {
        self.state == State::Thinking
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<Thought> {
        let mut out = Vec::new();
        if self.state == State::Answering {
            if !piece.is_empty() {
                out.push(Thought::Answer(piece.to_owned()));
            }
            return out;
        }
        self.held.push_str(piece);
        if self.state == State::Start {
            let text = self.held.trim_start();
            if let Some(rest) = text.strip_prefix(OPEN) {
                self.held = rest.to_owned();
                self.state = State::Thinking;
            } else if !OPEN.starts_with(text) {
                self.state = State::Answering;
                out.push(Thought::Answer(std::mem::take(&mut self.held)));
            }
        }
        if self.state == State::Thinking {
            if !self.told {
                self.held = self.held.trim_start().to_owned();
            }
            let (thought, closed) = if let Some(at) = self.held.find(CLOSE) {
                let rest = self.held.split_off(at + CLOSE.len());
                self.held.truncate(at);
                (std::mem::replace(&mut self.held, rest), true)
            } else {
                // White space may be the last of the thoughts, and a tag may have begun.
                let keep = overlap(&self.held, CLOSE);
                let shown = self.held[..self.held.len() - keep].trim_end().len();
                let rest = self.held.split_off(shown);
                (std::mem::replace(&mut self.held, rest), false)
            };
            let thought = if closed { thought.trim_end() } else { &thought };
            if !thought.is_empty() {
                self.told = true;
                out.push(Thought::Reasoning(thought.to_owned()));
            }
            if closed {
                self.state = State::Thought;
            }
        }
        if self.state == State::Thought {
            let text = self.held.trim_start();
            if !text.is_empty() {
                out.push(Thought::Answer(text.to_owned()));
                self.held.clear();
                self.state = State::Answering;
            }
        }
        out
    }

    /// Tells what was held back, at the end of an answer.
    pub fn finish(&mut self) -> Option<Thought> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return None;
        }
        match self.state {
            State::Start | State::Answering => Some(Thought::Answer(held)),
            State::Thinking => Some(Thought::Reasoning(held)),
            State::Thought => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thoughts and answer of `text`, taken in pieces of every size.
    #[track_caller]
    fn check(prompt: &str, text: &str, thoughts: &str, answer: &str) {
        for size in 1..=text.len().max(1) {
            let mut parser = ReasoningParser::new(prompt);
            let mut found = (String::new(), String::new());
            let chars: Vec<char> = text.chars().collect();
            let pieces = chars.chunks(size).map(|c| c.iter().collect::<String>());
            let mut all: Vec<Thought> = pieces.flat_map(|p| parser.push(&p)).collect();
            all.extend(parser.finish());
            for thought in all {
                match thought {
                    Thought::Reasoning(text) => found.0.push_str(&text),
                    Thought::Answer(text) => found.1.push_str(&text),
                }
            }
            assert_eq!(
                (found.0.as_str(), found.1.as_str()),
                (thoughts, answer),
                "{size}"
            );
        }
    }

    #[test]
    fn thoughts_and_answer_are_parted_however_they_come() {
        check("", "<think>\na b\n</think>\n\nyes", "a b", "yes");
        check("x<think>\n", "a</think>yes <think>", "a", "yes <think>");
        check("", "yes <think>no</think>", "", "yes <think>no</think>");
        check("", "<think></think>", "", "");
        check("", "<thin air", "", "<thin air");
        check("", "<think>a </thin", "a </thin", "");
        check("", "", "", "");
    }
}
