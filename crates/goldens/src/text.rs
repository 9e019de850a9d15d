//! Texts that tokenizers and chat templates get wrong; see `corpus.py`.

use hyprstream_engine::{ModelFiles, TemplateMessage, Tokenizer};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Texts, and what transformers makes of them.
#[derive(Debug, Deserialize)]
pub struct Corpus {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

/// A text and its tokens.
#[derive(Debug, Deserialize)]
struct Text {
    name: String,
    unit: String,
    count: usize,
    num_ids: usize,
    ids_sha256: String,
    whole_sha256: String,
    decoded_sha256: String,
    visible_sha256: String,
    /// Only of short ones.
    ids: Option<Vec<u32>>,
    decoded: Option<String>,
}

/// Prompts of conversations around the text of the same name.
#[derive(Debug, Deserialize)]
struct Chat {
    name: String,
    sha256: [String; 3],
}

impl Text {
    fn text(&self) -> String {
        self.unit.repeat(self.count)
    }
}

impl Corpus {
    /// Checks that ids, with and without what belongs around a text, and the text decoded from
    /// them are those of transformers.
    #[track_caller]
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) {
        for text in &self.texts {
            let name = &text.name;
            let ids = tokenizer.encode(&text.text(), false).unwrap();
            if let Some(expected) = &text.ids {
                assert_eq!(&ids, expected, "{name}");
            }
            assert_eq!(ids.len(), text.num_ids, "{name}");
            assert_eq!(ids_digest(&ids), text.ids_sha256, "{name}");
            let whole = tokenizer.encode(&text.text(), true).unwrap();
            assert_eq!(ids_digest(&whole), text.whole_sha256, "{name}");
            let decoded = tokenizer.decode(&ids, false).unwrap();
            if let Some(expected) = &text.decoded {
                assert_eq!(&decoded, expected, "{name}");
            }
            assert_eq!(text_digest(&decoded), text.decoded_sha256, "{name}");
            let visible = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(text_digest(&visible), text.visible_sha256, "{name}");
        }
    }

    /// Checks that prompts are byte for byte those of transformers.
    #[track_caller]
    pub fn check_template(&self, files: &ModelFiles) {
        let template = files.template.as_ref().expect("the model has a template");
        for (text, chat) in self.texts.iter().zip(&self.chats) {
            assert_eq!(text.name, chat.name);
            let text = text.text();
            let message = |role: &str, content: String| TemplateMessage {
                role: role.to_owned(),
                content,
                name: None,
            };
            let messages = [
                message("system", "Be brief.".to_owned()),
                message("user", text.clone()),
                message("assistant", format!("Yes.{text}")),
                message("user", format!("{text}?")),
            ];
            let parts = [
                (&messages[..], true),
                (&messages[..3], false),
                (&messages[1..2], true),
            ];
            for (index, (messages, more)) in parts.into_iter().enumerate() {
                let prompt = template.render(messages, more).unwrap();
                assert_eq!(
                    text_digest(&prompt),
                    chat.sha256[index],
                    "{}, conversation {index}",
                    chat.name
                );
            }
        }
    }
}

fn ids_digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    hex::encode(Sha256::digest(bytes))
}

fn text_digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
