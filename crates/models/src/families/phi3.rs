//! Phi-3: <https://arxiv.org/abs/2404.14219>. A Mistral whose projections are fused, and of whose
//! heads only a part may be turned.

use crate::{
    Activation, AttentionKind, DecoderConfig, LoadError, WeightNames,
    config::{Options, RopeDefaults, refuse, rope},
};

pub(super) const ARCHITECTURE: &str = "Phi3ForCausalLM";

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    let plain = options.plain(ARCHITECTURE)?;
    let window = options.optional("sliding_window")?;
    options.must_be("attention_bias", &[false.into()])?;
    // Only `longrope`, which is refused, asks for it.
    let _original: Option<usize> = options.optional("original_max_position_embeddings")?;

    let theta = options.optional("rope_theta")?.unwrap_or(10_000.0);
    let outer_part: Option<f64> = options.optional("partial_rotary_factor")?;
    let (name, mut parameters) = options.rope_options()?;
    let part = parameters.optional("partial_rotary_factor")?.or(outer_part);
    let rotated = (plain.head_dim as f64 * part.unwrap_or(1.0)) as usize;
    if rotated == 0 || rotated > plain.head_dim || !rotated.is_multiple_of(2) {
        return Err(refuse(format!(
            "partial_rotary_factor: {rotated} of {} dimensions cannot be turned",
            plain.head_dim
        )));
    }
    let kind = parameters.rope_kind()?;
    if kind != "default" {
        // Phi-3's own code calls it "su" or "yarn".
        return Err(refuse(format!(
            "{name} of the type {kind:?} is not supported with {ARCHITECTURE}"
        )));
    }
    let defaults = RopeDefaults {
        rotated,
        theta,
        max_positions: plain.max_positions,
    };
    Ok(DecoderConfig {
        activation: options.activation("hidden_act", Activation::Silu)?,
        tied_head: options.flag("tie_word_embeddings", false)?,
        layers: vec![AttentionKind { window, rope: 0 }; plain.num_layers()],
        ropes: vec![rope(parameters, name, defaults)?],
        names: WeightNames::Fused,
        ..plain
    })
}
