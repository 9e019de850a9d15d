//! Gemma 2: <https://arxiv.org/abs/2408.00118>. Norms on both sides of each part, soft caps on
//! scores and logits, and every other layer attends through a sliding window.

use crate::{
    Activation, AttentionKind, DecoderConfig, LoadError,
    config::{Options, RopeDefaults},
};

pub(super) const ARCHITECTURE: &str = "Gemma2ForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    let gemma = gemma(options, ARCHITECTURE)?;
    let window = Some(options.size("sliding_window")?);
    let sliding = options.sliding_layers(gemma.num_layers(), |index| index % 2 == 0)?;
    let layers = sliding
        .into_iter()
        .map(|sliding| AttentionKind {
            window: window.filter(|_| sliding),
            rope: 0,
        })
        .collect();
    let rope = options.rope(RopeDefaults {
        rotated: gemma.head_dim,
        theta: 10_000.0,
        max_positions: gemma.max_positions,
    })?;
    Ok(DecoderConfig {
        attention_softcap: options.explicit("attn_logit_softcapping")?,
        logit_softcap: options.explicit("final_logit_softcapping")?,
        layers,
        ropes: vec![rope],
        ..gemma
    })
}

/// What Gemma 2 and 3 have in common.
pub(super) fn gemma(options: &mut Options, architecture: &str) -> Result<DecoderConfig, LoadError> {
    options.must_have("head_dim")?;
    options.must_have("num_key_value_heads")?;
    let plain = options.plain(architecture)?;
    let attention_bias = options.flag("attention_bias", false)?;
    let score_scale = options.size("query_pre_attn_scalar")? as f64;
    // Some configurations repeat the nonlinearity under its old name.
    options.must_be("hidden_act", &["gelu_pytorch_tanh".into()])?;
    options.must_be("use_bidirectional_attention", &[false.into()])?;
    Ok(DecoderConfig {
        norm_plus_one: true,
        sandwich_norms: true,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        activation: options.activation("hidden_activation", Activation::GeluTanh)?,
        embedding_scale: (plain.hidden_size as f64).sqrt(),
        attention_scale: 1.0 / score_scale.sqrt(),
        tied_head: options.flag("tie_word_embeddings", true)?,
        ..plain
    })
}
