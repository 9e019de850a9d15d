//! Chat templates: any conversation in the templates of real models, and any template at all,
//! renders or is refused within its bounds.
//!
//! The first byte chooses a template; 255 takes the text before the first NUL as one. What
//! follows are messages: the role's number, then text up to the next NUL.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use hyprstream_engine::{ChatTemplate, TemplateMessage};
use libfuzzer_sys::fuzz_target;

/// Templates of models that people use, from the engine's tests.
static REAL: LazyLock<Vec<ChatTemplate>> = LazyLock::new(|| {
    let file = include_str!("../../crates/engine/tests/goldens/templates.json");
    let goldens: serde_json::Value = serde_json::from_str(file).expect("the goldens are JSON");
    let templates = goldens["templates"]
        .as_object()
        .expect("they hold templates");
    let read = |source: &serde_json::Value| {
        ChatTemplate::new(source.as_str().unwrap_or_default(), specials()).expect("it is one")
    };
    templates.values().map(read).collect()
});

fn specials() -> Vec<(String, String)> {
    [("bos_token", "<s>"), ("eos_token", "</s>")]
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .to_vec()
}

fuzz_target!(|data: &[u8]| {
    let [which, rest @ ..] = data else { return };
    let text = String::from_utf8_lossy(rest);
    let mut parts = text.split('\0');
    let own;
    let template = if *which == 255 {
        match ChatTemplate::new(parts.next().unwrap_or_default(), specials()) {
            Ok(template) => {
                own = template;
                &own
            }
            Err(_) => return,
        }
    } else {
        &REAL[usize::from(*which) % REAL.len()]
    };
    let messages: Vec<TemplateMessage> = parts
        .map(|part| {
            let (role, content) = part.split_at(part.chars().next().map_or(0, char::len_utf8));
            let role = match role.bytes().next().unwrap_or_default() % 5 {
                0 => "system",
                1 => "user",
                2 => "assistant",
                3 => "tool",
                _ => content,
            };
            TemplateMessage {
                role: role.to_owned(),
                content: content.to_owned(),
                name: (content.len() % 3 == 0).then(|| content.to_owned()),
            }
        })
        .collect();
    let started = Instant::now();
    let _ = template.render(&messages, which % 2 == 0);
    // A bound on work is a bound on time; generous, because the machine may be busy.
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "a render took too long"
    );
});
