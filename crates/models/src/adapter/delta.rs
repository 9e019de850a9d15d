//! What an adapter changes in a weight.

use super::LowRank;

impl LowRank {
    /// What it adds to the weight `base`, `[out, in]`, row after row, at a scale of 1. Without DoRA
    /// the weight itself does not matter and may be empty.
    ///
    /// The embedding's weight is the transpose of its table: `[hidden, vocab]`.
    ///
    /// The numbers are not finite where a row of a weight under DoRA has no length.
    ///
    /// Formulas: `scaling * B A` (<https://arxiv.org/abs/2106.09685>), and with DoRA
    /// `m (W + scaling * B A) / |W + scaling * B A| - W` (<https://arxiv.org/abs/2402.09353>, eq. 5).
    ///
    /// # Panics
    /// With DoRA when `base` has another size.
    pub fn delta(&self, base: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = self.size();
        let mut delta = vec![0.0; outputs * inputs];
        for (output, row) in delta.chunks_exact_mut(inputs).enumerate() {
            for (factor, a) in self
                .b
                .row(output)
                .iter()
                .zip(self.a.values().chunks(inputs))
            {
                for (sum, a) in row.iter_mut().zip(a) {
                    *sum += factor * a;
                }
            }
            for sum in row.iter_mut() {
                *sum *= self.scaling;
            }
        }
        if let Some(magnitude) = &self.magnitude {
            assert_eq!(base.len(), delta.len(), "numbers of the weight");
            let rows = delta.chunks_exact_mut(inputs).zip(base.chunks(inputs));
            for ((row, base), magnitude) in rows.zip(magnitude.iter()) {
                to_magnitude(row, base, *magnitude);
            }
        }
        delta
    }
}

/// Makes of what is added to a row what brings the sum to this length.
fn to_magnitude(added: &mut [f32], base: &[f32], magnitude: f32) {
    let sums = added.iter().zip(base).map(|(added, base)| added + base);
    let square: f64 = sums.map(|sum| f64::from(sum) * f64::from(sum)).sum();
    let factor = magnitude / square.sqrt() as f32;
    for (added, base) in added.iter_mut().zip(base) {
        *added = factor * (*added + base) - base;
    }
}

#[cfg(test)]
mod tests {
    use crate::adapter::Matrix;

    use super::*;

    #[test]
    fn a_delta_is_the_scaled_product() {
        let part = LowRank {
            a: Matrix::new(2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            b: Matrix::new(2, vec![1.0, 0.0, 1.0, -1.0]),
            scaling: 2.0,
            magnitude: None,
        };
        let delta = part.delta(&[]);
        assert_eq!(delta, [2.0, 4.0, 6.0, -6.0, -6.0, -6.0]);
    }

    #[test]
    fn with_a_magnitude_each_row_gets_this_length() {
        let part = LowRank {
            a: Matrix::new(1, vec![3.0, 0.0]),
            b: Matrix::new(1, vec![1.0]),
            scaling: 1.0,
            magnitude: Some([10.0].into()),
        };
        // [0, 4] + [3, 0] has length 5.
        assert_eq!(part.delta(&[0.0, 4.0]), [6.0, 4.0]);
    }
}
