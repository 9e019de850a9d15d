//! What past messages hold that says nothing to this server.

use std::fmt::Write;

/// Most names that are told; further ones are told of by an ellipsis.
const MAX_NAMES: usize = 16;
/// Longest name that is told, in characters.
const MAX_NAME: usize = 64;

/// Names of members of past messages that were read over. A client sends its history back as it
/// keeps it, with members that it or another server added; these ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    names: Vec<String>,
    more: bool,
}

impl Ignored {
    /// Notes the member at `path`, such as `messages[3].thinking_blocks`, once for all messages.
    pub(crate) fn note(&mut self, path: &str) {
        let mut name = String::new();
        let mut within = false;
        for c in path.chars() {
            match c {
                '[' => within = true,
                ']' => within = false,
                _ if within => {}
                // What comes from a client goes into a header.
                c if c.is_ascii_alphanumeric() || "_-.".contains(c) => name.push(c),
                _ => name.push('_'),
            }
        }
        name.truncate(MAX_NAME);
        self.add(name);
    }

    /// Notes what `other` holds as well.
    pub(crate) fn append(&mut self, other: Self) {
        self.more |= other.more;
        other.names.into_iter().for_each(|name| self.add(name));
    }

    fn add(&mut self, name: String) {
        if self.names.contains(&name) {
        } else if self.names.len() < MAX_NAMES {
            self.names.push(name);
        } else {
            self.more = true;
        }
    }

    /// The value of a header that tells them: ASCII, parted by commas, at most about 1 KiB. `None`
    /// when there are none.
    pub fn header(&self) -> Option<String> {
        let mut value = self.names.join(", ");
        if self.more {
            let _ = write!(value, ", ...");
        }
        (!value.is_empty()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_once_and_are_few_and_tame() {
        let mut ignored = Ignored::default();
        assert_eq!(ignored.header(), None);
        ignored.note("messages[0].x");
        ignored.note("messages[17].x");
        ignored.note("messages[17].content[3].é\r\ny: z");
        assert_eq!(
            ignored.header().as_deref(),
            Some("messages.x, messages.content.___y__z")
        );
        for index in 0..1000 {
            ignored.note(&format!("messages[0].{index}{}", "z".repeat(500)));
        }
        let header = ignored.header().unwrap();
        assert!(header.len() < 1200 && header.ends_with(", ..."), "{header}");
    }
}
