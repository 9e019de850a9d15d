//! Rotary embeddings: their options in `config.json`, and the frequencies that follow.
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::{Options, refuse};
use crate::{LoadError, Rope};

/// What a rotary embedding is made for, where its options do not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    /// Dimensions of a head that are turned; even.
    pub(crate) rotated: usize,
    /// `rope_theta`.
    pub(crate) theta: f64,
    /// `max_position_embeddings`.
    pub(crate) max_positions: usize,
}

/// How a rotary embedding is stretched beyond the length it was trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, blended between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_positions: f64,
    },
    /// YaRN: as Llama 3 by the number of turns within the original length, blended linearly over
    /// the dimensions. <https://arxiv.org/abs/2309.00071>
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_positions: f64,
        truncate: bool,
    },
}

impl Options {
    /// Takes the one rotary embedding of a model, as written before transformers 5 (`rope_theta`
    /// and `rope_scaling`) or since (`rope_parameters`).
    pub(crate) fn rope(&mut self, defaults: RopeDefaults) -> Result<Rope, LoadError> {
        let theta = self.optional("rope_theta")?.unwrap_or(defaults.theta);
        let (name, options) = self.rope_options()?;
        rope(options, name, RopeDefaults { theta, ..defaults })
    }

    /// Takes the kind of an embedding out of its options, in either spelling.
    pub(crate) fn rope_kind(&mut self) -> Result<String, LoadError> {
        let old: Option<String> = self.optional("type")?;
        let new: Option<String> = self.optional("rope_type")?;
        Ok(new.or(old).unwrap_or_else(|| "default".to_owned()))
    }

    /// Takes whichever of `rope_scaling` and `rope_parameters` is set, and says which.
    pub(crate) fn rope_options(&mut self) -> Result<(&'static str, Options), LoadError> {
        let old: Option<Map<String, Value>> = self.optional("rope_scaling")?;
        let new: Option<Map<String, Value>> = self.optional("rope_parameters")?;
        match (old, new) {
            (Some(_), Some(_)) => Err(refuse(
                "both rope_scaling and rope_parameters are set".into(),
            )),
            (Some(old), None) => Ok(("rope_scaling", Options(old))),
            (None, new) => Ok(("rope_parameters", Options(new.unwrap_or_default()))),
        }
    }
}

/// The rotary embedding that `options`, called `name`, describe.
pub(crate) fn rope(
    mut options: Options,
    name: &str,
    defaults: RopeDefaults,
) -> Result<Rope, LoadError> {
    let theta = options.optional("rope_theta")?.unwrap_or(defaults.theta);
    if !(theta.is_finite() && theta > 1.0) {
        return Err(refuse(format!("rope_theta is {theta}")));
    }
    let kind = options.rope_kind()?;
    let (scaling, attention_factor) = scaling(&mut options, &kind, name, defaults)?;
    if let Some((key, value)) = options.0.into_iter().find(|(_, value)| !value.is_null()) {
        return Err(refuse(format!(
            "the option {name}.{key} = {value} is not supported"
        )));
    }
    Ok(Rope {
        frequencies: frequencies(scaling, theta, defaults.rotated)
            .into_iter()
            .map(|frequency| frequency as f32)
            .collect(),
        attention_factor: attention_factor as f32,
    })
}

/// Takes what stretches the embedding, and the factor of cosine and sine.
fn scaling(
    options: &mut Options,
    kind: &str,
    name: &str,
    defaults: RopeDefaults,
) -> Result<(Scaling, f64), LoadError> {
    let mut positive =
        |key: &str, default: Option<f64>| match options.optional::<f64>(key)?.or(default) {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(refuse(format!("{name}.{key} is {value}"))),
            None => Err(refuse(format!("{name}.{key} is missing"))),
        };
    let original = "original_max_position_embeddings";
    let max_positions = Some(defaults.max_positions as f64);
    match kind {
        "default" => Ok((Scaling::None, 1.0)),
        "linear" => Ok((
            Scaling::Linear {
                factor: positive("factor", None)?,
            },
            1.0,
        )),
        "llama3" => {
            let (low, high) = (
                positive("low_freq_factor", None)?,
                positive("high_freq_factor", None)?,
            );
            if low >= high {
                return Err(refuse(format!(
                    "{name}.low_freq_factor {low} is not below high_freq_factor {high}"
                )));
            }
            let scaling = Scaling::Llama3 {
                factor: positive("factor", None)?,
                low,
                high,
                original_positions: positive(original, max_positions)?,
            };
            Ok((scaling, 1.0))
        }
        "yarn" => {
            let factor = positive("factor", None)?;
            let scaling = Scaling::Yarn {
                factor,
                beta_fast: positive("beta_fast", Some(32.0))?,
                beta_slow: positive("beta_slow", Some(1.0))?,
                original_positions: positive(original, max_positions)?,
                truncate: options.flag("truncate", true)?,
            };
            Ok((scaling, yarn_attention_factor(options, factor)?))
        }
        other => Err(refuse(format!(
            "{name} of the type {other:?} is not supported"
        ))),
    }
}

/// Takes the factor of cosine and sine: what is set, or what the paper advises.
fn yarn_attention_factor(options: &mut Options, factor: f64) -> Result<f64, LoadError> {
    let set: Option<f64> = options.optional("attention_factor")?;
    // Zero counts as not set.
    let mut scale = |key: &str| {
        let scale: Option<f64> = options.optional(key)?;
        Ok::<_, LoadError>(scale.filter(|scale| *scale != 0.0))
    };
    let (numerator, denominator) = (scale("mscale")?, scale("mscale_all_dim")?);
    let advised = |scale: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * scale * factor.ln() + 1.0
        }
    };
    let attention_factor = match (set, numerator, denominator) {
        (Some(set), _, _) => set,
        (None, Some(numerator), Some(denominator)) => advised(numerator) / advised(denominator),
        _ => advised(1.0),
    };
    if attention_factor.is_finite() && attention_factor > 0.0 {
        Ok(attention_factor)
    } else {
        Err(refuse(format!("attention_factor is {attention_factor}")))
    }
}

/// Frequencies of the `rotated / 2` pairs, in radians per position.
fn frequencies(scaling: Scaling, theta: f64, rotated: usize) -> Vec<f64> {
    let pairs = rotated / 2;
    let plain = (0..pairs).map(|pair| theta.powf(-2.0 * pair as f64 / rotated as f64));
    match scaling {
        Scaling::None => plain.collect(),
        Scaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        Scaling::Llama3 {
            factor,
            low,
            high,
            original_positions,
        } => plain
            .map(|f| {
                let turns = original_positions * f / (2.0 * PI);
                blend(f, factor, (turns - low) / (high - low))
            })
            .collect(),
        Scaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_positions,
            truncate,
        } => {
            // The pair that makes so many turns within the original length.
            let pair_of = |turns: f64| {
                rotated as f64 * (original_positions / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
            };
            let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, mut last) = (first.max(0.0), last.min(rotated as f64 - 1.0));
            #[expect(clippy::float_cmp, reason = "only an exact zero is divided by")]
            if first == last {
                last += 0.001;
            }
            plain
                .enumerate()
                .map(|(pair, f)| blend(f, factor, 1.0 - (pair as f64 - first) / (last - first)))
                .collect()
        }
    }
}

/// The frequency itself where `kept` is 1, divided by `factor` where it is 0.
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    kept * frequency + (1.0 - kept) * frequency / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original_positions: 8192.0,
        };
        let plain = frequencies(Scaling::None, 5e5, 128);
        let scaled = frequencies(scaling, 5e5, 128);
        assert!((scaled[0] - plain[0]).abs() < 1e-12);
        assert!((scaled[63] - plain[63] / 8.0).abs() < 1e-12);
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .all(|(s, p)| *s <= *p && *s >= p / 8.0)
        );
    }

    #[test]
    fn yarn_sets_the_attention_factor_as_the_paper_does() {
        let defaults = RopeDefaults {
            rotated: 8,
            theta: 1e4,
            max_positions: 64,
        };
        let factor = |json: Value| {
            let Value::Object(options) = json else {
                unreachable!()
            };
            rope(Options(options), "rope_scaling", defaults)
                .unwrap()
                .attention_factor
        };
        let yarn = |extra: Value| {
            let mut options = serde_json::json!({"rope_type": "yarn", "factor": 4.0});
            let extra = extra.as_object().unwrap().clone();
            options.as_object_mut().unwrap().extend(extra);
            factor(options)
        };
        let expected = (0.1 * 4f64.ln() + 1.0) as f32;
        assert!((yarn(serde_json::json!({})) - expected).abs() < 1e-6);
        assert!((yarn(serde_json::json!({"mscale": 2.0})) - expected).abs() < 1e-6);
        let equal = yarn(serde_json::json!({"mscale": 1.0, "mscale_all_dim": 1.0}));
        assert!((equal - 1.0).abs() < 1e-6);
        let set = yarn(serde_json::json!({"attention_factor": 1.5}));
        assert!((set - 1.5).abs() < 1e-6);
    }
}
