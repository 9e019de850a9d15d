//! Llama 2 and 3: <https://arxiv.org/abs/2307.09288>, <https://arxiv.org/abs/2407.21783>.

use crate::{
    Activation, DecoderConfig, LoadError,
    config::{Options, RopeDefaults},
};

pub(super) const ARCHITECTURE: &str = "LlamaForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    let plain = options.plain(ARCHITECTURE)?;
    let attention_bias = options.flag("attention_bias", false)?;
    options.must_be("rope_interleaved", &[false.into()])?;
    options.must_be("partial_rotary_factor", &[1.0.into(), 1.into()])?;
    let rope = options.rope(RopeDefaults {
        rotated: plain.head_dim,
        theta: 10_000.0,
        max_positions: plain.max_positions,
    })?;
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: options.flag("mlp_bias", false)?,
        activation: options.activation("hidden_act", Activation::Silu)?,
        tied_head: options.flag("tie_word_embeddings", false)?,
        ropes: vec![rope],
        ..plain
    })
}
