//! The lengths that DoRA divides by.

use tch::{Kind, TchError, Tensor};

/// Numbers of a weight that are looked at together.
const NUMBERS: i64 = 1 << 24;

/// Length of each row of `weight + scaling * B A`, `[out]`, for `weight` `[out, in]`.
pub(super) fn of_rows(
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scaling: f64,
) -> Result<Tensor, TchError> {
    let lengths = chunks(weight)?.map(|(from, count)| {
        let change = b.f_narrow(0, from, count)?.f_matmul(a)?;
        squares(weight, from, count, &change, scaling)?
            .f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Float)?
            .f_sqrt()
    });
    Tensor::f_cat(&lengths.collect::<Result<Vec<_>, _>>()?, 0)
}

/// The same for the embedding, whose weight is the transpose of its `table`, `[in, out]`.
pub(super) fn of_columns(
    table: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scaling: f64,
) -> Result<Tensor, TchError> {
    let mut sum = Tensor::f_zeros([b.size()[0]], (Kind::Float, table.device()))?;
    for (from, count) in chunks(table)? {
        let change = a
            .f_narrow(1, from, count)?
            .f_transpose(0, 1)?
            .f_matmul(&b.f_transpose(0, 1)?)?;
        let squares = squares(table, from, count, &change, scaling)?;
        sum = sum.f_add_(&squares.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Float)?)?;
    }
    sum.f_sqrt()
}

fn squares(
    weight: &Tensor,
    from: i64,
    count: i64,
    change: &Tensor,
    scaling: f64,
) -> Result<Tensor, TchError> {
    let rows = weight.f_narrow(0, from, count)?.f_to_kind(Kind::Float)?;
    rows.f_add(&change.f_mul_scalar(scaling)?)?.f_square()
}

/// Rows of a matrix, some at a time: the first and their number.
fn chunks(matrix: &Tensor) -> Result<impl Iterator<Item = (i64, i64)> + use<>, TchError> {
    let (rows, columns) = matrix.size2()?;
    let step = (NUMBERS / columns.max(1)).max(1);
    let starts = (0..rows).step_by(step as usize);
    Ok(starts.map(move |from| (from, step.min(rows - from))))
}
