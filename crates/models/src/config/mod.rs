//! `config.json`, strictly: every option is honoured or refused by name.

mod json;
mod options;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

pub(crate) use json::of_python;
pub(crate) use options::Options;
pub(crate) use rope::{RopeDefaults, rope};

use crate::{DecoderConfig, LoadError, StoredType, checkpoint::read_json, families};

impl DecoderConfig {
    /// Reads `config.json` in `dir`. Also returns the type that the model says it was saved in,
    /// if it says.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedArchitecture`], or [`LoadError::InvalidConfig`] with the name of
    /// the first option that is missing, makes no sense or is not honoured.
    pub fn read(dir: &Path) -> Result<(Self, Option<StoredType>), LoadError> {
        Self::parse(&read_json(&dir.join("config.json"))?)
    }

    /// As [`Self::read`], from the text of the file.
    pub fn parse(text: &str) -> Result<(Self, Option<StoredType>), LoadError> {
        let mut options = Options::parse(text)?;
        let family = families::find(&mut options)?;
        let saved_as = options.saved_as()?;
        let config = family(&mut options)?;
        options.finish()?;
        config.check()?;
        Ok((config, saved_as))
    }

    /// Refuses sizes that no backend could allocate or divide by.
    fn check(&self) -> Result<(), LoadError> {
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_layers(), 4096),
            ("num_attention_heads", self.num_heads, 4096),
            ("num_key_value_heads", self.num_kv_heads, self.num_heads),
            ("head_dim", self.head_dim, 4096),
            ("max_position_embeddings", self.max_positions, 1 << 24),
        ] {
            if !(1..=most).contains(&value) {
                return Err(refuse(format!(
                    "{name} is {value}, which is not in 1..={most}"
                )));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(refuse(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.num_heads, self.num_kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(refuse(format!(
                "head_dim is {}, which is odd",
                self.head_dim
            )));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(refuse(format!("rms_norm_eps is {}", self.norm_eps)));
        }
        if let Some(layer) = self.layers.iter().find(|l| l.window == Some(0)) {
            return Err(refuse(format!("sliding_window is {:?}", layer.window)));
        }
        for (name, cap) in [
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ] {
            if let Some(cap) = cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
                return Err(refuse(format!("{name} is {cap}")));
            }
        }
        Ok(())
    }
}

/// Refuses a configuration.
pub(crate) fn refuse(why: String) -> LoadError {
    LoadError::InvalidConfig(why)
}
