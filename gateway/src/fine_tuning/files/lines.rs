//! Whether a file can be learnt from, line by line as it comes.

use std::collections::HashMap;

use serde::{
    Deserialize, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// Longest line. It is the most of a file that is in memory.
const MAX_LINE_BYTES: usize = 8 << 20;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// What the lines of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Form {
    /// `messages`: for the method supervised.
    Chat,
    /// `input`, `preferred_output` and `non_preferred_output`: for dpo.
    Preference,
}

/// A line that cannot be learnt from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// There are no lines.
    #[error("the file is empty: each line must be a JSON object with messages")]
    Empty,
    /// It is too long.
    #[error("line {line} is longer than {MAX_LINE_BYTES} bytes")]
    TooLong {
        /// Its number, from 1.
        line: u64,
    },
    /// It is something else.
    #[error("line {line}: {why}")]
    Wrong {
        /// Its number, from 1.
        line: u64,
        /// What it is or lacks.
        why: String,
    },
}

/// Reads a file's lines out of its pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Number of the last whole line.
    line: u64,
    /// The first line of those that hold nothing, since the last that held something.
    blank: Option<u64>,
    records: u64,
    form: Option<Form>,
}

impl Lines {
    /// Takes the next bytes in.
    ///
    /// # Errors
    /// A line in them cannot be learnt from.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), LineError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.partial.is_empty() {
                self.check(line)?;
            } else {
                self.keep(line)?;
                let whole = std::mem::take(&mut self.partial);
                self.check(&whole)?;
            }
            bytes = rest;
        }
        self.keep(bytes)
    }

    /// How many records there were, and what they are.
    ///
    /// # Errors
    /// The last line cannot be learnt from, or there is none.
    pub(super) fn finish(mut self) -> Result<(u64, Form), LineError> {
        if !self.partial.is_empty() {
            let last = std::mem::take(&mut self.partial);
            self.check(&last)?;
        }
        let form = self.form.ok_or(LineError::Empty)?;
        Ok((self.records, form))
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        if self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            return Err(LineError::TooLong {
                line: self.line + 1,
            });
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn check(&mut self, text: &[u8]) -> Result<(), LineError> {
        self.line += 1;
        let line = self.line;
        if text.len() > MAX_LINE_BYTES {
            return Err(LineError::TooLong { line });
        }
        if text.trim_ascii().is_empty() {
            self.blank.get_or_insert(line);
            return Ok(());
        }
        if let Some(line) = self.blank {
            let why = "is empty, and others follow".to_owned();
            return Err(LineError::Wrong { line, why });
        }
        let wrong = |why: String| LineError::Wrong { line, why };
        // serde would take an array for a record, too, its members in order.
        if matches!(text.trim_ascii_start(), [b'[', ..]) {
            return Err(wrong("is an array and no JSON object".to_owned()));
        }
        let read: Record = serde_json::from_slice(text).map_err(|error| {
            let why = error.to_string();
            let short: String = why.chars().take(200).collect();
            // Every line is line 1 of its own text.
            wrong(short.replace(" at line 1 column ", " at column "))
        })?;
        let form = read.form().map_err(wrong)?;
        if *self.form.get_or_insert(form) != form {
            let why = "is of another form than those before: a file holds messages, or preferences";
            return Err(wrong(why.to_owned()));
        }
        self.records += 1;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Record {
    messages: Option<Vec<Message>>,
    input: Option<Input>,
    preferred_output: Option<Vec<Message>>,
    non_preferred_output: Option<Vec<Message>>,
    functions: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Input {
    messages: Vec<Message>,
    /// What is flattened is read out of an object and never out of an array.
    #[serde(flatten)]
    #[allow(clippy::zero_sized_map_values, reason = "a set cannot be flattened")]
    _others: HashMap<String, IgnoredAny>,
}

/// The role of a message. What else it must have, the trainer says, which knows the template.
struct Message {
    role: String,
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Role;
        impl<'de> Visitor<'de> for Role {
            type Value = Message;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a message with a role")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
                let mut role = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "role" {
                        role = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                let missing = || serde::de::Error::missing_field("role");
                role.map(|role| Message { role }).ok_or_else(missing)
            }
        }
        deserializer.deserialize_map(Role)
    }
}

impl Record {
    fn form(&self) -> Result<Form, String> {
        // As the trainer does.
        for (old, there) in [
            ("functions", &self.functions),
            ("function_call", &self.function_call),
        ] {
            if there.is_some() {
                return Err(format!(
                    "{old} is not understood: write tools and tool_calls"
                ));
            }
        }
        let preference = (
            &self.input,
            &self.preferred_output,
            &self.non_preferred_output,
        );
        match (&self.messages, preference) {
            (Some(messages), (None, None, None)) => {
                roles("messages", messages)?;
                answers("messages", messages)?;
                Ok(Form::Chat)
            }
            (None, (Some(input), Some(good), Some(bad))) => {
                roles("input.messages", &input.messages)?;
                for (name, messages) in [("preferred_output", good), ("non_preferred_output", bad)]
                {
                    roles(name, messages)?;
                    answers(name, messages)?;
                }
                Ok(Form::Preference)
            }
            (None, (None, None, None)) => Err("has no messages".to_owned()),
            (None, _) => {
                Err("needs all of input, preferred_output and non_preferred_output".to_owned())
            }
            (Some(_), _) => Err("has messages and a preference: only one can be learnt".to_owned()),
        }
    }
}

fn roles(name: &str, messages: &[Message]) -> Result<(), String> {
    if messages.is_empty() {
        return Err(format!("{name} is empty"));
    }
    match messages
        .iter()
        .find(|message| !ROLES.contains(&message.role.as_str()))
    {
        None => Ok(()),
        Some(message) => {
            let role = hyprstream_openai::excerpt(&message.role);
            let roles = ROLES.join(", ");
            Err(format!(
                "{name} has the role {role:?}, which is none of {roles}"
            ))
        }
    }
}

fn answers(name: &str, messages: &[Message]) -> Result<(), String> {
    if messages.iter().any(|message| message.role == "assistant") {
        Ok(())
    } else {
        Err(format!(
            "{name} has no message of the assistant to learn from"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = r#"{"messages":[{"role":"user","content":"a"},{"content":"b","role":"assistant","weight":1}],"tools":[]}"#;
    const PREFERENCE: &str = r#"{"input":{"messages":[{"role":"user","content":"a"}],"tools":[]},"preferred_output":[{"role":"assistant","content":"b"}],"non_preferred_output":[{"role":"assistant","content":"c"}]}"#;

    fn read(text: &str, piece: usize) -> Result<(u64, Form), LineError> {
        let mut lines = Lines::default();
        for bytes in text.as_bytes().chunks(piece) {
            lines.push(bytes)?;
        }
        lines.finish()
    }

    #[test]
    fn lines_are_read_however_they_are_cut() {
        let text = format!("{CHAT}\r\n{CHAT}\n{CHAT}\n\n");
        for piece in [1, 7, 100, 10_000] {
            assert_eq!(read(&text, piece), Ok((3, Form::Chat)), "{piece}");
        }
        assert_eq!(read(PREFERENCE, 9), Ok((1, Form::Preference)));
    }

    #[test]
    fn a_line_that_cannot_be_learnt_from_is_named() {
        for (text, line, says) in [
            ("{\"messages\": [".to_owned(), 1, "EOF"),
            (format!("{CHAT}\nx"), 2, "expected value at column 1"),
            (format!("{CHAT}\n[]"), 2, "is an array"),
            (format!("{CHAT}\n\n{CHAT}"), 2, "is empty"),
            (format!("{CHAT}\n{PREFERENCE}"), 2, "another form"),
            ("{\"prompt\":\"a\"}".to_owned(), 1, "has no messages"),
            ("{\"messages\":[]}".to_owned(), 1, "messages is empty"),
            ("{\"messages\":[{\"content\":\"\"}]}".to_owned(), 1, "role"),
            ("{\"messages\":[{\"role\":\"me\"}]}".to_owned(), 1, "\"me\""),
            (
                "{\"messages\":[{\"role\":\"user\"}]}".to_owned(),
                1,
                "assistant",
            ),
            (
                "{\"messages\":[{\"role\":\"function\"}]}".to_owned(),
                1,
                "none of system, developer, user, assistant, tool",
            ),
            (
                CHAT.replace("\"tools\"", "\"functions\""),
                1,
                "write tools and tool_calls",
            ),
            ("{\"input\":[[]]}".to_owned(), 1, "sequence"),
            ("{\"input\":{\"messages\":[]}}".to_owned(), 1, "needs all"),
        ] {
            let error = read(&text, 5).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(says), "{message}");
            assert!(
                matches!(error, LineError::Wrong { line: at, .. } if at == line),
                "{message}"
            );
        }
        assert_eq!(read("\n", 1), Err(LineError::Empty));
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        assert_eq!(read(&long, 1 << 20), Err(LineError::TooLong { line: 1 }));
    }
}
