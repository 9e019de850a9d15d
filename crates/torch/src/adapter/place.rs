//! What adapters read: the inputs of the linear maps.

use hyprstream_models::adapter::{Linear, Site};

/// An input, of which all linear maps that read it are changed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Of the layer of this index.
    Layer(usize, Part),
    /// Tokens.
    Embedding,
    /// Of the head.
    Head,
}

/// An input within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Of query, key and value.
    Hidden,
    /// Of the attention's output.
    Attended,
    /// Of gate and up.
    Gated,
    /// Of down.
    Inner,
}

impl From<Site> for Place {
    fn from(site: Site) -> Self {
        let Site::Layer(index, linear) = site else {
            return match site {
                Site::Embedding => Self::Embedding,
                _ => Self::Head,
            };
        };
        let part = match linear {
            Linear::Query | Linear::Key | Linear::Value => Part::Hidden,
            Linear::Output => Part::Attended,
            Linear::Gate | Linear::Up => Part::Gated,
            Linear::Down => Part::Inner,
        };
        Self::Layer(index, part)
    }
}

impl Place {
    /// The dimension of the first factors along which they are put beside each other. Those of the
    /// embedding are looked up by token.
    pub(super) fn rank_dim(self) -> i64 {
        i64::from(self == Self::Embedding)
    }
}
