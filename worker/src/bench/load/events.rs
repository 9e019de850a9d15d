//! Server-sent events of a streamed chat completion.

use serde::Deserialize;

/// Longest line that is kept, far above what a chunk takes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What a line of a stream told.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A part of the answer that a user sees.
    Content,
    /// Tokens of the prompt and of the answer.
    Usage(Usage),
    /// The answer broke off.
    Error(String),
    /// The stream is complete.
    Done,
}

/// Tokens, as the server counts them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    message: String,
}

/// Puts lines together out of pieces of a body.
#[derive(Default)]
pub(super) struct Reader {
    rest: Vec<u8>,
}

impl Reader {
    /// Takes a piece of the body and gives what its complete lines told to `each`.
    ///
    /// # Errors
    /// In words, when the body is no such stream.
    pub(super) fn push(&mut self, piece: &[u8], mut each: impl FnMut(Event)) -> Result<(), String> {
        self.rest.extend_from_slice(piece);
        let mut read = 0;
        while let Some(length) = self.rest[read..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[read..read + length];
            read += length + 1;
            event(line, &mut each)?;
        }
        self.rest.drain(..read);
        if self.rest.len() > MAX_LINE_BYTES {
            return Err(format!("a line of more than {MAX_LINE_BYTES} bytes"));
        }
        Ok(())
    }
}

fn event(line: &[u8], each: &mut impl FnMut(Event)) -> Result<(), String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Names of events, comments and empty lines tell nothing here.
    let Some(data) = line.strip_prefix(b"data:") else {
        return Ok(());
    };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        each(Event::Done);
        return Ok(());
    }
    let chunk: Chunk =
        serde_json::from_slice(data).map_err(|error| format!("an event is no chunk: {error}"))?;
    if let Some(error) = chunk.error {
        each(Event::Error(error.message));
    }
    let is_content = chunk.choices.iter().any(|choice| {
        let delta = &choice.delta;
        [&delta.content, &delta.reasoning_content]
            .into_iter()
            .flatten()
            .any(|text| !text.is_empty())
    });
    if is_content {
        each(Event::Content);
    }
    if let Some(usage) = chunk.usage {
        each(Event::Usage(usage));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": hello\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n",
        "data:{\"choices\":[{\"delta\":{\"reasoning_content\":\"é\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    );

    fn read(pieces: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Event>, String> {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.push(&piece, |event| events.push(event))?;
        }
        Ok(events)
    }

    #[test]
    fn events_are_the_same_however_the_body_is_cut() {
        let usage = Usage {
            prompt_tokens: 3,
            completion_tokens: 2,
        };
        for size in [1, 2, 7, 1000] {
            let events = read(STREAM.as_bytes().chunks(size).map(<[u8]>::to_vec)).unwrap();
            assert_eq!(
                events,
                [
                    Event::Content,
                    Event::Content,
                    Event::Usage(usage),
                    Event::Done
                ]
            );
        }
    }

    #[test]
    fn an_error_in_a_stream_and_a_body_that_is_none_are_told() {
        let error = b"data: {\"error\":{\"message\":\"gone\"}}\n".to_vec();
        assert_eq!(
            read([error].into_iter()).unwrap(),
            [Event::Error("gone".into())]
        );
        assert!(read([b"data: nope\n".to_vec()].into_iter()).is_err());
        assert!(read([vec![b'x'; MAX_LINE_BYTES + 1]].into_iter()).is_err());
    }
}
