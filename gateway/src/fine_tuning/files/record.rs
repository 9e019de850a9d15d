//! What is known of a file: the message of its commit.

use hyprstream_openai::files::File;
use serde::{Deserialize, Serialize};

use super::{super::registry::Object, Form, PREFIX};

/// The only purpose that files have here.
pub(super) const PURPOSE: &str = "fine-tune";
/// What the line of a commit's message begins with that holds all of a file.
const LINE: &str = "OpenAI-File: ";
/// Longest name, in characters.
const MAX_NAME_CHARS: usize = 255;
const UNNAMED: &str = "file";

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct FileRecord {
    /// Its name as the client gave it.
    pub(in super::super) filename: String,
    /// What it is for.
    pub(in super::super) purpose: String,
    /// When it came, in seconds since 1970.
    pub(in super::super) created_at: i64,
    /// Its content.
    pub(in super::super) object: Object,
    /// Lines that can be learnt from.
    pub(in super::super) records: u64,
    /// What they are.
    pub(in super::super) form: Form,
}

impl FileRecord {
    /// The record in a commit's message, if it has one.
    pub(in super::super) fn read(message: &str) -> Option<Self> {
        let line = message.lines().find_map(|line| line.strip_prefix(LINE))?;
        serde_json::from_str(line).ok()
    }

    /// The message of its commit.
    pub(super) fn message(&self) -> String {
        let all = serde_json::to_string(self).expect("texts and numbers are JSON");
        format!("Add {}\n\n{LINE}{all}\n", self.filename)
    }

    /// What clients are told.
    pub(in super::super) fn file(&self, id: &str) -> File {
        File {
            id: id.to_owned(),
            object: "file".to_owned(),
            bytes: self.object.size,
            created_at: self.created_at,
            filename: self.filename.clone(),
            purpose: self.purpose.clone(),
            status: "processed".to_owned(),
            status_details: None,
        }
    }

    /// Whether both are of the same request.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.filename, &self.object, &self.purpose)
            == (&other.filename, &other.object, &other.purpose)
    }
}

/// The branch of a file.
pub(in super::super) fn branch(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// A name without folders and without what is no visible character.
pub(super) fn clean_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let visible: String = last
        .chars()
        .filter(|c| !c.is_control() && !('\u{2028}'..='\u{202e}').contains(c))
        .take(MAX_NAME_CHARS)
        .collect();
    let name = visible.trim();
    if name.is_empty() { UNNAMED } else { name }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_holds_all_of_a_file() {
        let record = FileRecord {
            filename: clean_name("C:\\x/my \u{202e}data\n.jsonl"),
            purpose: PURPOSE.to_owned(),
            created_at: 7,
            object: Object {
                oid: "0".repeat(64),
                size: 3,
            },
            records: 1,
            form: Form::Chat,
        };
        assert_eq!(record.filename, "my data.jsonl");
        let message = record.message();
        assert!(message.starts_with("Add my data.jsonl\n\nOpenAI-File: {"));
        assert_eq!(FileRecord::read(&message).as_ref(), Some(&record));
        assert_eq!(FileRecord::read("Begin\n"), None);
        assert_eq!(clean_name("../"), "file");
        assert_eq!(record.file("file-1").bytes, 3);
    }
}
