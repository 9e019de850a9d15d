//! One description for all families.

/// A decoder-only transformer, as far as backends need to know it.
///
/// ```text
/// x = embedding[token] * embedding_scale
/// for each layer:
///     y = attention(norm(x))            y = norm(y)   if sandwich_norms
///     x = x + y
///     y = down(act(gate(n)) * up(n))    with n = norm(x), y = norm(y) if sandwich_norms
///     x = x + y
/// logits = softcap(head(norm(x)))
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Name of the architecture in `config.json`, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Rows of the embedding and length of a row of logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the two halves of the feed-forward part.
    pub intermediate_size: usize,
    /// Query heads of a layer.
    pub num_heads: usize,
    /// Key and value heads of a layer; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
    /// Norms multiply by `1 + w` (Gemma) instead of `w`.
    pub norm_plus_one: bool,
    /// Norms after attention and after the feed-forward part as well (Gemma 2 and 3).
    pub sandwich_norms: bool,
    /// Queries and keys are normalised head by head before they are turned (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Query, key and value have a bias.
    pub qkv_bias: bool,
    /// The attention's output has a bias.
    pub output_bias: bool,
    /// The three parts of the feed-forward part have a bias.
    pub mlp_bias: bool,
    /// Nonlinearity of the gate.
    pub activation: Activation,
    /// Factor of the embedding: `sqrt(hidden_size)` for Gemma, rounded as the model's type
    /// rounds it by whoever applies it; 1 for others.
    pub embedding_scale: f64,
    /// Factor of the scores: `1 / sqrt(head_dim)` unless the family says otherwise.
    pub attention_scale: f64,
    /// `cap * tanh(score / cap)` on scores (Gemma 2).
    pub attention_softcap: Option<f64>,
    /// `cap * tanh(logit / cap)` on logits (Gemma 2).
    pub logit_softcap: Option<f64>,
    /// The head is the embedding.
    pub tied_head: bool,
    /// Each layer's attention, in order; its length is the number of layers.
    pub layers: Vec<AttentionKind>,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// How the weights are called.
    pub names: WeightNames,
}

/// What is particular to one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionKind {
    /// A token sees itself and `window - 1` tokens before it; `None` for all.
    pub window: Option<usize>,
    /// Index into [`DecoderConfig::ropes`].
    pub rope: usize,
}

/// A rotary embedding: dimension `i` of the first half of a head turns with `i + rotated / 2` by
/// `position * frequencies[i]` radians (<https://arxiv.org/abs/2104.09864>, in the half-split form
/// of transformers). Dimensions from `2 * frequencies.len()` on are left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position, scaling included, `[rotated / 2]`.
    pub frequencies: Vec<f32>,
    /// Factor of cosine and sine (yarn's `attention_factor`); 1 for others.
    pub attention_factor: f32,
}

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// How the tensors of a checkpoint are called. All begin with `model.`; see
/// [`DecoderConfig`] for which of them exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightNames {
    /// `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`.
    Separate,
    /// `self_attn.qkv_proj` (query, key, value rows in this order), `mlp.gate_up_proj` (gate, then
    /// up), as Phi-3 has them.
    Fused,
}

impl DecoderConfig {
    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }
}
