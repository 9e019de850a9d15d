//! The bytes behind every token.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, Tokenizer};

/// Of every token its bytes and whether it is special, in one block of memory.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Invariant: one longer than the vocabulary, ascending, ending at `bytes.len()`.
    ends: Vec<u32>,
    special: Vec<bool>,
    /// Bytes of the longest token as the vocabulary writes it.
    longest_name: usize,
    /// Texts are spelled in bytes, so that no character is unknown.
    is_byte_level: bool,
}

/// How a tokenizer writes bytes in its vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Every byte as a printable character (GPT-2).
    ByteLevel,
    /// `▁` for a space and `<0x0A>` for a byte (SentencePiece).
    SentencePiece,
    /// As it is.
    Plain,
}

impl Pieces {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let spelling = spelling(tokenizer.get_decoder());
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |id| *id as usize + 1);
        let mut names = vec![""; len];
        for (name, &id) in &vocab {
            names[id as usize] = name;
        }
        let longest_name = vocab.keys().map(String::len).max().unwrap_or(0);
        let mut special = vec![false; len];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            special[id as usize] = token.special;
        }
        let alphabet = byte_alphabet();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(len + 1);
        ends.push(0);
        for name in names {
            spell(name, spelling, &alphabet, &mut bytes);
            ends.push(bytes.len() as u32);
        }
        Self {
            bytes,
            ends,
            special,
            longest_name,
            is_byte_level: spelling == Spelling::ByteLevel,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.special.len()
    }

    /// Bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        let lengths = self.ends.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().unwrap_or(0) as usize
    }

    /// Bytes of the longest token as the vocabulary writes it.
    pub(crate) fn longest_name(&self) -> usize {
        self.longest_name
    }

    pub(crate) fn is_byte_level(&self) -> bool {
        self.is_byte_level
    }

    /// Whether every byte is a token.
    pub(crate) fn has_every_byte(&self) -> bool {
        let mut has = [false; 256];
        for pair in self.ends.windows(2).filter(|pair| pair[1] - pair[0] == 1) {
            has[usize::from(self.bytes[pair[0] as usize])] = true;
        }
        has.iter().all(|has| *has)
    }

    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        match (self.ends.get(token), self.ends.get(token + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    pub(crate) fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }
}

fn spelling(decoder: Option<&DecoderWrapper>) -> Spelling {
    // A decoder says what it is when written as JSON; the wrapper's own types are private in part.
    let json = decoder
        .and_then(|d| serde_json::to_string(d).ok())
        .unwrap_or_default();
    if json.contains("\"ByteLevel\"") {
        Spelling::ByteLevel
    } else if json.contains("\"ByteFallback\"")
        || json.contains("\"Metaspace\"")
        || json.contains('▁')
    {
        Spelling::SentencePiece
    } else {
        Spelling::Plain
    }
}

fn spell(name: &str, spelling: Spelling, alphabet: &HashMap<char, u8>, out: &mut Vec<u8>) {
    match spelling {
        Spelling::ByteLevel => {
            let start = out.len();
            for c in name.chars() {
                if let Some(&byte) = alphabet.get(&c) {
                    out.push(byte);
                } else {
                    // Not written in that alphabet, as added tokens are: taken as it stands.
                    out.truncate(start);
                    out.extend_from_slice(name.as_bytes());
                    return;
                }
            }
        }
        Spelling::SentencePiece => {
            let byte = name
                .strip_prefix("<0x")
                .and_then(|rest| rest.strip_suffix('>'))
                .filter(|hex| hex.len() == 2)
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match byte {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(name.replace('▁', " ").as_bytes()),
            }
        }
        Spelling::Plain => out.extend_from_slice(name.as_bytes()),
    }
}

/// GPT-2's printable character of every byte, backwards: printable Latin-1 stands for itself, the
/// other bytes for the characters from U+0100 on, in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |b: u8| (b'!'..=b'~').contains(&b) || (0xa1..=0xac).contains(&b) || b >= 0xae;
    let mut next = 0x100_u32;
    (0..=255_u8)
        .filter_map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).map(|c| (c, byte))
        })
        .collect()
}
