//! Finding calls in a text that comes in pieces.
//!
//! The parser never fails: what is no call in the end is text. It does not check the arguments,
//! it only finds where they end, so that they can be passed on as they come.

use super::ToolFormat;

/// What ends a call of Hermes.
const END_TAG: &str = "</tool_call>";

/// What a piece of a model's text means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text for people.
    Text(String),
    /// A call begins; calls are counted from 0.
    Call {
        /// Which.
        index: u32,
        /// Name of the tool.
        name: String,
    },
    /// More of the arguments of the latest call.
    Arguments(String),
    /// The latest call is complete.
    End,
}

/// Finds calls in a model's answer. One for each answer.
#[derive(Debug)]
pub struct ToolParser {
    format: ToolFormat,
    /// Tools there are: for the form of Llama 3, which looks like any JSON.
    names: Vec<String>,
    state: State,
    /// What was read and is not told yet.
    held: String,
    /// Text was told since the beginning or the last trigger.
    said: bool,
    /// A trigger was read, and no call since.
    open: bool,
    calls: u32,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// Text, until a trigger.
    Text,
    /// After a trigger or a call: the next call, or the end of all.
    Between,
    /// In the name of a call that is written before its arguments.
    BareName,
    /// In an object that may be a call.
    Object(Object),
    /// In arguments that stand alone.
    Bare(Nesting),
}

/// Where in the object of a call the reading is.
#[derive(Debug, Default)]
struct Object {
    /// Bytes of `held` that were looked at.
    at: usize,
    nesting: Nesting,
    key: Option<String>,
    /// Where the latest text or value begins.
    from: usize,
    value: bool,
    name: Option<String>,
    /// Begin and, if it is complete, end of the arguments.
    arguments: Option<(usize, Option<usize>)>,
    /// The name was told and this many bytes of the arguments.
    told: Option<usize>,
}

#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Nesting {
    /// Takes a byte of JSON.
    fn push(&mut self, byte: u8) {
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// How far an object has come.
enum Step {
    /// More is needed.
    More,
    /// It is a call, and so many bytes of `held` were it.
    Done(usize),
    /// It is none.
    NoCall,
}

impl ToolParser {
    /// A parser of answers in the form `format`, for a model that was offered tools of `names`.
    pub fn new(format: ToolFormat, names: Vec<String>) -> Self {
        Self {
            format,
            names,
            state: State::Start,
            held: String::new(),
            said: false,
            open: false,
            calls: 0,
        }
    }

    /// A parser of answers that begin within a call, since a grammar sees to it.
    pub fn forced(format: ToolFormat, names: Vec<String>) -> Self {
        Self {
            state: match format {
                ToolFormat::Hermes | ToolFormat::Llama3 => State::Start,
                ToolFormat::Mistral => State::Between,
            },
            ..Self::new(format, names)
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Takes the next piece of text. What is found does not depend on how the text is cut.
    pub fn push(&mut self, piece: &str) -> Vec<ToolEvent> {
        self.held.push_str(piece);
        let mut events = Vec::new();
        while self.step(&mut events) {}
        events
    }

    /// Tells what was held back, at the end of an answer.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let held = std::mem::take(&mut self.held);
        let state = std::mem::replace(&mut self.state, State::Text);
        let text = match state {
            // Its name was told, so the rest of its arguments was as well.
            State::Object(Object { told: Some(_), .. }) | State::Bare(_) => return vec![],
            // What parts calls is no text, and neither is the beginning of a tag that the limit of
            // tokens has cut.
            State::Between if self.parts_calls(&held) => return vec![],
            State::BareName => format!("{}{held}", self.format.trigger()),
            State::Object(_) if self.format == ToolFormat::Hermes => {
                format!("{}{held}", self.format.trigger())
            }
            _ => held,
        };
        if text.is_empty() {
            return vec![];
        }
        vec![ToolEvent::Text(text)]
    }

    /// Whether `held` can stand between calls or behind the last, whole or cut.
    fn parts_calls(&self, held: &str) -> bool {
        let rest = held.trim_start_matches(self.format.separators());
        let trigger = self.format.trigger();
        // A trigger may begin with a separator.
        END_TAG.starts_with(rest) || trigger.starts_with(rest) || trigger.starts_with(held.trim())
    }

    /// Makes one step, and says whether another can be made.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match &mut self.state {
            State::Start => self.start(),
            State::Text => self.text(events),
            State::Between => self.between(events),
            State::BareName => self.bare_name(events),
            State::Bare(nesting) => {
                let end = bare_end(nesting, &self.held);
                let (taken, done) = end.map_or((self.held.len(), false), |end| (end, true));
                let arguments: String = self.held.drain(..taken).collect();
                if !arguments.is_empty() {
                    events.push(ToolEvent::Arguments(arguments));
                }
                if done {
                    events.push(ToolEvent::End);
                    (self.state, self.open) = (State::Between, false);
                }
                done
            }
            State::Object(object) => {
                let known = match self.format {
                    ToolFormat::Llama3 => Some(self.names.as_slice()),
                    _ => None,
                };
                let before = self.calls;
                match object.read(&self.held, known, &mut self.calls, events) {
                    Step::More => false,
                    Step::Done(end) => {
                        self.held.drain(..end);
                        (self.state, self.open) = (State::Between, false);
                        true
                    }
                    Step::NoCall => {
                        debug_assert_eq!(before, self.calls, "a call that was told is one");
                        if self.format == ToolFormat::Hermes {
                            events.push(ToolEvent::Text(self.format.trigger().to_owned()));
                        }
                        (self.state, self.said) = (State::Text, true);
                        true
                    }
                }
            }
        }
    }

    /// Looks at how the answer begins.
    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        let trigger = self.format.trigger();
        if self.format == ToolFormat::Llama3 {
            if trigger.starts_with(text) && text.len() < trigger.len() {
                return false;
            }
            if text.starts_with('{') || text.starts_with(trigger) {
                let white = self.held.len() - text.len();
                let tag = if text.starts_with('{') {
                    0
                } else {
                    trigger.len()
                };
                self.held.drain(..white + tag);
                self.state = State::Between;
                return true;
            }
        }
        self.state = State::Text;
        true
    }

    /// Tells text up to a trigger, and holds back what may be the beginning of one.
    fn text(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let trigger = self.format.trigger();
        let found = match self.format {
            // Its calls are the whole answer.
            ToolFormat::Llama3 => None,
            _ => self.held.find(trigger),
        };
        let (shown, taken) = if let Some(at) = found {
            (at, at + trigger.len())
        } else {
            let keep = match self.format {
                ToolFormat::Llama3 => 0,
                _ => overlap(&self.held, trigger),
            };
            let shown = self.held.len() - keep;
            (shown, shown)
        };
        // White space before a call, and nothing else, belongs to it.
        let blank =
            self.format == ToolFormat::Hermes && !self.said && self.held[..shown].trim().is_empty();
        if blank && found.is_none() {
            return false;
        }
        let mut text: String = self.held.drain(..taken).collect();
        text.truncate(shown);
        if !blank && !text.is_empty() {
            self.said = true;
            events.push(ToolEvent::Text(text));
        }
        if found.is_some() {
            (self.state, self.said, self.open) = (State::Between, false, true);
        }
        found.is_some()
    }

    /// Looks for the next call, or for text after the calls.
    fn between(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let text = self.held.trim_start_matches(self.format.separators());
        if text.is_empty() {
            return false;
        }
        let skipped = self.held.len() - text.len();
        let trigger = self.format.trigger();
        if text.starts_with('{') {
            self.held.drain(..skipped);
            self.state = State::Object(Object::default());
            return true;
        }
        match self.format {
            ToolFormat::Hermes | ToolFormat::Llama3 => {
                for tag in [trigger, END_TAG] {
                    if tag.starts_with(text) && text.len() < tag.len() {
                        return false;
                    }
                    if text.starts_with(tag) {
                        self.held.drain(..skipped + tag.len());
                        self.open = tag == trigger;
                        return true;
                    }
                }
                if self.open && self.format == ToolFormat::Hermes {
                    // The trigger was none.
                    events.push(ToolEvent::Text(trigger.to_owned()));
                    (self.said, self.open) = (true, false);
                }
                self.state = State::Text;
                true
            }
            ToolFormat::Mistral => {
                // The bracket of a further trigger is not to be taken for a separator.
                let trimmed = self.held.trim_start();
                if trigger.starts_with(trimmed) && trimmed.len() < trigger.len() {
                    return false;
                }
                if let Some(rest) = trimmed.strip_prefix(trigger) {
                    self.held = rest.to_owned();
                    return true;
                }
                self.held.drain(..skipped);
                self.state = State::BareName;
                true
            }
        }
    }

    /// Reads a name that ends where its arguments begin.
    fn bare_name(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let Some(at) = self.held.find('{') else {
            return false;
        };
        let head = self.held[..at].trim();
        let name = head.strip_suffix("[ARGS]").unwrap_or(head);
        let name = name.split("[CALL_ID]").next().unwrap_or(name).trim();
        if !self.names.iter().any(|known| known == name) {
            // The trigger was none. What follows may hold another, whether or not it is there yet.
            events.push(ToolEvent::Text(self.format.trigger().to_owned()));
            (self.state, self.said) = (State::Text, true);
            return true;
        }
        let (index, name) = (self.calls, name.to_owned());
        events.push(ToolEvent::Call { index, name });
        self.calls += 1;
        self.held.drain(..at);
        self.state = State::Bare(Nesting::default());
        true
    }
}

impl Object {
    /// Reads on in `text`, which begins with the object. Without `known` every name is one.
    fn read(
        &mut self,
        text: &str,
        known: Option<&[String]>,
        calls: &mut u32,
        events: &mut Vec<ToolEvent>,
    ) -> Step {
        while let Some(&byte) = text.as_bytes().get(self.at) {
            let at = self.at;
            let was_text = self.nesting.in_text;
            self.nesting.push(byte);
            self.at += 1;
            let outside = !self.nesting.in_text && !was_text;
            if self.nesting.depth == 1 && !self.value {
                // A key, or what parts it from others.
                if !was_text && self.nesting.in_text {
                    self.from = at;
                } else if was_text && !self.nesting.in_text {
                    self.key = serde_json::from_str(&text[self.from..self.at]).ok();
                } else if outside && byte == b':' {
                    (self.value, self.from) = (true, self.at);
                }
                continue;
            }
            let ends =
                outside && (self.nesting.depth == 0 || self.nesting.depth == 1 && byte == b',');
            if self.value && ends {
                let raw = &text[self.from..at];
                self.value = false;
                match self.key.take().as_deref() {
                    // The first of each counts: it may have been told already.
                    Some("name") if self.name.is_none() => {
                        self.name = serde_json::from_str(raw.trim()).ok();
                    }
                    Some("arguments" | "parameters")
                        if !matches!(self.arguments, Some((_, Some(_)))) =>
                    {
                        let begin = self.arguments.map_or(self.from, |(begin, _)| begin);
                        self.arguments =
                            Some((begin, Some(begin + text[begin..at].trim_end().len())));
                    }
                    _ => {}
                }
            } else if self.value
                && self.arguments.is_none()
                && matches!(self.key.as_deref(), Some("arguments" | "parameters"))
                && !byte.is_ascii_whitespace()
            {
                self.arguments = Some((at, None));
            }
            if self.nesting.depth == 0 {
                break;
            }
        }
        let complete = self.at > 0 && self.nesting.depth == 0;
        self.tell(text, complete, known, calls, events)
    }

    fn tell(
        &mut self,
        text: &str,
        complete: bool,
        known: Option<&[String]>,
        calls: &mut u32,
        events: &mut Vec<ToolEvent>,
    ) -> Step {
        let fits = |name: &String| known.is_none_or(|known| known.contains(name));
        match &self.name {
            Some(name) if !fits(name) && self.told.is_none() => return Step::NoCall,
            Some(name) if self.told.is_none() && (complete || self.arguments.is_some()) => {
                let (index, name) = (*calls, name.clone());
                events.push(ToolEvent::Call { index, name });
                *calls += 1;
                self.told = Some(0);
            }
            None if complete => return Step::NoCall,
            _ => {}
        }
        if let (Some(told), Some((begin, end))) = (self.told, self.arguments) {
            let is_text = text.as_bytes().get(begin) == Some(&b'"');
            // While a value is open, white space at its end may be no part of it.
            let until = end.unwrap_or_else(|| begin + text[begin..].trim_end().len());
            let value = &text[begin..until];
            // Some models write the arguments as a text of JSON: it is told when it is whole.
            let unquoted = match (is_text, end) {
                (true, None) => None,
                (true, Some(_)) => serde_json::from_str::<String>(value).ok(),
                (false, _) => Some(value.to_owned()),
            };
            if let Some(arguments) = unquoted
                && let Some(more) = arguments.get(told..).filter(|more| !more.is_empty())
            {
                events.push(ToolEvent::Arguments(more.to_owned()));
                self.told = Some(told + more.len());
            }
        }
        if !complete {
            return Step::More;
        }
        // A call without arguments has none, and clients parse them.
        if self.told == Some(0) {
            events.push(ToolEvent::Arguments("{}".to_owned()));
        }
        events.push(ToolEvent::End);
        Step::Done(self.at)
    }
}

/// Where the JSON value that `nesting` has followed ends in `text`, the next piece of it.
fn bare_end(nesting: &mut Nesting, text: &str) -> Option<usize> {
    for (at, byte) in text.bytes().enumerate() {
        nesting.push(byte);
        if nesting.depth == 0 && !nesting.in_text {
            return Some(at + 1);
        }
    }
    None
}

/// Bytes at the end of `text` that are a proper beginning of `tag`.
pub(crate) fn overlap(text: &str, tag: &str) -> usize {
    let most = text.len().min(tag.len() - 1);
    (1..=most)
        .rev()
        .find(|&len| text.as_bytes().ends_with(&tag.as_bytes()[..len]))
        .unwrap_or(0)
}
