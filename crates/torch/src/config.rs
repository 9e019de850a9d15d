//! `config.json` of the Llama family, strictly: every option is honoured or refused by name.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tch::Kind;

use crate::{LoadError, checkpoint};

/// A checked configuration of `LlamaForCausalLM`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LlamaConfig {
    pub(crate) vocab_size: i64,
    pub(crate) hidden_size: i64,
    pub(crate) intermediate_size: i64,
    pub(crate) num_layers: i64,
    pub(crate) num_heads: i64,
    pub(crate) num_kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) max_positions: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) tie_word_embeddings: bool,
    pub(crate) rope: RopeConfig,
    /// The type that the model was saved in, if it says.
    pub(crate) kind: Option<Kind>,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub(crate) theta: f64,
    pub(crate) scaling: RopeScaling,
}

/// How a rotary embedding is stretched beyond the length it was trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeScaling {
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
}

/// Options that say nothing about how the model computes its logits from given tokens.
const WITHOUT_EFFECT: &[&str] = &[
    // Where it comes from.
    "transformers_version",
    "transformers.js_config",
    "unsloth_version",
    "unsloth_fixed",
    "is_llama_config",
    // The tokenizer's and the generator's concern.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "max_length",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    // Training only.
    "attention_dropout",
    "initializer_range",
    // How transformers splits the work, without effect on the result.
    "pretraining_tp",
    "base_model_tp_plan",
    "torchscript",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
];

impl LlamaConfig {
    /// Reads `config.json` in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        let text = checkpoint::read_json(&dir.join("config.json"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, LoadError> {
        let options: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let mut options = Options(options);
        options.check_architecture()?;
        let hidden_size = options.size("hidden_size")?;
        let num_heads = options.size("num_attention_heads")?;
        let max_positions = options.size("max_position_embeddings")?;
        let num_kv_heads = options
            .optional("num_key_value_heads")?
            .unwrap_or(num_heads);
        let head_dim = options
            .optional("head_dim")?
            .unwrap_or(hidden_size / num_heads);
        let config = Self {
            vocab_size: options.size("vocab_size")?,
            hidden_size,
            intermediate_size: options.size("intermediate_size")?,
            num_layers: options.size("num_hidden_layers")?,
            num_heads,
            num_kv_heads,
            head_dim,
            max_positions: max_positions as usize,
            rms_norm_eps: options.optional("rms_norm_eps")?.unwrap_or(1e-6),
            attention_bias: options.optional("attention_bias")?.unwrap_or(false),
            mlp_bias: options.optional("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: options.optional("tie_word_embeddings")?.unwrap_or(false),
            rope: options.rope()?,
            kind: options.kind()?,
        };
        options.must_be("hidden_act", &["silu".into()], Some("silu".into()))?;
        options.must_be("rope_interleaved", &[false.into()], None)?;
        options.must_be("partial_rotary_factor", &[1.0.into(), 1.into()], None)?;
        options.finish()?;
        config.check_shapes()?;
        Ok(config)
    }

    fn check_shapes(&self) -> Result<(), LoadError> {
        let in_range = |name: &str, value: i64, most: i64| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(refuse(format!(
                    "{name} is {value}, which is not in 1..={most}"
                )))
            }
        };
        in_range("vocab_size", self.vocab_size, 1 << 24)?;
        in_range("hidden_size", self.hidden_size, 1 << 20)?;
        in_range("intermediate_size", self.intermediate_size, 1 << 22)?;
        in_range("num_hidden_layers", self.num_layers, 4096)?;
        in_range("num_attention_heads", self.num_heads, 4096)?;
        in_range("num_key_value_heads", self.num_kv_heads, self.num_heads)?;
        in_range("head_dim", self.head_dim, 4096)?;
        in_range(
            "max_position_embeddings",
            self.max_positions as i64,
            1 << 24,
        )?;
        if self.num_heads % self.num_kv_heads != 0 {
            return Err(refuse(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.num_heads, self.num_kv_heads
            )));
        }
        if self.head_dim % 2 != 0 {
            return Err(refuse(format!(
                "head_dim is {}, which is odd",
                self.head_dim
            )));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(refuse(format!("rms_norm_eps is {}", self.rms_norm_eps)));
        }
        self.rope.check()
    }
}

impl RopeConfig {
    fn check(&self) -> Result<(), LoadError> {
        let mut values = vec![("rope_theta", self.theta)];
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => values.push(("factor", factor)),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original_positions,
            } => {
                values.extend([
                    ("factor", factor),
                    ("low_freq_factor", low),
                    ("high_freq_factor", high),
                    ("original_max_position_embeddings", original_positions),
                ]);
                if low >= high {
                    return Err(refuse(format!(
                        "low_freq_factor {low} is not below high_freq_factor {high}"
                    )));
                }
            }
        }
        match values
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value > 0.0))
        {
            None => Ok(()),
            Some((name, value)) => Err(refuse(format!("{name} is {value}"))),
        }
    }
}

/// The options that have not been looked at yet.
struct Options(Map<String, Value>);

impl Options {
    /// Takes an option that may be absent or null.
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, LoadError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| refuse(format!("{name}: {error}"))),
        }
    }

    /// Takes a number that must be there and be positive.
    fn size(&mut self, name: &str) -> Result<i64, LoadError> {
        match self.optional::<i64>(name)? {
            Some(value) if value > 0 => Ok(value),
            Some(value) => Err(refuse(format!("{name} is {value}"))),
            None => Err(refuse(format!("{name} is missing"))),
        }
    }

    /// Takes an option that is honoured with some values only. Absent or null is `default`.
    fn must_be(
        &mut self,
        name: &str,
        allowed: &[Value],
        default: Option<Value>,
    ) -> Result<(), LoadError> {
        let value = self.0.remove(name).filter(|v| !v.is_null()).or(default);
        match value {
            Some(value) if !allowed.contains(&value) => {
                Err(refuse(format!("{name} = {value} is not supported")))
            }
            _ => Ok(()),
        }
    }

    fn check_architecture(&mut self) -> Result<(), LoadError> {
        let names: Vec<String> = self.optional("architectures")?.unwrap_or_default();
        let model_type: Option<String> = self.optional("model_type")?;
        let unsupported = |name: &str| LoadError::UnsupportedArchitecture { name: name.into() };
        match names.as_slice() {
            [name] if name == "LlamaForCausalLM" => {}
            [name, ..] => return Err(unsupported(name)),
            [] => return Err(refuse("architectures is missing".into())),
        }
        match model_type.as_deref() {
            None | Some("llama") => Ok(()),
            Some(other) => Err(unsupported(other)),
        }
    }

    /// Takes the rotary embedding, as written before transformers 5 (`rope_theta` and
    /// `rope_scaling`) or since (`rope_parameters`).
    fn rope(&mut self) -> Result<RopeConfig, LoadError> {
        let outer: Option<f64> = self.optional("rope_theta")?;
        let old: Option<Map<String, Value>> = self.optional("rope_scaling")?;
        let new: Option<Map<String, Value>> = self.optional("rope_parameters")?;
        let (name, inner) = match (old, new) {
            (Some(_), Some(_)) => {
                return Err(refuse(
                    "both rope_scaling and rope_parameters are set".into(),
                ));
            }
            (old, None) => ("rope_scaling", old),
            (None, new) => ("rope_parameters", new),
        };
        let mut inner = Options(inner.unwrap_or_default());
        let theta = inner.optional("rope_theta")?.or(outer).unwrap_or(10_000.0);
        let old_kind: Option<String> = inner.optional("type")?;
        let kind = inner.optional::<String>("rope_type")?.or(old_kind);
        let mut number = |key: &str| match inner.optional::<f64>(key)? {
            Some(value) => Ok(value),
            None => Err(refuse(format!("{name}.{key} is missing"))),
        };
        let scaling = match kind.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: number("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            },
            Some(other) => {
                return Err(refuse(format!(
                    "{name} of the type {other:?} is not supported"
                )));
            }
        };
        match inner.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(RopeConfig { theta, scaling }),
            Some((key, value)) => Err(refuse(format!(
                "the option {name}.{key} = {value} is not supported"
            ))),
        }
    }

    fn kind(&mut self) -> Result<Option<Kind>, LoadError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Stored {
            Float32,
            Float16,
            Bfloat16,
        }
        let old: Option<Stored> = self.optional("torch_dtype")?;
        let new: Option<Stored> = self.optional("dtype")?;
        Ok(new.or(old).map(|stored| match stored {
            Stored::Float32 => Kind::Float,
            Stored::Float16 => Kind::Half,
            Stored::Bfloat16 => Kind::BFloat16,
        }))
    }

    /// Refuses what is left. Names with a leading underscore are transformers' own notes, and
    /// null means "not used".
    fn finish(self) -> Result<(), LoadError> {
        let unknown = self.0.into_iter().find(|(name, value)| {
            !name.starts_with('_') && !value.is_null() && !WITHOUT_EFFECT.contains(&name.as_str())
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => {
                let value: String = value.to_string().chars().take(80).collect();
                Err(refuse(format!(
                    "the option {name} = {value} is not supported"
                )))
            }
        }
    }
}

fn refuse(why: String) -> LoadError {
    LoadError::InvalidConfig(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOL: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05, "rope_theta": 100000, "rope_scaling": null, "vocab_size": 49152,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "rope_interleaved": false,
        "is_llama_config": true, "_name_or_path": "x", "transformers_version": "4.42.3"
    }"#;

    /// The outcome of reading [`SMOL`] with some options set anew.
    #[allow(clippy::needless_pass_by_value)]
    fn with(changes: Value) -> Result<LlamaConfig, LoadError> {
        let mut options: Map<String, Value> = serde_json::from_str(SMOL).unwrap();
        options.extend(changes.as_object().unwrap().clone());
        LlamaConfig::parse(&Value::Object(options).to_string())
    }

    #[track_caller]
    fn refused(changes: Value, reason: &str, named: &str) {
        let error = with(changes).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }

    #[test]
    fn a_published_configuration_is_read() {
        let config = with(serde_json::json!({})).unwrap();
        assert_eq!(
            (config.head_dim, config.num_kv_heads, config.max_positions),
            (64, 3, 8192)
        );
        assert_eq!(
            config.rope,
            RopeConfig {
                theta: 1e5,
                scaling: RopeScaling::None
            }
        );
        assert!(config.tie_word_embeddings && !config.attention_bias);
        assert_eq!(config.kind, Some(Kind::BFloat16));
    }

    #[test]
    fn scaling_is_read_in_both_spellings() {
        let llama3 = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        });
        let old = with(serde_json::json!({"rope_scaling": llama3})).unwrap();
        let mut new = llama3;
        new["rope_theta"] = 500_000.0.into();
        let new = with(serde_json::json!({"rope_parameters": new})).unwrap();
        assert_eq!(old.rope.scaling, new.rope.scaling);
        assert_eq!((old.rope.theta, new.rope.theta), (1e5, 5e5));
        let linear = serde_json::json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(
            with(linear).unwrap().rope.scaling,
            RopeScaling::Linear { factor: 2.0 }
        );
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        use serde_json::json;
        for (changes, named) in [
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"sliding_window": 4096}), "sliding_window"),
            (
                json!({"quantization_config": {"bits": 4}}),
                "quantization_config",
            ),
            (json!({"rope_interleaved": true}), "rope_interleaved"),
            (
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
                "yarn",
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear"}}),
                "rope_scaling.factor",
            ),
            (
                json!({"rope_scaling": {"rope_type": "default", "beta": 1}}),
                "rope_scaling.beta",
            ),
            (json!({"num_key_value_heads": 2}), "evenly"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
            (json!({"hidden_size": -1}), "hidden_size"),
            (json!({"vocab_size": null}), "vocab_size"),
            (json!({"torch_dtype": "int8"}), "int8"),
            (json!({"logit_scale": 0.5}), "logit_scale"),
        ] {
            refused(changes, "InvalidConfig", named);
        }
        let qwen = json!({"architectures": ["Qwen3ForCausalLM"]});
        refused(qwen, "UnsupportedArchitecture", "Qwen3ForCausalLM");
        refused(
            json!({"model_type": "mistral"}),
            "UnsupportedArchitecture",
            "mistral",
        );
        assert_eq!(
            LlamaConfig::parse("{").unwrap_err().reason(),
            "InvalidConfig"
        );
    }
}
