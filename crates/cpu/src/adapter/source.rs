//! An adapter as it is packed.

use hyprstream_models::adapter::{Adapter, Linear, LowRank as Read, Site};

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

/// An adapter that this backend does not compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} has a magnitude (use_dora), which this backend does not compute yet")]
pub struct Magnitude(pub Site);

impl AdapterWeights {
    /// What was read, for a model of so many layers.
    ///
    /// # Errors
    /// [`Magnitude`]: it was trained with DoRA.
    pub fn of(adapter: &Adapter, layers: usize) -> Result<Self, Magnitude> {
        let mut weights = Self {
            layers: vec![AdapterLayer::default(); layers],
            ..Self::default()
        };
        for (site, part) in adapter.parts() {
            if part.magnitude.is_some() {
                return Err(Magnitude(site));
            }
            *weights.place(site) = Some(LowRank::of(part));
        }
        Ok(weights)
    }

    fn place(&mut self, site: Site) -> &mut Option<LowRank> {
        match site {
            Site::Layer(index, linear) => self.layers[index].place(linear),
            Site::Embedding => &mut self.embedding,
            Site::Head => &mut self.head,
        }
    }
}

impl AdapterLayer {
    fn place(&mut self, linear: Linear) -> &mut Option<LowRank> {
        match linear {
            Linear::Query => &mut self.query,
            Linear::Key => &mut self.key,
            Linear::Value => &mut self.value,
            Linear::Output => &mut self.output,
            Linear::Gate => &mut self.gate,
            Linear::Up => &mut self.up,
            Linear::Down => &mut self.down,
        }
    }
}

impl LowRank {
    fn of(part: &Read) -> Self {
        Self {
            rank: part.rank(),
            a: part.a.values().to_vec(),
            b: part.b.values().to_vec(),
            scale: part.scaling,
        }
    }
}
