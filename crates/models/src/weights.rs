//! The tensors of a decoder, each where it belongs.

use std::sync::Arc;

use crate::{
    Checkpoint, DecoderConfig, LoadError, MappedFile, StoredTensor, StoredType, WeightNames,
};

/// All tensors of a model, in the type and place of its files.
#[derive(Debug)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: StoredTensor,
    /// In order.
    pub layers: Vec<LayerWeights>,
    /// Norm before the head, `[hidden]`.
    pub norm: StoredTensor,
    /// `[vocab, hidden]`; `None` where the embedding is the head.
    pub head: Option<StoredTensor>,
    /// The files that the tensors lie in.
    pub files: Vec<Arc<MappedFile>>,
    /// The type of most of the weights.
    pub stored_type: StoredType,
    /// Bytes of all tensors together.
    pub bytes: u64,
}

/// The tensors of one layer. Fused ones have been taken apart, which costs no copy: their rows
/// follow one another in memory, query before key before value, and gate before up.
#[derive(Debug)]
pub struct LayerWeights {
    /// Before attention, `[hidden]`.
    pub attention_norm: StoredTensor,
    /// `[heads * head_dim, hidden]`.
    pub query: LinearWeights,
    /// `[kv_heads * head_dim, hidden]`.
    pub key: LinearWeights,
    /// `[kv_heads * head_dim, hidden]`.
    pub value: LinearWeights,
    /// Over each head of the query, `[head_dim]`; with [`DecoderConfig::qk_norm`].
    pub query_norm: Option<StoredTensor>,
    /// Over each head of the key, `[head_dim]`.
    pub key_norm: Option<StoredTensor>,
    /// `[hidden, heads * head_dim]`.
    pub output: LinearWeights,
    /// After attention, `[hidden]`; with [`DecoderConfig::sandwich_norms`].
    pub attention_post_norm: Option<StoredTensor>,
    /// Before the feed-forward part, `[hidden]`.
    pub mlp_norm: StoredTensor,
    /// `[intermediate, hidden]`.
    pub gate: LinearWeights,
    /// `[intermediate, hidden]`.
    pub up: LinearWeights,
    /// `[hidden, intermediate]`.
    pub down: LinearWeights,
    /// After the feed-forward part, `[hidden]`; with [`DecoderConfig::sandwich_norms`].
    pub mlp_post_norm: Option<StoredTensor>,
}

/// `y = x W^T + b`.
#[derive(Debug)]
pub struct LinearWeights {
    /// `[out, in]`.
    pub weight: StoredTensor,
    /// `[out]`.
    pub bias: Option<StoredTensor>,
}

impl Weights {
    /// Takes everything that `config` calls for out of `checkpoint`.
    ///
    /// # Errors
    /// [`LoadError::InvalidWeights`] when a tensor is missing, has another shape than the
    /// configuration says, or is left over.
    pub fn take(config: &DecoderConfig, mut checkpoint: Checkpoint) -> Result<Self, LoadError> {
        let bytes = checkpoint.bytes();
        let table = [config.vocab_size, config.hidden_size];
        let embedding = checkpoint.take("model.embed_tokens.weight", &table)?;
        let stored_type = checkpoint.stored_type().unwrap_or(embedding.dtype());
        let layers = (0..config.num_layers())
            .map(|index| LayerWeights::take(config, &mut checkpoint, index))
            .collect::<Result<_, _>>()?;
        let norm = checkpoint.take("model.norm.weight", &[config.hidden_size])?;
        let head = if config.tied_head {
            // Some checkpoints repeat the embedding under this name.
            checkpoint.discard("lm_head.weight");
            None
        } else {
            Some(checkpoint.take("lm_head.weight", &table)?)
        };
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            files: checkpoint.finish()?,
            stored_type,
            bytes,
        })
    }
}

impl LayerWeights {
    fn take(
        config: &DecoderConfig,
        checkpoint: &mut Checkpoint,
        index: usize,
    ) -> Result<Self, LoadError> {
        let mut layer = Layer {
            checkpoint,
            prefix: format!("model.layers.{index}"),
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        // A buffer that old versions of transformers saved; it follows from the configuration.
        layer.discard("self_attn.rotary_emb.inv_freq");

        let [query, key, value] = layer.stacked(
            config.names,
            "self_attn.qkv_proj",
            [
                ("self_attn.q_proj", queries),
                ("self_attn.k_proj", keys),
                ("self_attn.v_proj", keys),
            ],
            hidden,
            config.qkv_bias,
        )?;
        let [gate, up] = layer.stacked(
            config.names,
            "mlp.gate_up_proj",
            [("mlp.gate_proj", inner), ("mlp.up_proj", inner)],
            hidden,
            config.mlp_bias,
        )?;
        // With norms on both sides of attention the usual name of the norm before the
        // feed-forward part is that of the norm after attention.
        let (mlp_norm, attention_post_norm, mlp_post_norm) = if config.sandwich_norms {
            (
                "pre_feedforward_layernorm",
                Some("post_attention_layernorm"),
                Some("post_feedforward_layernorm"),
            )
        } else {
            ("post_attention_layernorm", None, None)
        };
        let head_norm = |name| config.qk_norm.then_some(name);
        Ok(Self {
            attention_norm: layer.norm("input_layernorm", hidden)?,
            query,
            key,
            value,
            query_norm: layer.optional_norm(head_norm("self_attn.q_norm"), config.head_dim)?,
            key_norm: layer.optional_norm(head_norm("self_attn.k_norm"), config.head_dim)?,
            output: layer.linear("self_attn.o_proj", queries, hidden, config.output_bias)?,
            attention_post_norm: layer.optional_norm(attention_post_norm, hidden)?,
            mlp_norm: layer.norm(mlp_norm, hidden)?,
            gate,
            up,
            down: layer.linear("mlp.down_proj", inner, hidden, config.mlp_bias)?,
            mlp_post_norm: layer.optional_norm(mlp_post_norm, hidden)?,
        })
    }
}

/// Takes the tensors of one layer.
struct Layer<'a> {
    checkpoint: &'a mut Checkpoint,
    prefix: String,
}

impl Layer<'_> {
    fn discard(&mut self, part: &str) {
        self.checkpoint.discard(&format!("{}.{part}", self.prefix));
    }

    fn tensor(&mut self, part: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        self.checkpoint
            .take(&format!("{}.{part}", self.prefix), shape)
    }

    fn norm(&mut self, part: &str, width: usize) -> Result<StoredTensor, LoadError> {
        self.tensor(&format!("{part}.weight"), &[width])
    }

    fn optional_norm(
        &mut self,
        part: Option<&str>,
        width: usize,
    ) -> Result<Option<StoredTensor>, LoadError> {
        part.map(|part| self.norm(part, width)).transpose()
    }

    fn linear(
        &mut self,
        part: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<LinearWeights, LoadError> {
        Ok(LinearWeights {
            weight: self.tensor(&format!("{part}.weight"), &[output, input])?,
            bias: bias
                .then(|| self.tensor(&format!("{part}.bias"), &[output]))
                .transpose()?,
        })
    }

    /// Maps of the same input: tensors of their own, or rows of one.
    fn stacked<const N: usize>(
        &mut self,
        names: WeightNames,
        fused: &str,
        parts: [(&str, usize); N],
        input: usize,
        bias: bool,
    ) -> Result<[LinearWeights; N], LoadError> {
        let mut whole = match names {
            WeightNames::Separate => None,
            WeightNames::Fused => {
                let rows = parts.iter().map(|(_, rows)| rows).sum();
                Some((self.linear(fused, input, rows, bias)?, 0))
            }
        };
        let mut taken = Vec::with_capacity(N);
        for (name, rows) in parts {
            taken.push(match &mut whole {
                None => self.linear(name, input, rows, bias)?,
                Some((whole, next)) => {
                    let range = *next..*next + rows;
                    *next = range.end;
                    LinearWeights {
                        weight: whole.weight.rows(range.clone()),
                        bias: whole.bias.as_ref().map(|bias| bias.rows(range)),
                    }
                }
            });
        }
        Ok(taken.try_into().expect("one is taken for each part"))
    }
}
