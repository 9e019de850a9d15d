//! A model that computes nothing, for tests of what stands above a backend.
//!
//! What it stores for a position is a hash of all tokens up to there, made from what is stored
//! for the position before; its logits are a hash of everything that is stored for the sequence,
//! read back through the block table. So, as with a real model, an entry is right only after the
//! very same tokens. Whoever mixes up blocks, positions, prefixes or rows gets other tokens.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Map, Value, json};

use crate::{
    AdapterId, Backend, BackendError, LogitsWanted, ModelSpec, PackedAdapter, StepBatch,
    StepLogits, text::Tokenizer,
};

/// Size of the vocabulary of [`tokenizer`]: special tokens, bytes and a few words.
pub const VOCAB_SIZE: usize = 262;
/// Length of a row of hidden states.
pub const HIDDEN_SIZE: usize = 4;
/// Beginning of a text.
pub const BOS: u32 = 0;
/// End of a text.
pub const EOS: u32 = 1;

/// See the module. Made by [`FakeBackend::new`].
pub struct FakeBackend {
    spec: ModelSpec,
    cache: Vec<Option<u64>>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    options: FakeOptions,
    adapters: BTreeMap<AdapterId, u64>,
}

/// How a [`FakeBackend`] behaves.
#[derive(Clone, Debug, Default)]
pub struct FakeOptions {
    /// How long a step takes.
    pub step_time: Duration,
    /// A step with this token fails.
    pub failing_token: Option<u32>,
    /// A step with this token panics.
    pub panicking_token: Option<u32>,
    /// A step with this token breaks the backend for good.
    pub fatal_token: Option<u32>,
    /// The logits of a step of a sequence with this token are no numbers.
    pub nan_token: Option<u32>,
    /// The end of a text is as likely as other tokens; otherwise it never comes.
    pub may_end: bool,
    /// The logits are always the same and nothing is stored, so that a step costs nothing.
    pub constant: bool,
    /// Counts steps.
    pub steps: Arc<AtomicUsize>,
    /// Counts the adapters that are attached.
    pub attached: Arc<AtomicUsize>,
}

impl FakeBackend {
    /// A model with `num_blocks` cache blocks of 16 tokens and `max_positions` positions.
    pub fn new(num_blocks: usize, max_positions: usize, options: FakeOptions) -> Self {
        let spec = ModelSpec {
            architecture: "FakeForCausalLM".to_owned(),
            vocab_size: VOCAB_SIZE,
            max_positions,
            block_size: 16,
            num_blocks,
            dtype: "float32".to_owned(),
            device: "cpu".to_owned(),
            hidden_size: HIDDEN_SIZE,
            quantization: "none".to_owned(),
            kernels: "fake".to_owned(),
            weight_bytes: 0,
            kv_cache_bytes: 0,
        };
        Self {
            cache: vec![None; num_blocks * 16],
            spec,
            logits: Vec::new(),
            hidden: Vec::new(),
            options,
            adapters: BTreeMap::new(),
        }
    }

    fn check(&self, tokens: &[u32]) -> Result<(), BackendError> {
        let has = |token: Option<u32>| token.is_some_and(|token| tokens.contains(&token));
        if has(self.options.fatal_token) {
            return Err(BackendError::Fatal("the device is gone".to_owned()));
        }
        if has(self.options.failing_token) {
            return Err(BackendError::Step("out of memory".to_owned()));
        }
        assert!(!has(self.options.panicking_token), "a panic in the backend");
        Ok(())
    }

    /// Refuses a batch in which a block is written that another sequence has too.
    fn check_owners(&self, batch: &StepBatch) -> Result<(), BackendError> {
        let mut users = vec![0_u32; self.spec.num_blocks];
        for sequence in &batch.sequences {
            for block in &sequence.blocks {
                *users.get_mut(*block as usize).ok_or_else(|| {
                    BackendError::Fatal("a block that is not there".to_owned())
                })? += 1;
            }
        }
        for sequence in &batch.sequences {
            let written = sequence.blocks.iter().skip(sequence.position / 16);
            if written.into_iter().any(|block| users[*block as usize] > 1) {
                return Err(BackendError::Fatal("a shared block is written".to_owned()));
            }
        }
        Ok(())
    }
}

impl Backend for FakeBackend {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        self.options.steps.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.options.step_time);
        if self.options.constant {
            let row = || logits(&[], false);
            let wanted = batch.num_rows() * VOCAB_SIZE;
            while self.logits.len() < wanted {
                self.logits.extend(row());
            }
            self.logits.truncate(wanted);
            return StepLogits::new(&mut self.logits, VOCAB_SIZE);
        }
        self.check_owners(batch)?;
        self.logits.clear();
        self.hidden.clear();
        for sequence in &batch.sequences {
            self.check(&sequence.tokens)?;
            let slot = |position: usize| {
                let block = sequence.blocks.get(position / 16)?;
                Some(*block as usize * 16 + position % 16)
            };
            let mut start = START;
            for (id, scale) in &sequence.adapters {
                let seed = self.adapters.get(id).ok_or_else(|| {
                    BackendError::Step("an adapter that is not attached".to_owned())
                })?;
                start = adapt(start, *seed, *scale);
            }
            let lost = || BackendError::Fatal("a position was not stored".to_owned());
            for (position, &token) in (sequence.position..).zip(&sequence.tokens) {
                let before = match position.checked_sub(1) {
                    None => start,
                    Some(before) => slot(before)
                        .and_then(|slot| self.cache[slot])
                        .ok_or_else(lost)?,
                };
                let cell = slot(position).and_then(|slot| self.cache.get_mut(slot));
                *cell.ok_or_else(|| BackendError::Fatal("no block for a token".to_owned()))? =
                    Some(mix(before, token));
            }
            let end = sequence.position + sequence.tokens.len();
            let wanted = match sequence.logits {
                LogitsWanted::None => end..end,
                LogitsWanted::Last => end - 1..end,
                LogitsWanted::All | LogitsWanted::Hidden => sequence.position..end,
            };
            let no_numbers = self
                .options
                .nan_token
                .is_some_and(|t| sequence.tokens.contains(&t));
            for last in wanted {
                let stored = (0..=last).map(|p| slot(p).and_then(|slot| self.cache[slot]));
                let stored: Option<Vec<u64>> = stored.collect();
                let stored = stored.ok_or_else(lost)?;
                if sequence.logits == LogitsWanted::Hidden {
                    self.hidden.extend(state_of(&stored));
                } else if no_numbers {
                    self.logits.extend([f32::NAN; VOCAB_SIZE]);
                } else {
                    self.logits.extend(logits_of(&stored, self.options.may_end));
                }
            }
        }
        StepLogits::with_hidden(&mut self.logits, VOCAB_SIZE, &mut self.hidden, HIDDEN_SIZE)
    }

    fn attach(&mut self, id: AdapterId, adapter: PackedAdapter) -> Result<(), BackendError> {
        let FakeAdapter(seed) = adapter.take()?;
        match seed {
            REFUSED => return Err(BackendError::Step("the adapter is refused".to_owned())),
            FATAL => return Err(BackendError::Fatal("the device is gone".to_owned())),
            _ => {}
        }
        assert!(seed != PANICKING, "a panic in the backend");
        self.adapters.insert(id, seed);
        let attached = &self.options.attached;
        attached.store(self.adapters.len(), Ordering::Release);
        Ok(())
    }

    fn detach(&mut self, id: AdapterId) {
        self.adapters.remove(&id);
        let attached = &self.options.attached;
        attached.store(self.adapters.len(), Ordering::Release);
    }
}

/// An adapter of a [`FakeBackend`]: what it does depends on this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeAdapter(pub u64);

/// The adapter that is refused.
pub const REFUSED: u64 = u64::MAX;
/// The adapter that panics when it is attached.
pub const PANICKING: u64 = u64::MAX - 1;
/// The adapter that breaks the backend for good.
pub const FATAL: u64 = u64::MAX - 2;

impl FakeAdapter {
    /// For [`Backend::attach`].
    pub fn packed(self) -> PackedAdapter {
        PackedAdapter::new(self, 8)
    }
}

/// What comes before the first entry with one adapter more.
fn adapt(start: u64, seed: u64, scale: f32) -> u64 {
    let bits = seed ^ u64::from(scale.to_bits()).rotate_left(32);
    (start ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What comes before the first entry.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(before: u64, token: u32) -> u64 {
    let mixed = (before ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3);
    mixed ^ mixed >> 29
}

/// What is stored for `tokens`.
fn entries(tokens: &[u32], adapters: &[(FakeAdapter, f32)]) -> Vec<u64> {
    let stack = adapters.iter();
    let mut before = stack.fold(START, |start, (adapter, scale)| {
        adapt(start, adapter.0, *scale)
    });
    let entry = |token: &u32| {
        before = mix(before, *token);
        before
    };
    tokens.iter().map(entry).collect()
}

fn digest(stored: &[u64]) -> u64 {
    stored.iter().fold(START, |hash, entry| {
        (hash ^ entry).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The logits that follow `tokens`.
pub fn logits(tokens: &[u32], may_end: bool) -> Vec<f32> {
    logits_of(&entries(tokens, &[]), may_end)
}

/// The hidden state of the last of `tokens`.
pub fn hidden(tokens: &[u32]) -> [f32; HIDDEN_SIZE] {
    state_of(&entries(tokens, &[]))
}

fn state_of(stored: &[u64]) -> [f32; HIDDEN_SIZE] {
    let bytes = digest(stored).to_le_bytes();
    std::array::from_fn(|i| f32::from(bytes[i]) - 128.0)
}

fn logits_of(stored: &[u64], may_end: bool) -> Vec<f32> {
    let seed = digest(stored);
    (0..VOCAB_SIZE as u64)
        .map(|token| {
            let mut bits = (seed ^ token.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits ^= bits >> 31;
            let wild = (bits % 10_000) as f32 / 1_000.0;
            match token {
                1 if may_end => wild,
                0..=2 => -100.0,
                // Letters and spaces, so that the text reads as one.
                35..=127 => wild + 4.0,
                _ => wild,
            }
        })
        .collect()
}

/// The answer that greedy decoding gives to `prompt`.
pub fn greedy(prompt: &[u32], count: usize) -> Vec<u32> {
    greedy_with(&[], prompt, count)
}

/// The answer that greedy decoding gives to `prompt` with `adapters` and their scales.
pub fn greedy_with(adapters: &[(FakeAdapter, f32)], prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let row = logits_of(&entries(&tokens, adapters), false);
        let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

/// A byte-level tokenizer: `<s>`, `</s>`, `<|im_end|>`, 256 bytes, and the pairs `he`, `ll` and
/// `th`. Its ids are below [`VOCAB_SIZE`].
///
/// # Panics
/// Never: the description is constant.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(tokenizer_json().to_string().as_bytes())
        .expect("the description is constant and right")
}

/// What [`tokenizer`] is made of, as a `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let specials = ["<s>", "</s>", "<|im_end|>"];
    let mut vocab = Map::new();
    let mut next = 0x100_u32;
    let mut letters = Vec::new();
    for byte in 0..=255_u8 {
        let printable =
            (b'!'..=b'~').contains(&byte) || (0xa1..=0xac).contains(&byte) || byte >= 0xae;
        let code = if printable {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        letters.extend(char::from_u32(code).map(String::from));
    }
    let pairs = ["he", "ll", "th"].map(str::to_owned);
    for name in specials
        .map(str::to_owned)
        .into_iter()
        .chain(letters)
        .chain(pairs)
    {
        vocab.insert(name, Value::from(vocab.len()));
    }
    let added: Vec<Value> = specials
        .iter()
        .zip(0..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["t", "h"]]},
    })
}
