//! Qwen2 and 2.5: <https://arxiv.org/abs/2407.10671>. A Llama whose queries, keys and values have
//! biases, and whose upper layers may attend through a sliding window.

use crate::{
    Activation, AttentionKind, DecoderConfig, LoadError,
    config::{Options, RopeDefaults, refuse},
};

pub(super) const ARCHITECTURE: &str = "Qwen2ForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    Ok(DecoderConfig {
        qkv_bias: true,
        ..windowed(options, ARCHITECTURE)?
    })
}

/// What Qwen2 and Qwen3 have in common.
pub(super) fn windowed(
    options: &mut Options,
    architecture: &str,
) -> Result<DecoderConfig, LoadError> {
    options.must_have("num_key_value_heads")?;
    let plain = options.plain(architecture)?;
    options.must_be("use_mrope", &[false.into()])?;
    let rope = options.rope(RopeDefaults {
        rotated: plain.head_dim,
        theta: 10_000.0,
        max_positions: plain.max_positions,
    })?;
    Ok(DecoderConfig {
        activation: options.activation("hidden_act", Activation::Silu)?,
        tied_head: options.flag("tie_word_embeddings", false)?,
        layers: layers(options, plain.num_layers())?,
        ropes: vec![rope],
        ..plain
    })
}

fn layers(options: &mut Options, num_layers: usize) -> Result<Vec<AttentionKind>, LoadError> {
    let used = options.flag("use_sliding_window", false)?;
    let window = options
        .optional::<usize>("sliding_window")?
        .filter(|_| used);
    let full_layers = options.optional::<usize>("max_window_layers")?;
    let sliding = options.sliding_layers(num_layers, |index| {
        // The name notwithstanding, the window is used from this layer on.
        window.is_some() && full_layers.is_some_and(|full| index >= full)
    })?;
    if used && window.is_none() {
        return Err(refuse(
            "use_sliding_window: sliding_window is missing".into(),
        ));
    }
    if window.is_none() && sliding.contains(&true) {
        return Err(refuse(
            "layer_types has sliding_attention, but use_sliding_window is false".into(),
        ));
    }
    if used && full_layers.is_none() {
        return Err(refuse(
            "use_sliding_window: max_window_layers is missing".into(),
        ));
    }
    Ok(sliding
        .into_iter()
        .map(|sliding| AttentionKind {
            window: window.filter(|_| sliding),
            rope: 0,
        })
        .collect())
}
