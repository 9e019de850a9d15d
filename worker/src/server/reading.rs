//! What the text of an answer means: thoughts, words, calls.

use hyprstream_engine::Aside;
use hyprstream_openai::{
    ReasoningParser, Thought,
    tools::{ToolEvent, ToolFormat, ToolParser},
};

/// How the answers to a request are read.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadPlan {
    /// Calls are looked for.
    pub(super) calls: Option<Calls>,
    /// Thoughts are looked for in answers to the prompt that ends so.
    pub(super) thoughts: Option<String>,
    /// Thoughts are told.
    pub(super) tell_thoughts: bool,
}

/// How calls are looked for.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pub(super) format: ToolFormat,
    /// Tools that were offered.
    pub(super) names: Vec<String>,
    /// A grammar sees to it that the answer is one.
    pub(super) forced: bool,
    /// Several are welcome.
    pub(super) parallel: bool,
    /// The request named the tool: the answer ends with `stop` then, as in the OpenAI API.
    pub(super) named: bool,
}

/// Reads one answer.
#[derive(Debug)]
pub(super) struct Reader {
    thoughts: Option<ReasoningParser>,
    tell_thoughts: bool,
    calls: Option<(ToolParser, Calls)>,
    /// The first call is complete and was to be the only one.
    is_done: bool,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Thoughts.
    Thought(String),
    /// Words.
    Text(String),
    /// A call begins.
    Call {
        index: u32,
        id: String,
        name: String,
    },
    /// Arguments of the call with this index go on.
    Arguments(u32, String),
    /// The call with this index is complete.
    CallEnd(u32),
}

impl ReadPlan {
    /// The thoughts, as far as the engine has to know of them: stop texts are about the answer.
    pub(super) fn aside(&self) -> Option<Aside> {
        let parser = ReasoningParser::new(self.thoughts.as_deref()?);
        let (open, close) = parser.marks();
        Some(Aside {
            open: open.map(str::to_owned),
            close: close.to_owned(),
        })
    }

    pub(super) fn reader(&self) -> Reader {
        let calls = self.calls.clone().map(|calls| {
            let names = calls.names.clone();
            let parser = if calls.forced {
                ToolParser::forced(calls.format, names)
            } else {
                ToolParser::new(calls.format, names)
            };
            (parser, calls)
        });
        Reader {
            thoughts: self.thoughts.as_deref().map(ReasoningParser::new),
            tell_thoughts: self.tell_thoughts,
            calls,
            is_done: false,
        }
    }
}

impl Reader {
    /// Takes the next piece of text and appends what it completes.
    pub(super) fn push(&mut self, text: String, out: &mut Vec<Part>) {
        let Some(thoughts) = &mut self.thoughts else {
            return self.answer(text, out);
        };
        for thought in thoughts.push(&text) {
            self.thought(thought, out);
        }
    }

    /// Appends what was held back, at the end of the answer.
    pub(super) fn finish(&mut self, out: &mut Vec<Part>) {
        if let Some(thought) = self.thoughts.as_mut().and_then(ReasoningParser::finish) {
            self.thought(thought, out);
        }
        if let Some((parser, _)) = &mut self.calls {
            let events = parser.finish();
            self.events(events, out);
        }
    }

    /// Whether nothing that comes is of interest any more.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// The word for an answer that ended by itself.
    pub(super) fn stop_reason(&self) -> &'static str {
        match &self.calls {
            Some((parser, calls)) if parser.calls() > 0 && !calls.named => "tool_calls",
            _ => "stop",
        }
    }

    fn thought(&mut self, thought: Thought, out: &mut Vec<Part>) {
        match thought {
            Thought::Reasoning(text) if self.tell_thoughts => out.push(Part::Thought(text)),
            Thought::Reasoning(_) => {}
            Thought::Answer(text) => self.answer(text, out),
        }
    }

    fn answer(&mut self, text: String, out: &mut Vec<Part>) {
        match &mut self.calls {
            None if text.is_empty() => {}
            None => out.push(Part::Text(text)),
            Some((parser, _)) => {
                let events = parser.push(&text);
                self.events(events, out);
            }
        }
    }

    fn events(&mut self, events: Vec<ToolEvent>, out: &mut Vec<Part>) {
        let Some((parser, calls)) = &self.calls else {
            return;
        };
        // Calls are told one after the other, so events between two belong to the earlier.
        let begun = events
            .iter()
            .filter(|event| matches!(event, ToolEvent::Call { .. }))
            .count() as u32;
        let mut latest = (parser.calls() - begun).checked_sub(1);
        for event in events {
            if self.is_done {
                return;
            }
            match event {
                ToolEvent::Text(text) => out.push(Part::Text(text)),
                ToolEvent::Call { index, name } => {
                    latest = Some(index);
                    let id = call_id(calls.format);
                    out.push(Part::Call { index, id, name });
                }
                ToolEvent::Arguments(text) => {
                    out.push(Part::Arguments(latest.unwrap_or(0), text));
                }
                ToolEvent::End => {
                    out.push(Part::CallEnd(latest.unwrap_or(0)));
                    self.is_done = !calls.parallel;
                }
            }
        }
    }
}

fn call_id(format: ToolFormat) -> String {
    let id = super::api::new_id("");
    match format.id_len() {
        Some(len) => id[..len].to_owned(),
        None => format!("call_{id}"),
    }
}
