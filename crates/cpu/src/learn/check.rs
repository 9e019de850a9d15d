//! What cannot be learnt.

use hyprstream_models::{
    DType, DecoderConfig, LoadError,
    adapter::{Linear, Site},
};
use hyprstream_training::{Parameters, Part};

use crate::{format::Format, model::Precision};

/// Why there is no learner.
#[derive(Debug, thiserror::Error)]
pub enum LearnLoadError {
    /// The model could not be loaded.
    #[error("the model cannot be loaded")]
    Model(#[source] LoadError),
    /// Products in a type that these weights do not have.
    #[error(
        "products of {0} need weights of that type, and the CPU's are bfloat16 or float32: leave \
         products out, or ask for the same dtype"
    )]
    Products(DType),
    /// The model has no such place.
    #[error("the adapter changes {0}, but the model has no such layer")]
    Absent(Site),
    /// A place that is not trained here.
    #[error(
        "the adapter changes {0}: but for linear maps of layers, only libtorch trains it; leave it out \
         of the targets, or train on a GPU"
    )]
    Place(Site),
    /// DoRA.
    #[error(
        "the adapter has magnitudes at {0}: only libtorch trains DoRA; use plain LoRA, or train on a \
         GPU"
    )]
    Magnitude(Site),
    /// Two parts for one place.
    #[error("the adapter changes {0} twice")]
    Twice(Site),
    /// No parts.
    #[error("the adapter changes nothing")]
    Empty,
    /// Numbers of a factor that are not where they should be.
    #[error("the factor {factor} of {site} has {found} numbers, and not {expected} within {len}")]
    Size {
        /// Which place.
        site: Site,
        /// `A` or `B`.
        factor: char,
        /// Numbers of it.
        found: usize,
        /// Numbers that it needs.
        expected: usize,
        /// Numbers of the whole adapter.
        len: usize,
    },
    /// Factors that overlap though nothing fused them.
    #[error("the factor {factor} of {site} shares numbers with another")]
    Shared {
        /// Which place.
        site: Site,
        /// `A` or `B`.
        factor: char,
    },
    /// A scaling that is not finite.
    #[error("the scaling of {0} is not finite")]
    Scaling(Site),
}

/// Whether rows are rounded before they meet the weights.
pub(super) fn rounds(products: DType, precision: Precision) -> Result<bool, LearnLoadError> {
    let half = precision.layers == Format::Bf16;
    match products {
        DType::Auto => Ok(half),
        DType::Float32 => Ok(false),
        DType::BFloat16 if half => Ok(true),
        DType::BFloat16 | DType::Float16 => Err(LearnLoadError::Products(products)),
    }
}

/// Refuses parameters that are not for this model, or that cannot be trained here.
pub(super) fn check(parameters: &Parameters, config: &DecoderConfig) -> Result<(), LearnLoadError> {
    if parameters.parts.is_empty() {
        return Err(LearnLoadError::Empty);
    }
    let input = |site: Site| match site {
        Site::Layer(index, Linear::Query | Linear::Key | Linear::Value) => (index, 0),
        Site::Layer(index, Linear::Output) => (index, 1),
        Site::Layer(index, Linear::Gate | Linear::Up) => (index, 2),
        Site::Layer(index, Linear::Down) => (index, 3),
        Site::Embedding | Site::Head => (usize::MAX, 0),
    };
    for part in &parameters.parts {
        let site = part.site;
        let Site::Layer(index, _) = site else {
            return Err(LearnLoadError::Place(site));
        };
        if index >= config.num_layers() {
            return Err(LearnLoadError::Absent(site));
        }
        if part.magnitude.is_some() {
            return Err(LearnLoadError::Magnitude(site));
        }
        if !part.scaling.is_finite() {
            return Err(LearnLoadError::Scaling(site));
        }
        let (outputs, inputs) = site.size(config);
        for (factor, range, width) in [('A', &part.a, inputs), ('B', &part.b, outputs)] {
            let expected = part.rank.max(1) * width;
            if range.len() != expected || range.end > parameters.len {
                return Err(LearnLoadError::Size {
                    site,
                    factor,
                    found: range.len(),
                    expected,
                    len: parameters.len,
                });
            }
        }
    }
    let mut ranges: Vec<_> = parameters
        .parts
        .iter()
        .flat_map(|part| [(&part.a, 'A', part), (&part.b, 'B', part)])
        .collect();
    ranges.sort_by_key(|(range, factor, part)| (range.start, *factor, part.site));
    for pair in ranges.windows(2) {
        let ((one, a, first), (two, b, second)) = (pair[0], pair[1]);
        let fused = a == 'A'
            && b == 'A'
            && one == two
            && first.rank == second.rank
            && input(first.site) == input(second.site);
        if two.start < one.end && !fused {
            return Err(LearnLoadError::Shared {
                site: second.site,
                factor: b,
            });
        }
    }
    let mut sites: Vec<_> = parameters
        .parts
        .iter()
        .map(|part: &Part| part.site)
        .collect();
    sites.sort();
    match sites.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LearnLoadError::Twice(pair[0])),
        None => Ok(()),
    }
}
