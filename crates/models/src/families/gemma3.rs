//! Gemma 3, the text part: <https://arxiv.org/abs/2503.19786>. A Gemma 2 whose queries and keys
//! are normalised instead of capped, with several local layers to each global one, and a rotary
//! embedding for each kind.

use super::gemma2::gemma;
use crate::{
    AttentionKind, DecoderConfig, LoadError, Rope,
    config::{Options, RopeDefaults, refuse, rope},
};

pub(super) const ARCHITECTURE: &str = "Gemma3ForCausalLM";

/// Indices into [`DecoderConfig::ropes`].
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

pub(super) fn read(options: &mut Options) -> Result<DecoderConfig, LoadError> {
    let gemma = gemma(options, ARCHITECTURE)?;
    let window = options.size("sliding_window")?;
    let period = options.optional("sliding_window_pattern")?.unwrap_or(6);
    if period == 0 {
        return Err(refuse("sliding_window_pattern is 0".into()));
    }
    let sliding = options.sliding_layers(gemma.num_layers(), |index| (index + 1) % period != 0)?;
    let layers = sliding
        .into_iter()
        .map(|sliding| AttentionKind {
            window: sliding.then_some(window),
            rope: if sliding { LOCAL } else { GLOBAL },
        })
        .collect();
    // transformers reads the option and does not use it.
    options.must_be("attn_logit_softcapping", &[])?;
    Ok(DecoderConfig {
        qk_norm: true,
        logit_softcap: options.optional("final_logit_softcapping")?,
        layers,
        ropes: ropes(options, gemma.head_dim, gemma.max_positions)?,
        ..gemma
    })
}

/// The global embedding and the local one.
fn ropes(
    options: &mut Options,
    head_dim: usize,
    max_positions: usize,
) -> Result<Vec<Rope>, LoadError> {
    let theta = options.optional("rope_theta")?.unwrap_or(1_000_000.0);
    let local_theta = options
        .optional("rope_local_base_freq")?
        .unwrap_or(10_000.0);
    let (name, mut parameters) = options.rope_options()?;
    let (global, local) = if name == "rope_scaling" {
        // Before transformers 5 only the global embedding was scaled.
        (parameters, Options::default())
    } else {
        let global = parameters.nested("full_attention")?;
        let local = parameters.nested("sliding_attention")?;
        parameters.finish()?;
        (global, local)
    };
    [(global, theta), (local, local_theta)]
        .into_iter()
        .map(|(mut options, theta)| {
            // transformers looks for it where it is not.
            options.must_be("truncate", &[true.into()])?;
            let defaults = RopeDefaults {
                rotated: head_dim,
                theta,
                max_positions,
            };
            rope(options, name, defaults)
        })
        .collect()
}
