//! Where tokens begin in a text.

use hyprstream_engine::Tokenizer;

/// Finds where the tokens of an answer begin in its text, in characters. A token that goes on with
/// a character begins where the character does, and one that is not shown has no width.
#[derive(Debug)]
pub(super) struct Offsets {
    chars: usize,
    /// Of a character whose rest has not come.
    begun: Vec<u8>,
    shows_special: bool,
}

impl Offsets {
    /// For tokens of a text that comes after `chars` characters. Special tokens may be a part of it.
    pub(super) fn new(chars: usize, shows_special: bool) -> Self {
        Self {
            chars,
            begun: Vec::new(),
            shows_special,
        }
    }

    /// Where `token`, the next, begins.
    pub(super) fn next(&mut self, tokenizer: &Tokenizer, token: u32) -> usize {
        let at = self.chars;
        if !self.shows_special && tokenizer.is_special(token) {
            return at;
        }
        self.begun.extend_from_slice(tokenizer.token_bytes(token));
        let mut read = 0;
        let mut chunks = self.begun.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.chars += chunk.valid().chars().count();
            read += chunk.valid().len();
            let invalid = chunk.invalid();
            // `error_len` is absent exactly when the bytes end too early.
            let is_last = chunks.peek().is_none();
            let cut = is_last
                && matches!(std::str::from_utf8(invalid), Err(e) if e.error_len().is_none());
            if !cut && !invalid.is_empty() {
                // Told as U+FFFD.
                self.chars += 1;
                read += invalid.len();
            }
        }
        self.begun.drain(..read);
        at
    }
}

/// Where each of `tokens`, those of a prompt, begins in its `text`, in characters. Tokens that the
/// tokenizer added have no width.
pub(super) fn of_prompt(tokenizer: &Tokenizer, text: &str, tokens: &[u32]) -> Vec<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut chars, mut counted) = (0, 0, 0);
    let mut offsets = Vec::with_capacity(tokens.len());
    for &token in tokens {
        // Back to where a character begins.
        let begin = text.floor_char_boundary(at);
        chars += text
            .get(counted..begin)
            .map_or(0, |new| new.chars().count());
        counted = counted.max(begin);
        offsets.push(chars);
        let own = tokenizer.token_bytes(token);
        let rest = &bytes[at..];
        at += if rest.starts_with(own) {
            own.len()
        } else if tokenizer.is_special(token) {
            0
        } else if let Some(own) = own.strip_prefix(b" ")
            && rest.starts_with(own)
        {
            // Some tokenizers put a space before a text.
            own.len()
        } else {
            own.len().min(rest.len())
        };
    }
    offsets
}

#[cfg(test)]
mod tests {
    use hyprstream_engine::fake;

    use super::*;

    #[test]
    fn tokens_of_one_character_begin_where_it_does_and_hidden_ones_have_no_width() {
        let tokenizer = fake::tokenizer();
        let byte = |byte: u8| u32::from(byte) + 3;
        let tokens: Vec<u32> = "a€b".bytes().map(byte).collect();
        let mut offsets = Offsets::new(5, false);
        let mut next = |token| offsets.next(&tokenizer, token);
        let found: Vec<usize> = tokens.iter().map(|token| next(*token)).collect();
        assert_eq!(found, [5, 6, 6, 6, 7]);
        assert_eq!(next(fake::EOS), 8);
        // What is no UTF-8 is told as one character.
        assert_eq!([next(byte(0xff)), next(byte(b'x'))], [8, 9]);
        let mut shown = Offsets::new(0, true);
        shown.next(&tokenizer, fake::EOS);
        let len = tokenizer.token_bytes(fake::EOS).len();
        assert_eq!(shown.next(&tokenizer, byte(b'x')), len);
    }

    #[test]
    fn tokens_that_were_added_to_a_prompt_have_no_width() {
        let tokenizer = fake::tokenizer();
        let mut tokens = tokenizer.encode("é€x", false).unwrap();
        let plain = of_prompt(&tokenizer, "é€x", &tokens);
        assert!(
            plain.is_sorted() && plain[0] == 0 && *plain.last().unwrap() < 3,
            "{plain:?}"
        );
        tokens.insert(0, fake::EOS);
        let with_begin = of_prompt(&tokenizer, "é€x", &tokens);
        assert_eq!(with_begin[0], 0);
        assert_eq!(with_begin[1..], plain);
    }
}
