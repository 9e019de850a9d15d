//! Families: each turns the options of its `config.json` into a [`DecoderConfig`].

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use crate::{
    DecoderConfig, LoadError,
    config::{Options, refuse},
};

/// Reads the options of one family.
pub(crate) type Family = fn(&mut Options) -> Result<DecoderConfig, LoadError>;

/// Name of the architecture, `model_type`, and who reads it.
const FAMILIES: [(&str, &str, Family); 7] = [
    (llama::ARCHITECTURE, "llama", llama::read),
    (mistral::ARCHITECTURE, "mistral", mistral::read),
    (qwen2::ARCHITECTURE, "qwen2", qwen2::read),
    (qwen3::ARCHITECTURE, "qwen3", qwen3::read),
    (gemma2::ARCHITECTURE, "gemma2", gemma2::read),
    (gemma3::ARCHITECTURE, "gemma3_text", gemma3::read),
    (phi3::ARCHITECTURE, "phi3", phi3::read),
];

/// Takes the names of the architecture and returns who reads the rest.
pub(crate) fn find(options: &mut Options) -> Result<Family, LoadError> {
    let names: Vec<String> = options.optional("architectures")?.unwrap_or_default();
    let model_type: Option<String> = options.optional("model_type")?;
    let Some(name) = names.first() else {
        return Err(refuse("architectures is missing".into()));
    };
    let unsupported = |name: &str| LoadError::UnsupportedArchitecture {
        name: name.chars().take(80).collect(),
        supported: FAMILIES.map(|(name, _, _)| name).join(", "),
    };
    let family = FAMILIES
        .iter()
        .find(|(architecture, _, _)| architecture == name);
    let Some((_, expected, family)) = family.filter(|_| names.len() == 1) else {
        return Err(unsupported(name));
    };
    match model_type.as_deref() {
        Some(other) if other != *expected => Err(unsupported(other)),
        _ => Ok(*family),
    }
}
