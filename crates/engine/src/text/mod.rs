//! Text to tokens and tokens to text.

mod detokenizer;
mod guard;
mod pieces;
mod shrink;
mod stop;
mod tokenizer;

pub(crate) use detokenizer::Detokenizer;
pub use guard::Guard;
pub use stop::Aside;
pub(crate) use stop::{StopMatch, StopMatcher};
pub use tokenizer::{Tokenizer, TokenizerError};

#[cfg(test)]
pub(crate) mod tests;
