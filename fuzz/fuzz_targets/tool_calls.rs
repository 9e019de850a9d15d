//! Parsers of tool calls and thoughts: any text in any pieces is read without a panic, and the
//! pieces make no difference to what is found.
//!
//! The first byte chooses format and mode, the second the sizes of pieces.
#![no_main]

use hyprstream_openai::{
    ReasoningParser, Thought,
    tools::{ToolEvent, ToolFormat, ToolParser},
};
use libfuzzer_sys::fuzz_target;

/// What a text is found to be: text for people, and calls with their arguments.
type Found = (String, Vec<(String, String)>);

fn calls(which: u8, pieces: &[&str]) -> Found {
    let format =
        [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral][usize::from(which % 3)];
    let names = ["f", "get_weather"].map(str::to_owned).to_vec();
    let mut parser = if which % 2 == 0 {
        ToolParser::new(format, names)
    } else {
        ToolParser::forced(format, names)
    };
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish());
    let mut found = Found::default();
    for event in events {
        match event {
            ToolEvent::Text(text) => found.0.push_str(&text),
            ToolEvent::Call { index, name } => {
                assert_eq!(index as usize, found.1.len(), "calls are counted");
                found.1.push((name, String::new()));
            }
            ToolEvent::Arguments(more) => {
                let call = found.1.last_mut().expect("arguments belong to a call");
                call.1.push_str(&more);
            }
            ToolEvent::End => {}
        }
    }
    assert_eq!(parser.calls() as usize, found.1.len());
    found
}

fn thoughts(prompt: &str, pieces: &[&str]) -> (String, String) {
    let mut parser = ReasoningParser::new(prompt);
    let mut found = (String::new(), String::new());
    let mut note = |thought| match thought {
        Thought::Reasoning(text) => found.0.push_str(&text),
        Thought::Answer(text) => found.1.push_str(&text),
    };
    for piece in pieces {
        parser.push(piece).into_iter().for_each(&mut note);
    }
    parser.finish().into_iter().for_each(&mut note);
    found
}

fuzz_target!(|data: &[u8]| {
    let [which, sizes, rest @ ..] = data else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    let mut pieces = Vec::new();
    let mut left = text.as_ref();
    let mut size = usize::from(*sizes);
    while !left.is_empty() {
        size = (size * 5 + 3) % 17;
        let at = left
            .char_indices()
            .nth(size + 1)
            .map_or(left.len(), |(at, _)| at);
        let (piece, others) = left.split_at(at);
        pieces.push(piece);
        left = others;
    }
    assert_eq!(calls(*which, &pieces), calls(*which, &[&text]));
    for prompt in ["", "<think>\n"] {
        assert_eq!(thoughts(prompt, &pieces), thoughts(prompt, &[&text]));
    }
});
