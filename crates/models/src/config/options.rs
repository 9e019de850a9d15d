//! The options of a `config.json`, each to be taken once.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{json::of_python, refuse};
use crate::{Activation, AttentionKind, DecoderConfig, LoadError, StoredType, WeightNames};

/// Options that say nothing about how the model computes its logits from given tokens.
const WITHOUT_EFFECT: &[&str] = &[
    // Where it comes from. The code that `auto_map` names is what the architecture's name stands
    // for, and is never run.
    "auto_map",
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
    "cache_implementation",
    "max_length",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    // Training only.
    "attention_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "initializer_range",
    // How transformers splits the work, without effect on the result.
    "pretraining_tp",
    "base_model_tp_plan",
    "torchscript",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
];

/// The options that have not been looked at yet.
#[derive(Default)]
pub(crate) struct Options(pub(super) Map<String, Value>);

impl Options {
    /// The options of a JSON object. Numbers that JSON does not have are texts, so that an option
    /// which must be a number is refused and others are not.
    pub(crate) fn parse(text: &str) -> Result<Self, LoadError> {
        serde_json::from_str(&of_python(text))
            .map(Self)
            .map_err(|error| refuse(error.to_string()))
    }

    /// Takes an option that may be absent or null.
    pub(crate) fn optional<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, LoadError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| refuse(format!("{name}: {error}"))),
        }
    }

    /// Takes an option that must be there, and not null.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, LoadError> {
        self.optional(name)?
            .ok_or_else(|| refuse(format!("{name} is missing")))
    }

    /// Takes an option that must be there; null means "none". For options whose default in
    /// transformers is a number that nobody would guess.
    pub(crate) fn explicit<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, LoadError> {
        if self.0.contains_key(name) {
            self.optional(name)
        } else {
            Err(refuse(format!("{name} is missing")))
        }
    }

    /// Takes the options that stand under a name, none if it is absent or null.
    pub(crate) fn nested(&mut self, name: &str) -> Result<Self, LoadError> {
        Ok(Self(self.optional(name)?.unwrap_or_default()))
    }

    /// Refuses a configuration without this option, which stays where it is.
    pub(crate) fn must_have(&self, name: &str) -> Result<(), LoadError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Err(refuse(format!("{name} is missing"))),
            Some(_) => Ok(()),
        }
    }

    /// Takes a flag.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, LoadError> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// Takes a number that must be there and be positive.
    pub(crate) fn size(&mut self, name: &str) -> Result<usize, LoadError> {
        match self.required::<i64>(name)? {
            value if value > 0 => Ok(value as usize),
            value => Err(refuse(format!("{name} is {value}"))),
        }
    }

    /// Takes an option that is honoured with some values only; absent or null is one of them.
    pub(crate) fn must_be(&mut self, name: &str, allowed: &[Value]) -> Result<(), LoadError> {
        match self.0.remove(name).filter(|v| !v.is_null()) {
            Some(value) if !allowed.contains(&value) => {
                Err(refuse(format!("{name} = {value} is not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Takes the nonlinearity of the gate.
    pub(crate) fn activation(
        &mut self,
        name: &str,
        default: Activation,
    ) -> Result<Activation, LoadError> {
        match self.optional::<String>(name)?.as_deref() {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(other) => Err(refuse(format!("{name} = {other:?} is not supported"))),
        }
    }

    /// Takes the sizes that all families have, and returns a decoder that is otherwise as plain
    /// as they come: Llama without biases, with a head of its own and without rotary embeddings.
    pub(crate) fn plain(&mut self, architecture: &str) -> Result<DecoderConfig, LoadError> {
        let hidden_size = self.size("hidden_size")?;
        let num_heads = self.size("num_attention_heads")?;
        let num_layers = self.size("num_hidden_layers")?;
        if num_layers > 4096 {
            return Err(refuse(format!("num_hidden_layers is {num_layers}")));
        }
        let num_kv_heads = self.optional("num_key_value_heads")?.unwrap_or(num_heads);
        let head_dim = self
            .optional("head_dim")?
            .unwrap_or(hidden_size / num_heads);
        Ok(DecoderConfig {
            architecture: architecture.to_owned(),
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_heads,
            num_kv_heads,
            head_dim,
            max_positions: self.size("max_position_embeddings")?,
            norm_eps: self.required("rms_norm_eps")?,
            norm_plus_one: false,
            sandwich_norms: false,
            qk_norm: false,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
            tied_head: false,
            layers: vec![
                AttentionKind {
                    window: None,
                    rope: 0
                };
                num_layers
            ],
            ropes: Vec::new(),
            names: WeightNames::Separate,
        })
    }

    /// Takes `layer_types` and returns which layers attend through the window. Where the option
    /// is absent, `otherwise` says it for each index.
    pub(crate) fn sliding_layers(
        &mut self,
        num_layers: usize,
        otherwise: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, LoadError> {
        let Some(types) = self.optional::<Vec<String>>("layer_types")? else {
            return Ok((0..num_layers).map(otherwise).collect());
        };
        if types.len() != num_layers {
            return Err(refuse(format!(
                "layer_types has {} entries, but num_hidden_layers is {num_layers}",
                types.len()
            )));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(refuse(format!("layer_types: {other:?} is not supported"))),
            })
            .collect()
    }

    /// Takes the type that the model was saved in, in either spelling.
    pub(crate) fn saved_as(&mut self) -> Result<Option<StoredType>, LoadError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Saved {
            Float32,
            Float16,
            Bfloat16,
        }
        let old: Option<Saved> = self.optional("torch_dtype")?;
        let new: Option<Saved> = self.optional("dtype")?;
        Ok(new.or(old).map(|saved| match saved {
            Saved::Float32 => StoredType::F32,
            Saved::Float16 => StoredType::F16,
            Saved::Bfloat16 => StoredType::BF16,
        }))
    }

    /// Refuses what is left. Names with a leading underscore are transformers' own notes, and
    /// null means "not used".
    pub(crate) fn finish(self) -> Result<(), LoadError> {
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
