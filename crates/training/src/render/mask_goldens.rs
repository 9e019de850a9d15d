//! What is learnt of chats against what transformers finds by generation marks.
#![allow(clippy::unwrap_used)]

use hyprstream_engine::{ChatTemplate, Conversation, ModelFiles};
use hyprstream_goldens::training::Masks;
use serde_json::Map;

use super::{Loss, Record, Renderer, Sample, spans::Spans, tests::files};

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
    for one in Masks::read() {
        let Masks { name, chats, .. } = &one;
        // Whose end of a turn is a token of the tests' tokenizer.
        if ![
            "smollm2",
            "mistral_nemo",
            "llama3",
            "gemma",
            "gemma3",
            "qwen2_5",
            "qwen3",
            "qwen3_instruct_2507",
            "phi3",
            "phi3_5",
        ]
        .contains(&name.as_str())
        {
            continue;
        }
        let files = ModelFiles {
            template: Some(template(&one)),
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
    assert!(compared.len() >= 36, "{compared:?}");
    for chat in ["repeated", "system"] {
        assert!(compared.contains(&format!("mistral_nemo/{chat}")));
    }
    assert_eq!(refused, [""; 0]);
}

#[test]
fn an_answer_under_a_system_message_that_only_prompts_show_stands_behind_its_prompt() {
    let all = Masks::read();
    let nemo = all.iter().find(|one| one.name == "mistral_nemo").unwrap();
    let chat = nemo.chats.iter().find(|chat| chat.name == "system");
    let chat = chat.unwrap();
    let files = ModelFiles {
        template: Some(template(nemo)),
        ..files(None)
    };
    let renderer = Renderer::new(&files, 300, Loss::Assistant, 4096, &Map::new(), None).unwrap();
    let record = Record::Chat {
        messages: chat.messages.clone(),
        tools: Vec::new(),
        from: 0,
    };
    let rendered = renderer.units(record).unwrap();
    let text = |sample: &Sample| {
        let bytes = sample.tokens.iter();
        let bytes = bytes.flat_map(|token| files.tokenizer.token_bytes(*token).to_vec());
        String::from_utf8(bytes.collect()).unwrap()
    };
    let ours: Vec<String> = rendered.units.iter().flatten().map(text).collect();
    let answers = chat.written();
    let theirs = chat.prompts.iter().zip(&answers);
    let theirs: Vec<String> = theirs.map(|(a, b)| format!("{a}{b}")).collect();
    assert_eq!(ours, theirs);
    assert!(ours[1].contains("Answer in one word."), "{}", ours[1]);
}

#[test]
fn what_follows_on_a_prompt_is_found_by_the_message_that_is_answered_too() {
    let mut compared = 0;
    for one in Masks::read() {
        let template = template(&one);
        for chat in &one.chats {
            let conversation = Conversation {
                messages: chat.messages.clone(),
                ..Conversation::default()
            };
            let spans = Spans {
                template: &template,
                conversation: &conversation,
                only_ends: &|_| false,
            };
            let turns = chat.messages.iter().enumerate();
            let turns = turns.filter(|(_, message)| message["role"] == "assistant");
            for ((turn, _), prompt) in turns.zip(&chat.prompts) {
                let some = Conversation {
                    messages: chat.messages[..=turn].to_vec(),
                    ..Conversation::default()
                };
                let Ok(text) = template.render_conversation(&some) else {
                    continue;
                };
                let Some(answer) = text.strip_prefix(prompt.as_str()) else {
                    continue;
                };
                let found = spans.answer(turn, prompt, &text);
                assert_eq!(found, Some(answer), "{}/{}", one.name, chat.name);
                compared += 1;
            }
        }
    }
    assert!(compared >= 80, "{compared}");
}

fn template(of: &Masks) -> ChatTemplate {
    let tokens = [("bos_token", &of.bos_token), ("eos_token", &of.eos_token)];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.clone()));
    ChatTemplate::new(&of.template, tokens.to_vec()).unwrap()
}
