//! Mistral: <https://arxiv.org/abs/2310.06825>. A Llama without biases in which every layer may
//! attend through a sliding window.

use crate::{
    Activation, AttentionKind, DecoderConfig, LoadError,
    config::{Options, RopeDefaults},
};

pub(super) const ARCHITECTURE: &str = "MistralForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    options.must_have("num_key_value_heads")?;
    let plain = options.plain(ARCHITECTURE)?;
    let window = options.explicit("sliding_window")?;
    let rope = options.rope(RopeDefaults {
        rotated: plain.head_dim,
        theta: 10_000.0,
        max_positions: plain.max_positions,
    })?;
    Ok(DecoderConfig {
        activation: options.activation("hidden_act", Activation::Silu)?,
        tied_head: options.flag("tie_word_embeddings", false)?,
        layers: vec![AttentionKind { window, rope: 0 }; plain.num_layers()],
        ropes: vec![rope],
        ..plain
    })
}
