//! What is learnt of chats against what transformers finds by generation marks.
#![allow(clippy::unwrap_used)]

use hyprstream_engine::{ChatTemplate, ModelFiles};
use hyprstream_goldens::training::Masks;
use serde_json::Map;

use super::{Loss, Record, Renderer, tests::files};

/// Without white space: what is behind the end of a turn, or before its first word, marks hold or
/// not as the template's author liked.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// What counts of a chat, in the order of its turns; `None` where it is refused.
fn learnt(files: &ModelFiles, messages: &[serde_json::Value]) -> Option<String> {
    let date = Some("2026-11-29");
    let renderer = Renderer::new(files, 300, Loss::Assistant, 4096, &Map::new(), date).unwrap();
    let chat = Record::Chat {
        messages: messages.to_vec(),
        tools: Vec::new(),
        from: 0,
    };
    let rendered = renderer.units(chat).ok()?;
    let mut bytes = Vec::new();
    for sample in rendered.units.iter().flatten() {
        let pairs = sample.tokens.iter().zip(&sample.trained);
        for (token, _) in pairs.filter(|(_, trained)| **trained) {
            bytes.extend_from_slice(files.tokenizer.token_bytes(*token));
        }
    }
    Some(String::from_utf8(bytes).unwrap())
}

#[test]
fn of_real_templates_without_marks_what_marks_would_hold_is_learnt() {
    let (mut compared, mut refused) = (Vec::new(), Vec::new());
    for Masks {
        name,
        template,
        bos_token,
        eos_token,
        chats,
        ..
    } in Masks::read()
    {
        // Whose end of a turn is a token of the tests' tokenizer.
        if ![
            "smollm2",
            "mistral_nemo",
            "llama3",
            "gemma",
            "gemma3",
            "qwen2_5",
        ]
        .contains(&name.as_str())
        {
            continue;
        }
        let tokens = [("bos_token", bos_token), ("eos_token", eos_token)];
        let tokens = tokens.map(|(name, token)| (name.to_owned(), token));
        let files = ModelFiles {
            template: Some(ChatTemplate::new(&template, tokens.to_vec()).unwrap()),
            ..files(None)
        };
        for chat in chats.iter().filter(|chat| chat.text.is_some()) {
            let name = format!("{name}/{}", chat.name);
            let Some(ours) = learnt(&files, &chat.messages) else {
                refused.push(name);
                continue;
            };
            assert_eq!(words(&ours), words(&chat.written().concat()), "{name}");
            compared.push(name);
        }
    }
    assert!(compared.len() >= 20, "{compared:?}");
    assert!(compared.contains(&"mistral_nemo/repeated".to_owned()));
    // Serving prompts with the system message, but what ends with an answer is written without it.
    assert_eq!(refused, ["mistral_nemo/system"]);
}
