//! Llama: <https://arxiv.org/abs/2302.13971>, with grouped queries.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    LoadError,
    attention::attend,
    cache::{CacheShape, KvCache},
    checkpoint::Checkpoint,
    config::LlamaConfig,
    layers::{Linear, RmsNorm},
    plan::Plan,
    rope::{Rope, Turns},
};

/// A loaded model. Its weights may lie in mapped files, which must outlive it.
#[derive(Debug)]
pub(crate) struct Llama {
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp: Mlp,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    num_heads: i64,
    num_kv_heads: i64,
    head_dim: i64,
}

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// Takes the model out of `weights`, in the type `kind` on `device`.
    pub(crate) fn load(
        config: &LlamaConfig,
        weights: &mut Checkpoint,
        kind: Kind,
        device: Device,
    ) -> Result<Self, LoadError> {
        let mut loader = Loader {
            weights,
            kind,
            device,
            eps: config.rms_norm_eps,
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = loader.tensor("model.embed_tokens.weight", &[vocab, hidden])?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(config, &mut loader, index))
            .collect::<Result<_, _>>()?;
        let norm = loader.norm("model.norm", hidden)?;
        let head = if config.tie_word_embeddings {
            // Some checkpoints repeat the embedding under this name.
            loader.weights.discard("lm_head.weight");
            Linear {
                weight: embedding.shallow_clone(),
                bias: None,
            }
        } else {
            loader.linear("lm_head", hidden, vocab, false)?
        };
        let rope = Rope::new(&config.rope, config.head_dim, kind, device)
            .map_err(LoadError::torch("preparing the rotary embedding"))?;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            rope,
        })
    }

    /// What the cache must hold for this configuration.
    pub(crate) fn cache_shape(config: &LlamaConfig, kind: Kind) -> CacheShape {
        CacheShape {
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            kind,
        }
    }

    /// Logits of the rows that `plan` asks for, `[rows, vocab]`, or `None` if it asks for none.
    /// Keys and values go to `cache`.
    pub(crate) fn forward(
        &self,
        plan: &Plan,
        cache: &mut KvCache,
    ) -> Result<Option<Tensor>, TchError> {
        let mut x = self.embedding.f_index_select(0, &plan.tokens)?;
        let turns = self.rope.at(&plan.positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, index, &turns, plan, cache)?;
        }
        let wanted = match &plan.rows {
            _ if plan.num_rows == 0 => return Ok(None),
            None => x,
            Some(rows) => x.f_index_select(0, rows)?,
        };
        self.head
            .forward(&self.norm.forward(&wanted)?, None)
            .map(Some)
    }
}

impl Layer {
    fn load(config: &LlamaConfig, loader: &mut Loader, index: i64) -> Result<Self, LoadError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        // A buffer that old versions of transformers saved; it follows from the configuration.
        loader
            .weights
            .discard(&name("self_attn.rotary_emb.inv_freq"));
        let (bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        Ok(Self {
            input_norm: loader.norm(&name("input_layernorm"), hidden)?,
            attention: Attention {
                query: loader.linear(&name("self_attn.q_proj"), hidden, queries, bias)?,
                key: loader.linear(&name("self_attn.k_proj"), hidden, keys, bias)?,
                value: loader.linear(&name("self_attn.v_proj"), hidden, keys, bias)?,
                output: loader.linear(&name("self_attn.o_proj"), queries, hidden, bias)?,
                num_heads: config.num_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
            },
            post_attention_norm: loader.norm(&name("post_attention_layernorm"), hidden)?,
            mlp: Mlp {
                gate: loader.linear(&name("mlp.gate_proj"), hidden, inner, mlp_bias)?,
                up: loader.linear(&name("mlp.up_proj"), hidden, inner, mlp_bias)?,
                down: loader.linear(&name("mlp.down_proj"), inner, hidden, mlp_bias)?,
            },
        })
    }

    fn forward(
        &self,
        x: Tensor,
        index: usize,
        turns: &Turns,
        plan: &Plan,
        cache: &mut KvCache,
    ) -> Result<Tensor, TchError> {
        let attended =
            self.attention
                .forward(&self.input_norm.forward(&x)?, index, turns, plan, cache)?;
        let mut x = x;
        let _ = x.f_add_(&attended)?;
        let fed = self.mlp.forward(&self.post_attention_norm.forward(&x)?)?;
        let _ = x.f_add_(&fed)?;
        Ok(x)
    }
}

impl Attention {
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        turns: &Turns,
        plan: &Plan,
        cache: &mut KvCache,
    ) -> Result<Tensor, TchError> {
        let heads = |y: Tensor| y.f_view([-1, y.size()[1] / self.head_dim, self.head_dim]);
        let query = heads(self.query.forward(x, None)?)?;
        let key = heads(self.key.forward(x, None)?)?;
        let value = heads(self.value.forward(x, None)?)?;
        let turned = turns.apply(&Tensor::f_cat(&[query, key], 1)?)?;
        let query = turned.f_narrow(1, 0, self.num_heads)?;
        let key = turned.f_narrow(1, self.num_heads, self.num_kv_heads)?;
        cache.write(layer, &plan.slots, &key, &value)?;
        self.output
            .forward(&attend(&query, cache, layer, plan)?, None)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let gate = self.gate.forward(x, None)?.f_silu_()?;
        let gated = gate.f_mul(&self.up.forward(x, None)?)?;
        self.down.forward(&gated, None)
    }
}

/// Takes tensors out of a checkpoint in the type and on the device of the model.
struct Loader<'a> {
    weights: &'a mut Checkpoint,
    kind: Kind,
    device: Device,
    eps: f64,
}

impl Loader<'_> {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        self.weights
            .take(name, shape)?
            .f_to_device(self.device)
            .and_then(|tensor| tensor.f_to_kind(self.kind))
            .map_err(LoadError::torch("moving the weights to the device"))
    }

    fn norm(&mut self, name: &str, width: i64) -> Result<RmsNorm, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(RmsNorm {
            weight,
            eps: self.eps,
        })
    }

    fn linear(
        &mut self,
        name: &str,
        input: i64,
        output: i64,
        bias: bool,
    ) -> Result<Linear, LoadError> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[output, input])?,
            bias: bias
                .then(|| self.tensor(&format!("{name}.bias"), &[output]))
                .transpose()?,
        })
    }
}
