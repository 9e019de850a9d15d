//! What an adapter adds to one linear map.

use std::{fmt, ops::Range, sync::Arc};

use crate::StoredTensor;

/// A low-rank change of one linear map with `in` inputs and `out` outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`. Parts that were one fused module share it ([`Matrix::is`]), so that its
    /// product with an input need be computed once.
    pub a: Matrix,
    /// `[out, rank]`.
    pub b: Matrix,
    /// What `B A` is multiplied by: `alpha / rank`, or `alpha / sqrt(rank)`. Finite.
    pub scaling: f32,
    /// The length of each row of the changed weight, `[out]`; with DoRA.
    pub magnitude: Option<Arc<[f32]>>,
}

impl LowRank {
    /// Its rank.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// Outputs and inputs.
    pub fn size(&self) -> (usize, usize) {
        (self.b.rows(), self.a.columns())
    }
}

/// A matrix in 32 bits, row after row. Cheap to clone.
#[derive(Clone)]
pub struct Matrix {
    values: Arc<[f32]>,
    /// Where it begins in `values`.
    from: usize,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// A matrix of so many rows of these values.
    ///
    /// # Panics
    /// When the values are no whole number of columns.
    pub fn new(rows: usize, values: Vec<f32>) -> Self {
        assert!(
            rows > 0 && values.len().is_multiple_of(rows),
            "{} values in {rows} rows",
            values.len()
        );
        Self {
            columns: values.len() / rows,
            values: values.into(),
            from: 0,
            rows,
        }
    }

    /// The numbers of a stored tensor of two dimensions, transposed if asked for.
    pub(super) fn load(tensor: &StoredTensor, transposed: bool) -> Self {
        let (rows, values) = (tensor.shape()[0], tensor.to_f32());
        let matrix = Self::new(rows, values);
        if transposed {
            matrix.transposed()
        } else {
            matrix
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Its numbers, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values[self.from..self.from + self.rows * self.columns]
    }

    /// One row.
    ///
    /// # Panics
    /// When there is none of this index.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.columns..][..self.columns]
    }

    /// Some of its rows, without a copy.
    ///
    /// # Panics
    /// When `rows` reaches beyond its end.
    #[must_use]
    pub fn some_rows(&self, rows: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "{rows:?} of {} rows",
            self.rows
        );
        Self {
            values: Arc::clone(&self.values),
            from: self.from + rows.start * self.columns,
            rows: rows.len(),
            columns: self.columns,
        }
    }

    /// Its transpose.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let values = self.values();
        let columns = (0..self.columns).flat_map(|column| {
            let column = values.iter().skip(column).step_by(self.columns);
            column.copied()
        });
        Self::new(self.columns, columns.collect())
    }

    /// Whether it is the same memory as another, not only equal to it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.values, &other.values)
            && (self.from, self.rows, self.columns) == (other.from, other.rows, other.columns)
    }
}

impl PartialEq for Matrix {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.columns) == (other.rows, other.columns) && self.values() == other.values()
    }
}

/// Without its numbers.
impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{}, {}]", self.rows, self.columns)
    }
}
