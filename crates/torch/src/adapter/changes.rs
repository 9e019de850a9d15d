//! What the adapters of one step add to the products of the matrices.

use hyprstream_models::adapter::{Linear, Site};
use tch::{Kind, TchError, Tensor};

use super::{
    place::{Part, Place},
    terms::{Input, Output, Terms},
};
use crate::plan::Rows;

/// The adapters of one step, and by what they are multiplied for each token.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    terms: &'a Terms,
    /// For each layout of the terms the scales of all tokens, `[tokens, columns]`, in f32.
    scales: Vec<Tensor>,
}

/// An input that was multiplied by the first factors of all maps that read it.
#[derive(Debug)]
pub(crate) struct Narrowed<'a> {
    input: &'a Input,
    changes: &'a Changes<'a>,
    /// Which tokens it has.
    rows: &'a Rows,
    /// Times the scales, `[rows, ranks]`, in the type of the model.
    low: Tensor,
}

/// What is done to the product of one matrix.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    /// `[rows, ranks]`.
    low: Tensor,
    /// `[ranks, out]`.
    b: &'a Tensor,
    /// With DoRA: what the product is multiplied by, `[rows, out]`, in f32.
    factor: Option<Tensor>,
}

impl<'a> Changes<'a> {
    /// Those of `terms`, with the scale of each of its adapters for each token, `[tokens,
    /// adapters]`, in f32.
    pub(super) fn new(terms: &'a Terms, scales: &Tensor) -> Result<Self, TchError> {
        let layouts = terms.layouts.iter();
        let each = layouts.map(|layout| scales.f_index_select(1, &layout.index));
        Ok(Self {
            scales: each.collect::<Result<_, _>>()?,
            terms,
        })
    }

    /// Multiplies `x`, `[tokens, in]`, an input within a layer, by the first factors; `None` where
    /// nothing changes what becomes of it.
    pub(crate) fn narrow(
        &'a self,
        layer: usize,
        part: Part,
        x: &Tensor,
    ) -> Result<Option<Narrowed<'a>>, TchError> {
        let input = self.terms.at(Place::Layer(layer, part));
        let narrowed = input.map(|input| self.narrowed(input, &Rows::All, x));
        narrowed.transpose()
    }

    /// What is done to the logits of `x`, the input of the head, which are those of the tokens
    /// `rows`.
    pub(crate) fn of_head(
        &'a self,
        rows: &'a Rows,
        x: &Tensor,
    ) -> Result<Option<Change<'a>>, TchError> {
        let Some(input) = self.terms.at(Place::Head) else {
            return Ok(None);
        };
        self.narrowed(input, rows, x)?.of(Site::Head)
    }

    /// The embeddings `x` of `tokens`, `[tokens, hidden]`, changed.
    pub(crate) fn embed(&self, tokens: &Tensor, x: Tensor) -> Result<Tensor, TchError> {
        let Some(input) = self.terms.at(Place::Embedding) else {
            return Ok(x);
        };
        let low = input.a.f_index_select(0, tokens)?;
        let narrowed = self.scaled(input, &Rows::All, &low)?;
        match narrowed.of(Site::Embedding)? {
            None => Ok(x),
            Some(change) => change.add(change.rescale(x)?),
        }
    }

    fn narrowed(
        &'a self,
        input: &'a Input,
        rows: &'a Rows,
        x: &Tensor,
    ) -> Result<Narrowed<'a>, TchError> {
        self.scaled(input, rows, &x.f_linear(&input.a, None::<Tensor>)?)
    }

    fn scaled(
        &'a self,
        input: &'a Input,
        rows: &'a Rows,
        low: &Tensor,
    ) -> Result<Narrowed<'a>, TchError> {
        let kind = low.f_kind()?;
        let scales = self.scales_of(input.layout, rows)?;
        // A scale is not rounded to 16 bits before it is used.
        let mut scaled = low.f_mul(&scales)?.f_to_kind(kind)?;
        if kind == Kind::Half {
            // There the products with other tokens' adapters may overflow, and 0 times that would
            // be no number.
            scaled = scaled.f_masked_fill_(&scales.f_eq(0.0)?, 0.0)?;
        }
        Ok(Narrowed {
            input,
            changes: self,
            rows,
            low: scaled,
        })
    }

    fn scales_of(&self, layout: usize, rows: &Rows) -> Result<Tensor, TchError> {
        let scales = &self.scales[layout];
        let of_rows = rows.of(scales)?;
        Ok(of_rows.unwrap_or_else(|| scales.shallow_clone()))
    }
}

impl Narrowed<'_> {
    /// What is done to the product of the matrix of `linear`, in the layer that this is of.
    pub(crate) fn linear(&self, linear: Linear) -> Result<Option<Change<'_>>, TchError> {
        let mut outputs = self.input.outputs.iter();
        let is_it = |output: &&Output| matches!(output.site, Site::Layer(_, of) if of == linear);
        let output = outputs.find(is_it);
        output.map(|output| self.change(output)).transpose()
    }
}

impl<'a> Narrowed<'a> {
    /// The only change of an input that one map reads.
    fn of(self, site: Site) -> Result<Option<Change<'a>>, TchError> {
        let input: &'a Input = self.input;
        let output = input.outputs.iter().find(|output| output.site == site);
        output.map(|output| self.change(output)).transpose()
    }

    fn change<'b>(&self, output: &'b Output) -> Result<Change<'b>, TchError> {
        let factor = output.gains.as_ref().map(|gains| {
            let scales = self.changes.scales_of(gains.layout, self.rows)?;
            scales.f_matmul(&gains.values)?.f_add_scalar_(1.0)
        });
        Ok(Change {
            low: self.low.f_narrow(1, output.from, output.ranks())?,
            b: &output.b,
            factor: factor.transpose()?,
        })
    }
}

impl Change<'_> {
    /// Whether the product alone is changed, before a bias is added.
    pub(crate) fn rescales(&self) -> bool {
        self.factor.is_some()
    }

    /// Multiplies what the matrix alone has given by the gains of DoRA.
    pub(crate) fn rescale(&self, y: Tensor) -> Result<Tensor, TchError> {
        match &self.factor {
            None => Ok(y),
            // Factors next to 1 would lose most of what they are in 16 bits.
            Some(factor) => y.f_mul(factor)?.f_to_kind(y.f_kind()?),
        }
    }

    /// Adds what the second factors give to `y`, `[rows, out]`.
    pub(crate) fn add(&self, mut y: Tensor) -> Result<Tensor, TchError> {
        y.f_addmm_(&self.low, self.b)
    }
}
