//! What DoRA multiplies the rows of a changed weight by.

use super::{Linear, LowRank, Matrix, Site};
use crate::{StoredTensor, Weights};

/// A row of the changed weight is 0, so that no factor gives it the length that was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of {site} is 0 with the adapter, but has a magnitude (use_dora)")]
pub struct NoLength {
    /// What the adapter changes.
    pub site: Site,
    /// Which of its outputs.
    pub row: usize,
}

/// Rows that are looked at together.
const ROWS: usize = 64;

impl Site {
    /// The length of each row of its weight in `base`, `[out]`: the magnitudes of a new adapter with
    /// DoRA. It reads the whole weight.
    pub fn lengths(self, base: &Weights) -> Vec<f32> {
        let weight = self.weight(base);
        let (outputs, inputs) = match (self, weight.shape()) {
            (Self::Embedding, [rows, columns]) => (*columns, *rows),
            (_, [rows, columns]) => (*rows, *columns),
            _ => unreachable!("weights of linear maps have two dimensions"),
        };
        let nothing = LowRank {
            a: Matrix::new(1, vec![0.0; inputs]),
            b: Matrix::new(outputs, vec![0.0; outputs]),
            scaling: 0.0,
            magnitude: None,
        };
        let squares = match self {
            Self::Embedding => nothing.squares_of_columns(weight),
            Self::Layer(..) | Self::Head => nothing.squares_of_rows(weight),
        };
        squares.into_iter().map(|x| x.sqrt() as f32).collect()
    }
}

impl LowRank {
    /// `m / |W + scaling * B A|` for each output, with the weight of `site` in `base`; `None` without
    /// DoRA. It reads the whole weight, and computes as long as merging the adapter would take.
    ///
    /// # Errors
    /// [`NoLength`].
    ///
    /// # Panics
    /// When it has another size than that weight.
    pub fn gains(&self, site: Site, base: &Weights) -> Result<Option<Vec<f32>>, NoLength> {
        let Some(magnitude) = &self.magnitude else {
            return Ok(None);
        };
        let weight = site.weight(base);
        let squares = match site {
            Site::Embedding => self.squares_of_columns(weight),
            Site::Layer(..) | Site::Head => self.squares_of_rows(weight),
        };
        assert_eq!(squares.len(), magnitude.len(), "rows of {site}");
        let each = magnitude.iter().zip(squares).enumerate();
        let gains = each.map(|(row, (magnitude, square))| match square.sqrt() as f32 {
            0.0 => Err(NoLength { site, row }),
            length => Ok(magnitude / length),
        });
        gains.collect::<Result<_, _>>().map(Some)
    }

    /// Of each row of `weight + scaling * B A`, the sum of its squares.
    fn squares_of_rows(&self, weight: &StoredTensor) -> Vec<f64> {
        let (outputs, inputs) = self.size();
        let mut squares = Vec::with_capacity(outputs);
        for from in (0..outputs).step_by(ROWS) {
            let mut rows = weight.rows(from..(from + ROWS).min(outputs)).to_f32();
            for (index, row) in rows.chunks_exact_mut(inputs).enumerate() {
                for (r, b) in self.b.row(from + index).iter().enumerate() {
                    add(row, self.scaling * b, self.a.row(r));
                }
                let each = row.iter().map(|x| f64::from(*x) * f64::from(*x));
                squares.push(each.sum());
            }
        }
        squares
    }

    /// The same for the embedding, whose weight is the transpose of its `table`.
    fn squares_of_columns(&self, table: &StoredTensor) -> Vec<f64> {
        let (hidden, tokens) = self.size();
        let b = self.b.transposed();
        let mut squares = vec![0.0; hidden];
        for from in (0..tokens).step_by(ROWS) {
            let mut rows = table.rows(from..(from + ROWS).min(tokens)).to_f32();
            for (index, row) in rows.chunks_exact_mut(hidden).enumerate() {
                for r in 0..self.rank() {
                    add(row, self.scaling * self.a.row(r)[from + index], b.row(r));
                }
                for (square, x) in squares.iter_mut().zip(row) {
                    *square += f64::from(*x) * f64::from(*x);
                }
            }
        }
        squares
    }
}

/// `to += factor * values`.
fn add(to: &mut [f32], factor: f32, values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += factor * value;
    }
}

impl Site {
    /// The model's weight at this place, as it is stored: that of the embedding is its table,
    /// `[vocab, hidden]`.
    ///
    /// # Panics
    /// When the model has no such layer.
    pub fn weight(self, base: &Weights) -> &StoredTensor {
        match self {
            Self::Layer(index, linear) => {
                let layer = &base.layers[index];
                let linear = match linear {
                    Linear::Query => &layer.query,
                    Linear::Key => &layer.key,
                    Linear::Value => &layer.value,
                    Linear::Output => &layer.output,
                    Linear::Gate => &layer.gate,
                    Linear::Up => &layer.up,
                    Linear::Down => &layer.down,
                };
                &linear.weight
            }
            Self::Embedding => &base.embedding,
            Self::Head => base.head.as_ref().unwrap_or(&base.embedding),
        }
    }
}
