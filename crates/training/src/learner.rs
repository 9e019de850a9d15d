//! The narrow interface between the trainer and what computes: losses and gradients of a batch.
//!
//! The trainer owns the adapter's numbers, the optimiser and the data; a learner owns the frozen
//! model, and knows nothing of epochs, files, schedules or time. One optimiser thus serves all of
//! them, and its state is the trainer's to save.

use std::ops::Range;

use hyprstream_models::adapter::Site;

use crate::random::philox;

/// Where the numbers of an adapter lie in one flat array, and what they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// What the adapter changes, in the order of [`Site`]. Not empty.
    pub parts: Vec<Part>,
    /// Numbers in all.
    pub len: usize,
}

/// The low-rank change of one linear map: `y += scaling * B A dropout(x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Which map.
    pub site: Site,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// What `B A` is multiplied by: `alpha / rank`, or `alpha / sqrt(rank)`.
    pub scaling: f32,
    /// A, `[rank, in]`, row after row. Parts that were one fused module have the same range: the
    /// gradients of all of them add up there.
    pub a: Range<usize>,
    /// B, `[out, rank]`, row after row. No other part has any of it.
    pub b: Range<usize>,
    /// The lengths of the changed weight's rows, `[out]`; with DoRA.
    pub magnitude: Option<Range<usize>>,
}

/// The numbers of one [`Part`].
#[derive(Clone, Copy, Debug)]
pub struct PartValues<'a> {
    /// As [`Part::a`].
    pub a: &'a [f32],
    /// As [`Part::b`].
    pub b: &'a [f32],
    /// As [`Part::magnitude`].
    pub magnitude: Option<&'a [f32]>,
}

impl Part {
    /// Its numbers among those of the whole adapter.
    pub fn of<'a>(&self, values: &'a [f32]) -> PartValues<'a> {
        PartValues {
            a: &values[self.a.clone()],
            b: &values[self.b.clone()],
            magnitude: self.magnitude.clone().map(|range| &values[range]),
        }
    }
}

/// One sample, or a part of one, within a [`Batch`]. Its tokens see each other and nothing else,
/// and its positions begin at 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Number of the sample, which dropout depends on: see [`Dropout`].
    pub sample: u64,
    /// What the model reads. At least 2, at most as many as the model has positions.
    pub tokens: Vec<u32>,
    /// For each token, whether predicting it from those before counts. The first never does.
    pub trained: Vec<bool>,
    /// What the negative log-likelihood of each of its trained tokens is multiplied by where
    /// gradients are computed.
    pub weight: f32,
}

/// Segments that are computed together. What is computed for one does not depend on the others
/// but in the order of sums of gradients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// At least one.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Tokens of all segments.
    pub fn tokens(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| segment.tokens.len())
            .sum()
    }
}

/// What a model says of one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Sum over its trained tokens of the negative log-likelihood, in nats, without the segment's
    /// weight. Each is computed from logits in f32; they are summed in f64.
    pub loss: f64,
    /// Its trained tokens.
    pub tokens: u32,
    /// Those of them that are the model's most likely one.
    pub correct: u32,
}

/// Which model scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy<'a> {
    /// The frozen model alone.
    Base,
    /// The frozen model with an adapter of these numbers, laid out as [`Parameters`].
    Adapter(&'a [f32]),
}

/// What falls out of the input of each A while gradients are computed.
///
/// Element `column` of the input of `site` at position `position` of sample `sample` falls out if
/// `draw(..) < probability`, and is divided by `1 - probability` if not. What falls out thus
/// depends on nothing but the numbers named, not on how samples are packed, and a resumed job
/// needs no state of a generator. Parts that share A see the same draws: their site is the
/// first that has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// 0 for none; below 1.
    pub probability: f32,
    /// The job's seed.
    pub seed: u64,
    /// Number of the optimiser's step.
    pub step: u64,
}

impl Dropout {
    /// No dropout.
    pub const NONE: Self = Self {
        probability: 0.0,
        seed: 0,
        step: 0,
    };

    /// A number in [0, 1) for each of the four columns that begin at `4 * quad`, by Philox4x32-10
    /// (<https://www.thesalmons.org/john/random123/papers/random123sc11.pdf>). The key is the
    /// seed; the counter holds the sample and step mixed, the position with the site, and the quad.
    pub fn draw(&self, sample: u64, site: Site, position: u32, quad: u32) -> [f32; 4] {
        let place = match site {
            Site::Layer(layer, linear) => 2 + (layer as u32) * 8 + linear as u32,
            Site::Embedding => 0,
            Site::Head => 1,
        };
        // Odd multipliers mix steps and samples without a collision between neighbours.
        let mixed = sample
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(self.step.wrapping_mul(0xD1B5_4A32_D192_ED03));
        let counter = [
            quad,
            position ^ place.rotate_left(20),
            mixed as u32,
            (mixed >> 32) as u32,
        ];
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox(counter, key).map(|bits| (bits >> 8) as f32 / (1 << 24) as f32)
    }
}

/// A frozen model that can be trained with an adapter.
pub trait Learner: Send {
    /// Where the adapter's numbers lie. Does not change.
    fn parameters(&self) -> &Parameters;

    /// Whose arithmetic this is, on what kind of device, and the type of the frozen weights:
    /// `cpu bfloat16`, `libtorch cuda float32`. A run that was begun by one is not continued by
    /// another: their numbers differ by more than the order of sums.
    fn name(&self) -> String;

    /// Computes the loss of every segment with the adapter of these `values`, and **adds** to
    /// `gradient` the derivative of `sum over segments of weight * loss` by each of them. Both are
    /// laid out as [`Self::parameters`]. The same calls give the same bits with the same number of
    /// threads on the same kind of processor.
    ///
    /// The scores come in the order of the segments. Numbers that are not finite are an answer,
    /// not an error: the trainer decides.
    ///
    /// # Errors
    /// [`LearnError`]. `gradient` is then worth nothing.
    fn accumulate(
        &mut self,
        batch: &Batch,
        values: &[f32],
        dropout: Dropout,
        gradient: &mut [f32],
    ) -> Result<Vec<Score>, LearnError>;

    /// The scores of all segments, in their order, without dropout and gradients. The weights of
    /// the segments do not matter.
    ///
    /// # Errors
    /// [`LearnError`].
    fn score(&mut self, batch: &Batch, policy: Policy<'_>) -> Result<Vec<Score>, LearnError>;
}

/// Why a learner computed nothing.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The batch did not fit; a smaller one may.
    #[error("{tokens} tokens at once do not fit into memory: {message}")]
    OutOfMemory {
        /// Tokens of the batch.
        tokens: usize,
        /// What failed.
        message: String,
    },
    /// A batch that the model cannot read.
    #[error("the batch cannot be computed: {0}")]
    Batch(String),
    /// The device or its library failed; nothing that follows will work.
    #[error("training cannot go on: {0}")]
    Fatal(String),
}
