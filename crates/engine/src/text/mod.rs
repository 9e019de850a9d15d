//! Text to tokens and tokens to text.

mod detokenizer;
mod guard;
mod pieces;
mod stop;
mod tokenizer;

pub(crate) use detokenizer::Detokenizer;
pub use guard::Guard;
pub(crate) use stop::{StopMatch, StopMatcher};
pub use tokenizer::{Tokenizer, TokenizerError};

#[cfg(test)]
pub(crate) mod tests;
