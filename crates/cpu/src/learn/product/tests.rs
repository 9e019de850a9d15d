//! Every set that this processor has, against sums in f64.

use hyprstream_models::StoredType;

use super::*;
use crate::{
    buffer::Arena,
    format::{bf16_bits, bf16_value},
    kernels::{Kernels, Shape},
    learn::grid::Grid,
    pool::Pool,
    weights::{Matrix as Stored, PanelSource, panels_of},
};

/// All sets, and one that multiplies two rows by two panels at a time.
fn sets() -> Vec<Ops> {
    let all = Kernels::ALL.into_iter().filter(|set| set.available());
    let mut all: Vec<_> = all.map(Ops::of).collect();
    #[cfg(target_arch = "x86_64")]
    if Kernels::Avx2.available() {
        const TWO: &[Shape] = &[Shape { rows: 1, panels: 4 }, Shape { rows: 2, panels: 2 }];
        let mut two = Ops::of(Kernels::Avx2);
        two.f32.shapes = TWO;
        all.push(two);
    }
    all
}

fn numbers(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
}

fn grid(values: &[f32], width: usize) -> Grid {
    let mut grid = Grid::new(width).unwrap();
    grid.at_least(values.len() / width).unwrap();
    let view = grid.view();
    for (r, row) in values.chunks_exact(width).enumerate() {
        // SAFETY: nobody else has it.
        unsafe { view.row_mut(r, 0, width) }.copy_from_slice(row);
    }
    grid
}

struct Case {
    m: usize,
    outputs: usize,
    inputs: usize,
    half: bool,
    rounds: bool,
    paired: bool,
}

/// Half of the distance between two numbers of bf16, as part of the lesser: it has 8 bits.
const ROUNDING: f64 = 1.0 / 256.0;

#[track_caller]
fn check(ops: &Ops, threads: usize, case: &Case) {
    const RANK: usize = 5;
    let Case {
        m,
        outputs,
        inputs,
        half,
        rounds,
        paired,
    } = *case;
    let mut random = fastrand::Rng::with_seed(7);
    let mut pool = Pool::new(threads).unwrap();
    let weight = numbers(&mut random, outputs * inputs);
    let bytes: Vec<u8> = weight.iter().flat_map(|w| w.to_le_bytes()).collect();
    let stored = |from: usize, to: usize| {
        let matrix = Stored {
            bytes: &bytes[from * inputs * 4..to * inputs * 4],
            stored: StoredType::F32,
            inputs,
        };
        panels_of(&matrix).collect::<Vec<PanelSource<'_>>>()
    };
    let panels = if paired {
        let (first, second) = (stored(0, outputs / 2), stored(outputs / 2, outputs));
        let pairs = first.into_iter().zip(second);
        pairs.flat_map(|(a, b)| [a, b]).collect()
    } else {
        stored(0, outputs)
    };
    let format = if half { Format::Bf16 } else { Format::F32 };
    let mut arena = Arena::default();
    let weights = Weights::pack(&panels, format, None, &mut arena, ops, &mut pool).unwrap();
    let weight: Vec<f64> = weight
        .iter()
        .map(|w| f64::from(if half { bf16_value(bf16_bits(*w)) } else { *w }))
        .collect();
    let matrix = Matrix {
        weights: &weights,
        inputs,
        paired,
    };
    let mut crew = Crew::new(ops, rounds, pool).unwrap();
    for back in [false, true] {
        let (depth, columns) = if back {
            (outputs, inputs)
        } else {
            (inputs, outputs)
        };
        let (x, u) = (
            numbers(&mut random, m * depth),
            numbers(&mut random, m * RANK),
        );
        let count = columns.div_ceil(LANES);
        let low = numbers(&mut random, count * RANK * LANES);
        // Every second panel has a change.
        let spans: Vec<_> = (0..count)
            .map(|column| Span {
                from: 0,
                depth: if column % 2 == 0 { RANK } else { 0 },
                at: column * RANK * LANES,
            })
            .collect();
        let (mut rows, mut narrow) = (grid(&x, depth), grid(&u, RANK));
        let mut out = grid(&vec![1.0; m * columns], columns);
        let product = Product {
            rows: rows.view(),
            m,
            source: if back {
                Source::Inputs(matrix)
            } else {
                Source::Outputs(matrix)
            },
            low: Some(Low {
                rows: narrow.view(),
                spans: &spans,
                panels: &low,
            }),
            out: out.view(),
            begun: back,
        };
        product.run(&mut crew).unwrap();
        let rounded = |x: f32| bf16_value(bf16_bits(x));
        for row in 0..m {
            // SAFETY: nobody else has it.
            let ours = unsafe { out.view().row(row, 0, columns) };
            for (column, ours) in ours.iter().enumerate() {
                let mut sum = if back { 1.0 } else { 0.0 };
                // What rounding takes away, and the most that it may.
                let (mut lost, mut most) = (0.0, 0.0);
                for i in 0..depth {
                    let at = if back {
                        i * inputs + column
                    } else {
                        column * inputs + i
                    };
                    let x = x[row * depth + i];
                    let taken = if rounds && half { rounded(x) } else { x };
                    sum += f64::from(taken) * weight[at];
                    lost += f64::from(x - taken) * weight[at];
                    most += ROUNDING * (f64::from(x) * weight[at]).abs();
                }
                assert!(lost.abs() <= most, "{lost} of {most} is lost to rounding");
                if (column / LANES).is_multiple_of(2) {
                    for r in 0..RANK {
                        let at = (column / LANES * RANK + r) * LANES + column % LANES;
                        sum += f64::from(u[row * RANK + r]) * f64::from(low[at]);
                    }
                }
                assert!(
                    (sum - f64::from(*ours)).abs() < 1e-5 * (depth as f64).sqrt().max(4.0),
                    "{m} rows, back {back}, row {row}, column {column}: {ours}, not {sum}"
                );
            }
        }
    }
}

#[test]
fn products_both_ways_are_those_of_the_weights() {
    for ops in sets() {
        for (half, rounds) in [(false, true), (true, false), (true, true)] {
            for (m, outputs, inputs, paired) in [
                (1, 16, 16, false),
                (7, 40, 33, false),
                (130, 96, 270, true),
                (5, 300, 18, false),
                (491, 32, 47, true),
            ] {
                let case = Case {
                    m,
                    outputs,
                    inputs,
                    half,
                    rounds,
                    paired,
                };
                check(&ops, 1, &case);
                check(&ops, 3, &case);
            }
        }
    }
}

#[test]
fn sums_over_tokens_are_those_of_the_columns() {
    for ops in sets() {
        let (m, left_width, right_width) = (600, 7, 37);
        let mut random = fastrand::Rng::with_seed(3);
        let left = numbers(&mut random, left_width * m);
        let right = numbers(&mut random, m * right_width);
        let (mut flipped, mut rows) = (grid(&left, m), grid(&right, right_width));
        let mut crew = Crew::new(&ops, true, Pool::new(2).unwrap()).unwrap();
        let found = parking_lot::Mutex::new(vec![f32::NAN; left_width * right_width]);
        let sums = Sums {
            left: flipped.view(),
            left_rows: left_width,
            right: rows.view(),
            right_columns: right_width,
            m,
        };
        sums.run(&mut crew, |column, sums| {
            for lane in 0..LANES.min(right_width - column) {
                for (r, sums) in sums.iter().enumerate() {
                    found.lock()[r * right_width + column + lane] = sums[lane];
                }
            }
        })
        .unwrap();
        for (at, found) in found.into_inner().into_iter().enumerate() {
            let (r, column) = (at / right_width, at % right_width);
            let each = (0..m)
                .map(|t| f64::from(left[r * m + t]) * f64::from(right[t * right_width + column]));
            let sum: f64 = each.sum();
            assert!((sum - f64::from(found)).abs() < 1e-4, "{found}, not {sum}");
        }
    }
}
