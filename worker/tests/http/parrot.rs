//! A model that says what it was told to: the text after `say ` in the last message of the user.
//! So a test chooses what a model answers, token by token, through the real engine.

use hyprstream_engine::{
    Backend, BackendError, LogitsWanted, ModelSpec, StepBatch, StepLogits,
    fake::{EOS, FakeBackend, FakeOptions, HIDDEN_SIZE, VOCAB_SIZE},
};

/// `<|im_end|>`, which ends a message in the template of the tests.
const IM_END: u32 = 2;

pub(crate) struct Parrot {
    spec: ModelSpec,
    cache: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
}

impl Parrot {
    pub(crate) fn new() -> Self {
        let fake = FakeBackend::new(4096, 12_000, FakeOptions::default());
        Self {
            spec: fake.spec().clone(),
            cache: vec![0; 4096 * 16],
            logits: Vec::new(),
            hidden: Vec::new(),
        }
    }
}

/// What follows `tokens`.
fn next(tokens: &[u32]) -> u32 {
    let text: Vec<u32> = "say ".bytes().map(byte).collect();
    let begin = tokens
        .windows(text.len())
        .rposition(|window| window == text)
        .map(|at| at + text.len());
    let Some(begin) = begin else { return EOS };
    let message = tokens[begin..].split(|token| *token == IM_END).next();
    let message = message.unwrap_or_default();
    let after = begin + message.len() + 1;
    // "assistant: " comes between, of which `<|im_end|>` is not a part.
    let prompt = "assistant: ".len();
    let said = tokens.len().saturating_sub(after + prompt);
    message.get(said).copied().unwrap_or(EOS)
}

/// The token of a byte: they come in order after three special ones.
fn byte(byte: u8) -> u32 {
    u32::from(byte) + 3
}

impl Backend for Parrot {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepLogits<'_>, BackendError> {
        self.logits.clear();
        self.hidden.clear();
        for sequence in &batch.sequences {
            let slot = |p: usize| sequence.blocks[p / 16] as usize * 16 + p % 16;
            for (p, &token) in (sequence.position..).zip(&sequence.tokens) {
                self.cache[slot(p)] = token;
            }
            let end = sequence.position + sequence.tokens.len();
            let wanted = match sequence.logits {
                LogitsWanted::None => end..end,
                LogitsWanted::Last => end - 1..end,
                LogitsWanted::All => sequence.position..end,
                LogitsWanted::Hidden => {
                    let zeros = sequence.tokens.len() * HIDDEN_SIZE;
                    self.hidden.extend(std::iter::repeat_n(0.0, zeros));
                    end..end
                }
            };
            for last in wanted {
                let tokens: Vec<u32> = (0..=last).map(|p| self.cache[slot(p)]).collect();
                let mut row = vec![0.0; VOCAB_SIZE];
                row[next(&tokens) as usize] = 100.0;
                self.logits.extend(row);
            }
        }
        StepLogits::with_hidden(&mut self.logits, VOCAB_SIZE, &mut self.hidden, HIDDEN_SIZE)
    }
}
