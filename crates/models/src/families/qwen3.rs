//! Qwen3: <https://arxiv.org/abs/2505.09388>. A Qwen2 whose queries and keys are normalised
//! instead of shifted.

use super::qwen2;
use crate::{DecoderConfig, LoadError, config::Options};

pub(super) const ARCHITECTURE: &str = "Qwen3ForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    options.must_have("head_dim")?;
    let attention_bias = options.flag("attention_bias", false)?;
    Ok(DecoderConfig {
        qk_norm: true,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        ..qwen2::windowed(options, ARCHITECTURE)?
    })
}
