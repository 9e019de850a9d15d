//! An adapter as it is read.

/// A change of one linear map: `scale * (x A^T) B^T`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LowRank {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// A, `[rank, inputs]`.
    pub a: Vec<f32>,
    /// B, `[outputs, rank]`.
    pub b: Vec<f32>,
    /// Factor of the product, such as `alpha / rank`. A request's own scale comes on top.
    pub scale: f32,
}

/// The changes of one layer's maps.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(
    missing_docs,
    reason = "the maps have the names that they have everywhere"
)]
pub struct AdapterLayer {
    pub query: Option<LowRank>,
    pub key: Option<LowRank>,
    pub value: Option<LowRank>,
    pub output: Option<LowRank>,
    pub gate: Option<LowRank>,
    pub up: Option<LowRank>,
    pub down: Option<LowRank>,
}

/// An adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterWeights {
    /// One for each layer of the model, in order.
    pub layers: Vec<AdapterLayer>,
    /// Of the map from tokens to hidden states, `[hidden, vocab]`, before the factor that some
    /// families have there. It does not change a head that is the same matrix.
    pub embedding: Option<LowRank>,
    /// Of the map from hidden states to logits, `[vocab, hidden]`.
    pub head: Option<LowRank>,
}
