//! Every set that this processor has, against sums in f64.
#![allow(clippy::panic)]
#![allow(clippy::float_cmp, reason = "what must be exact is compared exactly")]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;

use super::*;
use crate::{
    buffer::{Arena, Buffer, Shared},
    cache::{Cache, CacheShape},
    format::{Format, bf16_bits, bf16_value, f16_value},
    pool::Pool,
    product::{Destination, Outputs, Product, Rows, multiply_of, product},
    weights::{Matrix, PackError, PanelSource, Weights, panels_of},
};
use hyprstream_models::StoredType;

fn sets() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|set| set.available())
}

fn numbers(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The weights as they are after packing, `[outputs, inputs]`.
fn unpacked(weights: &Weights, outputs: usize, inputs: usize) -> Vec<f32> {
    let mut values = Vec::new();
    let per_step = weights.format.step_inputs();
    for output in 0..outputs {
        for input in 0..inputs {
            let (panel, lane) = (output / LANES, output % LANES);
            let step = (panel * weights.steps + input / per_step) * STEP_BYTES;
            let word = &weights.data[step + lane * 4..][..4];
            let scale = |of: &Buffer<u16>| {
                let groups = inputs / GROUP;
                f16_value(of[(panel * groups + input / GROUP) * LANES + lane])
            };
            values.push(match weights.format {
                Format::F32 => f32::from_le_bytes(word.try_into().unwrap()),
                Format::Bf16 => {
                    let at = input % 2 * 2;
                    bf16_value(u16::from_le_bytes([word[at], word[at + 1]]))
                }
                Format::Int8 => (f32::from(word[input % 4]) - 128.0) * scale(&weights.scales),
                Format::Int4 => {
                    let i = input % 8;
                    let level = if i < 4 {
                        word[i] & 15
                    } else {
                        word[i - 4] >> 4
                    };
                    f32::from(level) * scale(&weights.scales) + scale(&weights.minima)
                }
            });
        }
    }
    values
}

/// What a multiplication makes of a row of activations.
fn rounded(kind: RowKind, row: &[f32]) -> Vec<f32> {
    match kind {
        RowKind::F32 => row.to_vec(),
        RowKind::Bf16 => row.iter().map(|v| bf16_value(bf16_bits(*v))).collect(),
        RowKind::Q8 => row
            .chunks(GROUP)
            .flat_map(|group| {
                let largest = group.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                let scale = largest / 127.0;
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                group
                    .iter()
                    .map(move |v| (v * inverse).round_ties_even() * scale)
                    .collect::<Vec<_>>()
            })
            .collect(),
    }
}

fn multiplied(
    set: Kernels,
    weights: &Weights,
    rows: &[Vec<f32>],
    pool: &mut Pool,
) -> Vec<Vec<f32>> {
    let ops = Ops::of(set);
    let kind = multiply_of(&ops, weights.format).rows;
    let stride = kind.stride(rows[0].len());
    let mut data = Buffer::new(rows.len() * stride).unwrap();
    let packed = Rows {
        kind,
        data: Shared::new(&mut data),
        stride,
    };
    for (i, row) in rows.iter().enumerate() {
        // SAFETY: the only thread.
        unsafe { packed.write(&ops, i, row) };
    }
    let width = weights.panels * LANES;
    let mut out: Buffer<f32> = Buffer::new(rows.len() * width).unwrap();
    let shared = Shared::new(&mut out);
    pool.run(|team| {
        let all = Product {
            weights,
            rows: &packed,
            m: rows.len(),
            granule: 1,
            destination: Destination {
                at: shared.at(0).cast(),
                row_bytes: 4 * width,
                panel_bytes: 4 * LANES,
            },
        };
        let sink = |tile: Outputs<'_>| {
            for (r, values) in tile.values.chunks_exact(tile.columns).enumerate() {
                let to = (tile.row + r) * width + tile.column;
                // SAFETY: each tile writes its own part.
                unsafe { shared.part_mut(to, values.len()) }.copy_from_slice(values);
            }
        };
        // SAFETY: the set is available.
        unsafe { product(team, &ops, &all, sink) };
    });
    out.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

/// `sources` as `format`, all inputs alike, in memory of their own.
fn packed(sources: &[PanelSource<'_>], format: Format, ops: &Ops, pool: &mut Pool) -> Weights {
    Weights::pack(sources, format, None, &mut Arena::default(), ops, pool).unwrap()
}

#[test]
fn products_are_right_for_all_sets_forms_and_sizes() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut pool = Pool::new(2).unwrap();
    for format in [Format::F32, Format::Bf16, Format::Int8, Format::Int4] {
        for (outputs, inputs) in [(16, 32), (48, 64), (200, 96), (70, 352)] {
            let inputs = if format.is_quantized() {
                inputs
            } else {
                inputs - 1
            };
            let stored = numbers(&mut random, outputs * inputs);
            let stored = bytes(&stored);
            let matrix = Matrix {
                bytes: &stored,
                stored: StoredType::F32,
                inputs,
            };
            let sources: Vec<_> = panels_of(&matrix).collect();
            let weights = packed(&sources, format, &Ops::of(Kernels::best()), &mut pool);
            let exact = unpacked(&weights, outputs, inputs);
            for set in sets() {
                let kind = multiply_of(&Ops::of(set), format).rows;
                for count in [1, 2, 3, 4, 5, 6, 7, 11, 14, 16, 17, 29, 32, 300] {
                    let rows: Vec<_> = (0..count).map(|_| numbers(&mut random, inputs)).collect();
                    let got = multiplied(set, &weights, &rows, &mut pool);
                    let lone = multiplied(set, &weights, &rows[..1], &mut pool);
                    assert_eq!(lone[0], got[0], "{set} {format:?}: depends on the batch");
                    for (row, got) in rows.iter().zip(&got) {
                        let row = rounded(kind, row);
                        for (weights, got) in exact.chunks(inputs).zip(got) {
                            let each = weights.iter().zip(&row);
                            let sum: f64 = each.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                            let error = (f64::from(*got) - sum).abs();
                            assert!(
                                error < 1e-4,
                                "{set} {format:?} {outputs}x{inputs}, {count} rows: {got} for {sum}"
                            );
                        }
                        assert!(got[outputs..].iter().all(|padding| *padding == 0.0));
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_levels_and_inputs_overflow_no_sum() {
    let mut pool = Pool::new(1).unwrap();
    let mut values = vec![1.0; 16 * 64];
    for (i, row) in values.chunks_exact_mut(64).enumerate() {
        // One is at the other end of the range.
        row[i] = -1.0;
        row[32 + i] = -1.0;
    }
    let stored = bytes(&values);
    let matrix = Matrix {
        bytes: &stored,
        stored: StoredType::F32,
        inputs: 64,
    };
    let sources: Vec<_> = panels_of(&matrix).collect();
    let rows = vec![vec![1.0; 64], vec![-1.0; 64]];
    for set in sets() {
        let ops = Ops::of(set);
        for format in [Format::Int8, Format::Int4] {
            let weights = packed(&sources, format, &ops, &mut pool);
            for (got, exact) in multiplied(set, &weights, &rows, &mut pool)
                .iter()
                .zip([60.0, -60.0])
            {
                assert!(
                    got.iter().all(|got| (got - exact).abs() < 0.1),
                    "{set} {format:?}: {got:?} for {exact}"
                );
            }
        }
    }
}

#[test]
fn tiles_of_fewer_bits_give_the_bits_of_vectors() {
    if !Kernels::Amx.available() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(6);
    let mut pool = Pool::new(1).unwrap();
    let stored = bytes(&numbers(&mut random, 80 * 96));
    let matrix = Matrix {
        bytes: &stored,
        stored: StoredType::F32,
        inputs: 96,
    };
    let sources: Vec<_> = panels_of(&matrix).collect();
    let rows: Vec<_> = (0..45).map(|_| numbers(&mut random, 96)).collect();
    for format in [Format::Int8, Format::Int4] {
        let ops = Ops::of(Kernels::Avx512);
        let weights = packed(&sources, format, &ops, &mut pool);
        let by_vectors = multiplied(Kernels::Avx512, &weights, &rows, &mut pool);
        let by_tiles = multiplied(Kernels::Amx, &weights, &rows, &mut pool);
        assert_eq!(by_vectors, by_tiles, "{format:?}");
    }
}

#[test]
fn quantisation_loses_no_more_than_half_a_level() {
    let mut random = fastrand::Rng::with_seed(2);
    let mut pool = Pool::new(1).unwrap();
    let values = numbers(&mut random, 16 * 64);
    let stored = bytes(&values);
    let matrix = Matrix {
        bytes: &stored,
        stored: StoredType::F32,
        inputs: 64,
    };
    let sources: Vec<_> = panels_of(&matrix).collect();
    for (format, level) in [(Format::Int8, 1.0 / 127.0), (Format::Int4, 2.0 / 15.0)] {
        let weights = packed(&sources, format, &Ops::of(Kernels::best()), &mut pool);
        let kept = unpacked(&weights, 16, 64);
        for (kept, value) in kept.iter().zip(&values) {
            // A narrower range may cut off the ends.
            assert!(
                (kept - value).abs() < level * 0.55 + 0.15 * level * 7.5,
                "{kept} for {value}"
            );
        }
        let mean = kept
            .iter()
            .zip(&values)
            .map(|(a, b)| (a - b).abs())
            .sum::<f32>()
            / 1024.0;
        assert!(mean < level * 0.3, "{format:?}: {mean}");
    }
}

#[test]
fn attention_is_a_softmax_over_what_each_token_sees() {
    let mut random = fastrand::Rng::with_seed(3);
    for (half, dim, group, length, window, cap) in [
        (false, 64, 3, 700, usize::MAX, 0.0),
        (true, 64, 3, 700, usize::MAX, 0.0),
        (true, 32, 1, 300, 100, 0.0),
        (false, 16, 7, 513, 17, 5.0),
        (true, 256, 4, 270, 256, 50.0),
        (false, 128, 14, 40, usize::MAX, 0.0),
    ] {
        let shape = CacheShape {
            layers: 2,
            kv_heads: 2,
            head_dim: dim,
            half,
        };
        let mut cache = Cache::new(shape, 64).unwrap();
        let keys: Vec<_> = (0..length).map(|_| numbers(&mut random, dim)).collect();
        let values: Vec<_> = (0..length).map(|_| numbers(&mut random, dim)).collect();
        // Blocks out of order, and one that an earlier sequence has left full of NaN.
        let mut blocks: Vec<u32> = (0..64).rev().collect();
        random.shuffle(&mut blocks);
        let shared = cache.share();
        let ops = Ops::of(Kernels::best());
        let nan = vec![f32::NAN; dim];
        let last_block = blocks[(length - 1) / LANES] as usize;
        for slot in 0..LANES {
            // SAFETY: the only thread.
            unsafe { shared.write(&ops, (1, 1), (last_block, slot), (&nan, &nan), false) };
        }
        for (p, (key, value)) in keys.iter().zip(&values).enumerate() {
            let slot = (blocks[p / LANES] as usize, p % LANES);
            // SAFETY: as above.
            unsafe { shared.write(&ops, (1, 1), slot, (key, value), p + 1 == length) };
        }
        for set in sets() {
            let ops = Ops::of(set);
            for tokens in 1..=MAX_ROWS / group {
                let position = length - tokens;
                let queries = numbers(&mut random, tokens * group * dim);
                let mut scratch: Buffer<f32> = Buffer::new(SCRATCH).unwrap();
                let rows = tokens * group;
                let len = partial_len(rows, dim);
                let chunks = length.div_ceil(CHUNK);
                let mut partials = vec![0.0; len * chunks];
                for chunk in 0..chunks {
                    let args = AttendArgs {
                        queries: queries.as_ptr(),
                        query_stride: group * dim,
                        tokens,
                        group,
                        head_dim: dim,
                        position,
                        window,
                        scale: 0.3,
                        softcap: cap,
                        chunk,
                        blocks: &blocks,
                        keys: shared.keys(1, 1),
                        values: shared.values(1, 1),
                        block_bytes: shape.block_bytes(),
                        out: partials[chunk * len..].as_mut_ptr(),
                        scratch: scratch.as_mut_ptr(),
                    };
                    // SAFETY: the set is available, and all sizes are as they should be.
                    unsafe {
                        if half {
                            (ops.attend_bf16)(&args);
                        } else {
                            (ops.attend_f32)(&args);
                        }
                    }
                }
                merge_chunks(&mut partials, rows, dim);
                for row in 0..rows {
                    let at = position + row / group;
                    let query = &queries[row * dim..(row + 1) * dim];
                    let seen = (at + 1).saturating_sub(window)..at + 1;
                    let round = |v: f32| if half { bf16_value(bf16_bits(v)) } else { v };
                    let scores: Vec<f64> = keys[seen.clone()]
                        .iter()
                        .map(|key| {
                            let each = key.iter().zip(query);
                            let dot: f64 = each
                                .map(|(k, q)| f64::from(round(*k)) * f64::from(*q))
                                .sum::<f64>()
                                * 0.3;
                            if cap > 0.0 {
                                f64::from(cap) * (dot / f64::from(cap)).tanh()
                            } else {
                                dot
                            }
                        })
                        .collect();
                    let total: f64 = scores.iter().map(|s| s.exp()).sum();
                    let sum = f64::from(partials[rows * (dim + 1) + row]);
                    for d in 0..dim {
                        let each = scores.iter().zip(&values[seen.clone()]);
                        let exact: f64 = each
                            .map(|(s, v)| s.exp() / total * f64::from(round(v[d])))
                            .sum();
                        let got = f64::from(partials[row * dim + d]) / sum;
                        let tolerance = if half { 1e-2 } else { 1e-5 };
                        assert!(
                            (got - exact).abs() < tolerance,
                            "{set}, half {half}, {dim} wide, {group}x{tokens}: {got} for {exact}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn functions_of_rows_are_right_for_all_sets() {
    let mut random = fastrand::Rng::with_seed(4);
    let x: Vec<f32> = numbers(&mut random, 75).iter().map(|v| v * 12.0).collect();
    let up = numbers(&mut random, 75);
    let close = |got: f32, exact: f64, what: &str| {
        let error = (f64::from(got) - exact).abs();
        assert!(
            error < 2e-6 * exact.abs().max(1.0),
            "{what}: {got} for {exact}"
        );
    };
    for set in sets() {
        let ops = Ops::of(set);
        let mut out = vec![0.0; 75];
        // SAFETY: the set is available.
        unsafe {
            (ops.norm)(
                &NormArgs {
                    x: &x,
                    weight: &up,
                    eps: 1e-5,
                },
                &mut out,
            );
        }
        let mean: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 75.0;
        for ((got, x), up) in out.iter().zip(&x).zip(&up) {
            close(
                *got,
                f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*up),
                "norm",
            );
        }
        let both: Vec<f32> = numbers(&mut random, 3 * 64)
            .iter()
            .map(|v| v * 12.0)
            .collect();
        let bias = numbers(&mut random, 64);
        for (gelu, half, bias) in [
            (false, false, &bias[..]),
            (true, false, &[]),
            (false, true, &[]),
        ] {
            let mut out = [0.0_f32; 3 * 40];
            let args = GateArgs {
                values: &both,
                columns: 64,
                bias,
                gelu,
                out: out.as_mut_ptr().cast(),
                out_bytes: 160,
                len: 30,
                half,
            };
            // SAFETY: see above.
            unsafe { (ops.gate)(&args) };
            for (row, out) in both.chunks(64).zip(out.chunks(40)) {
                for i in 0..40 {
                    let got = if half {
                        bf16_value((out[i / 2].to_bits() >> (16 * (i % 2))) as u16)
                    } else {
                        out[i]
                    };
                    if i >= 30 {
                        assert_eq!(got, 0.0, "{set}: beyond the end");
                        continue;
                    }
                    let at = i / 16 * 32 + i % 16;
                    let biased = |at: usize| f64::from(row[at] + bias.get(at).unwrap_or(&0.0));
                    let (x, up) = (biased(at), biased(at + 16));
                    let act = if gelu {
                        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                        0.5 * x * (1.0 + z.tanh())
                    } else {
                        x / (1.0 + (-x).exp())
                    };
                    let exact = act * up;
                    if half {
                        let error = (f64::from(got) - exact).abs();
                        assert!(
                            error <= exact.abs() / 250.0 + 1e-6,
                            "{set}: {got} for {exact}"
                        );
                    } else {
                        close(got, exact, "gate");
                    }
                }
            }
        }
        let mut sums = vec![1.0; 3 * 80];
        let args = AddArgs {
            values: &both,
            columns: 64,
            bias: &bias[..50],
            to: sums.as_mut_ptr(),
            stride: 80,
            len: 50,
        };
        // SAFETY: see above.
        unsafe { (ops.add_rows)(&args) };
        for (row, sums) in both.chunks(64).zip(sums.chunks(80)) {
            for (i, sum) in sums.iter().enumerate() {
                let exact = if i < 50 { 1.0 + row[i] + bias[i] } else { 1.0 };
                close(*sum, f64::from(exact), "add_rows");
            }
        }
        let mut capped = x.clone();
        // SAFETY: see above.
        unsafe { (ops.softcap)(3.0, &mut capped) };
        for (got, x) in capped.iter().zip(&x) {
            close(*got, 3.0 * (f64::from(*x) / 3.0).tanh(), "softcap");
        }
        let mut halves = vec![0; 75];
        // SAFETY: see above.
        unsafe { (ops.to_bf16)(&x, &mut halves) };
        assert!(halves.iter().zip(&x).all(|(h, x)| *h == bf16_bits(*x)));
        let values: Vec<f32> = x.iter().cycle().take(96).copied().collect();
        let mut packed: Buffer<u8> = Buffer::new(RowKind::Q8.stride(96)).unwrap();
        // SAFETY: see above.
        unsafe { (ops.quantize)(&values, packed.as_mut_ptr()) };
        let exact = rounded(RowKind::Q8, &values);
        for g in 0..3 {
            let word = |at: usize| <[u8; 4]>::try_from(&packed[at..at + 4]).unwrap();
            let scale = f32::from_le_bytes(word(96 + g * 4));
            let levels = packed[g * 32..][..32].iter().map(|b| b.cast_signed());
            let sum: i32 = levels.clone().map(i32::from).sum();
            assert_eq!(i32::from_le_bytes(word(96 + 12 + g * 4)), sum, "{set}");
            for (level, exact) in levels.zip(&exact[g * 32..]) {
                assert_eq!(f32::from(level) * scale, *exact, "{set}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_in_all_sets() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut pool = Pool::new(1).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for set in sets() {
            let ops = Ops::of(set);
            for (at, format) in [Format::F32, Format::Bf16, Format::Int8, Format::Int4]
                .into_iter()
                .enumerate()
            {
                let stored = bytes(&numbers(&mut random, 32 * 96));
                let matrix = Matrix {
                    bytes: &stored,
                    stored: StoredType::F32,
                    inputs: 96,
                };
                let sources: Vec<_> = panels_of(&matrix).collect();
                let weights = packed(&sources, format, &ops, &mut pool);
                let mut rows: Vec<_> = (0..9).map(|_| numbers(&mut random, 96)).collect();
                rows[3][31 + 16 * at] = bad;
                for (r, got) in multiplied(set, &weights, &rows, &mut pool)
                    .iter()
                    .enumerate()
                {
                    let finite = got.iter().filter(|v| v.is_finite()).count();
                    let expected = if r == 3 { 0 } else { got.len() };
                    assert_eq!(
                        finite, expected,
                        "{set} {format:?} row {r}: {bad} among inputs"
                    );
                }
            }
            let mut x = numbers(&mut random, 75);
            x[70] = bad;
            let (weight, mut out) = ([1.0; 75], [0.0; 75]);
            let args = NormArgs {
                x: &x,
                weight: &weight,
                eps: 1e-5,
            };
            // SAFETY: the set is available.
            unsafe { (ops.norm)(&args, &mut out) };
            assert!(out.iter().all(|v| v.is_nan()), "{set}: norm of {bad}");
            let mut capped = [1.0, bad, 2.0];
            // SAFETY: the set is available.
            unsafe { (ops.softcap)(30.0, &mut capped) };
            assert!(
                !capped[1].is_finite() && capped[0].is_finite(),
                "{set}: cap of {bad}"
            );
        }
    }
}

#[test]
fn weights_that_a_format_cannot_hold_are_refused() {
    let mut pool = Pool::new(2).unwrap();
    let ops = Ops::of(Kernels::best());
    let mut pack = |stored: StoredType, values: &[f32], format| {
        let stored_bytes: Vec<u8> = match stored {
            StoredType::F32 => bytes(values),
            StoredType::BF16 | StoredType::F16 => values
                .iter()
                .flat_map(|v| bf16_bits(*v).to_le_bytes())
                .collect(),
        };
        let matrix = Matrix {
            bytes: &stored_bytes,
            stored,
            inputs: 64,
        };
        let sources: Vec<_> = panels_of(&matrix).collect();
        Weights::pack(
            &sources,
            format,
            None,
            &mut Arena::default(),
            &ops,
            &mut pool,
        )
        .map(drop)
    };
    let formats = [Format::F32, Format::Bf16, Format::Int8, Format::Int4];
    for format in formats {
        for stored in [StoredType::F32, StoredType::BF16] {
            // The last of a panel that is not full.
            let mut values = vec![0.5; 20 * 64];
            assert!(pack(stored, &values, format).is_ok());
            values[20 * 64 - 1] = f32::NAN;
            let error = pack(stored, &values, format).unwrap_err();
            assert!(matches!(error, PackError::NotFinite), "{format:?}");
        }
    }
    for (largest, fits) in [
        (3.402e38, [true, false, false, false]),
        (1e9, [true, true, false, false]),
        (2e6, [true, true, true, false]),
        (6e4, [true, true, true, true]),
    ] {
        let mut values = vec![0.5; 20 * 64];
        values[19 * 64 + 40] = largest;
        for (format, fits) in formats.into_iter().zip(fits) {
            let packed = pack(StoredType::F32, &values, format);
            let told = match packed {
                Ok(()) => true,
                Err(PackError::TooLarge) => false,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(told, fits, "{largest:e} as {format:?}");
        }
    }
}

#[test]
fn a_set_that_is_not_there_is_not_taken() {
    assert!(Kernels::Portable.available() && Kernels::best().available());
    for set in Kernels::ALL {
        assert_eq!(set.to_string().parse(), Ok(set));
    }
    assert!("sse2".parse::<Kernels>().is_err());
}

#[test]
fn a_scale_that_fits_the_weights_is_found_by_all_sets() {
    let mut random = fastrand::Rng::with_seed(5);
    let sixteen: [f32; GROUP] = std::array::from_fn(|i| -0.75 + 0.125 * (i * 7 % 16) as f32);
    let even: [f32; GROUP] = std::array::from_fn(|i| (i as f32 - 15.5) / 16.0);
    let value = |kept: &Levels, i: usize, zero: f32| {
        let level = f32::from(kept.values[i]) - zero;
        level * f16_value(kept.scale) + f16_value(kept.minimum)
    };
    for set in sets() {
        let ops = Ops::of(set);
        let error = |group: &[f32; GROUP], kept: &Levels, zero: f32| -> f32 {
            (0..GROUP)
                .map(|i| (group[i] - value(kept, i, zero)).powi(2))
                .sum()
        };
        // SAFETY: the set is available, here and below.
        let kept = unsafe { (ops.levels4)(&sixteen, &[1.0; GROUP]) };
        assert_eq!(error(&sixteen, &kept, 0.0), 0.0, "{set}");
        // SAFETY: see above.
        let kept = unsafe { (ops.levels8)(&sixteen) };
        assert!(error(&sixteen, &kept, 128.0) < 1e-6, "{set}");
        // No worse than the whole range.
        let step = even[31] * 2.0 / 15.0;
        let rounded = |w: f32| ((w - even[0]) / step).round() * step + even[0];
        let whole: f32 = even.iter().map(|w| (w - rounded(*w)).powi(2)).sum();
        // SAFETY: see above.
        let kept = unsafe { (ops.levels4)(&even, &[1.0; GROUP]) };
        assert!(error(&even, &kept, 0.0) < whole * 1.001, "{set}");
        // Over many groups, better than the largest weight over 127.
        let (mut ours, mut whole) = (0.0, 0.0);
        for _ in 0..300 {
            let group: [f32; GROUP] = std::array::from_fn(|_| random.f32() * 0.2 - 0.1);
            let largest = group.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            // SAFETY: see above.
            ours += error(&group, &unsafe { (ops.levels8)(&group) }, 128.0);
            let step = largest / 127.0;
            let lost = group
                .iter()
                .map(|w| (w - (w / step).round() * step).powi(2));
            whole += lost.sum::<f32>();
        }
        assert!(ours < whole * 0.95, "{set}: {ours} against {whole}");
        // SAFETY: see above.
        let kept = unsafe { (ops.levels8)(&[0.0; GROUP]) };
        assert_eq!(kept.values, [128; GROUP], "{set}");
        // SAFETY: see above.
        let kept = unsafe { (ops.levels4)(&[0.25; GROUP], &[1.0; GROUP]) };
        assert!((0..GROUP).all(|i| value(&kept, i, 0.0) == 0.25), "{set}");
    }
}

#[test]
fn inputs_that_count_more_lose_less_in_all_sets() {
    let mut random = fastrand::Rng::with_seed(7);
    for set in sets() {
        let ops = Ops::of(set);
        let (mut weighted, mut alike, mut other) = (0.0, 0.0, 0.0);
        for _ in 0..200 {
            let group: [f32; GROUP] = std::array::from_fn(|_| random.f32() - 0.3);
            let mut importance = [0.1; GROUP];
            for _ in 0..4 {
                importance[random.usize(..GROUP)] = 7.0;
            }
            let lost = |importance_of: &[f32; GROUP]| -> f32 {
                // SAFETY: the set is available.
                let kept = unsafe { (ops.levels4)(&group, importance_of) };
                (0..GROUP)
                    .map(|i| {
                        let value = f32::from(kept.values[i]) * f16_value(kept.scale)
                            + f16_value(kept.minimum);
                        importance[i] * (group[i] - value).powi(2)
                    })
                    .sum()
            };
            weighted += lost(&importance);
            alike += lost(&[1.0; GROUP]);
            other += lost(&importance.map(|i| 1.0 / i));
        }
        assert!(
            weighted < 0.6 * alike && alike < other,
            "{set}: {weighted}, {alike}, {other}"
        );
    }
}
