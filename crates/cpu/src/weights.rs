//! Weights, packed for the kernels.
//!
//! A matrix `[outputs, inputs]` becomes panels of 16 outputs. A panel is a sequence of steps of 64
//! bytes, 4 for each output: one f32, two bf16, four 8-bit or eight 4-bit weights of consecutive
//! inputs. So a kernel reads memory from one end to the other, and multiplies a step by one word
//! of a row.
#![allow(unsafe_code)]

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use hyprstream_models::{StoredTensor, StoredType};

use crate::{
    buffer::{Arena, Buffer, Shared},
    format::{Format, GROUP, bf16_bits, bf16_value, f16_value},
    kernels::{CACHE_LINE, LANES, Levels, Ops, STEP_BYTES},
    pool::Pool,
};

/// A packed matrix.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) format: Format,
    /// Panels of 16 outputs.
    pub(crate) panels: usize,
    /// Steps of a panel.
    pub(crate) steps: usize,
    pub(crate) data: Buffer<u8>,
    /// Quantised: f16, `[panels, inputs / 32, 16]`.
    pub(crate) scales: Buffer<u16>,
    /// 4 bits: as `scales`.
    pub(crate) minima: Buffer<u16>,
}

/// Rows of a stored matrix, little-endian, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stored: StoredType,
    pub(crate) inputs: usize,
}

impl<'a> From<&'a StoredTensor> for Matrix<'a> {
    fn from(tensor: &'a StoredTensor) -> Self {
        Self {
            bytes: tensor.bytes(),
            stored: tensor.dtype(),
            inputs: tensor.shape().last().copied().unwrap_or(1),
        }
    }
}

impl<'a> Matrix<'a> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.inputs * self.stored.size_bytes()
    }

    /// The bytes of row `row`.
    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// Writes row `row` as f32.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        let bytes = self.row(row);
        match self.stored {
            StoredType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            StoredType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16_value(u16::from_le_bytes(*bytes));
                }
            }
            StoredType::BF16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16_value(u16::from_le_bytes(*bytes));
                }
            }
        }
    }
}

/// A matrix could not be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// There is no memory.
    #[error("there is no memory for the packed weights")]
    Memory(#[source] io::Error),
    /// A weight is a NaN or infinite.
    #[error("a weight is not finite")]
    NotFinite,
    /// A weight, or the scale of a group, is too large for the format.
    #[error("a weight is too large")]
    TooLarge,
}

/// Up to 16 rows that become one panel; what is missing becomes 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelSource<'a> {
    pub(crate) matrix: Matrix<'a>,
    pub(crate) row: usize,
    pub(crate) count: usize,
}

/// The panels of `matrix`, in order.
pub(crate) fn panels_of<'a>(
    matrix: &Matrix<'a>,
) -> impl Iterator<Item = PanelSource<'a>> + use<'a> {
    let (matrix, rows) = (*matrix, matrix.rows());
    (0..rows).step_by(LANES).map(move |row| PanelSource {
        matrix,
        row,
        count: (rows - row).min(LANES),
    })
}

impl PanelSource<'_> {
    fn is_finite(&self) -> bool {
        let Matrix { bytes, stored, .. } = self.matrix;
        let row_bytes = self.matrix.row_bytes();
        stored.all_finite(&bytes[self.row * row_bytes..][..self.count * row_bytes])
    }
}

/// Where [`crate::format::f16_bits`] ends: what is above becomes this.
const F16_LARGEST: u16 = 0x7bff;

impl Weights {
    /// Packs `sources`, which have the same number of inputs, as `format`. Quantised formats need
    /// inputs in multiples of 32. In 4 bits the errors of an input count as much as `importance`
    /// says, or all alike. Memory comes from `arena`.
    ///
    /// # Errors
    /// [`PackError`].
    pub(crate) fn pack(
        sources: &[PanelSource<'_>],
        format: Format,
        importance: Option<&[f32]>,
        arena: &mut Arena,
        ops: &Ops,
        pool: &mut Pool,
    ) -> Result<Self, PackError> {
        let inputs = sources.first().map_or(0, |source| source.matrix.inputs);
        let panels = sources.len();
        let steps = inputs.div_ceil(format.step_inputs());
        let groups = if format.is_quantized() {
            inputs / GROUP
        } else {
            0
        };
        let scales = panels * groups * LANES;
        let data = panels * steps * STEP_BYTES;
        let mut data = arena.buffer(data).map_err(PackError::Memory)?;
        let mut scales = arena.buffer(scales).map_err(PackError::Memory)?;
        let minima = if format == Format::Int4 {
            scales.len()
        } else {
            0
        };
        let mut minima = arena.buffer(minima).map_err(PackError::Memory)?;
        let (finite, fits) = (AtomicBool::new(true), AtomicBool::new(true));
        let (shared, shared_scales, shared_minima) = (
            Shared::new(&mut data),
            Shared::new(&mut scales),
            Shared::new(&mut minima),
        );
        let importance = match importance {
            Some(importance) => shares(importance),
            None => vec![[1.0; GROUP]; groups],
        };
        pool.run(|team| {
            let mut rows = vec![0.0; LANES * inputs];
            team.each(panels, |panel| {
                let source = &sources[panel];
                let (step_bytes, group) = (steps * STEP_BYTES, groups * LANES);
                // SAFETY: each panel is taken by one thread, and the buffers outlive `run`.
                let (out, scales) = unsafe {
                    (
                        shared.part_mut(panel * step_bytes, step_bytes),
                        shared_scales.part_mut(panel * group, group),
                    )
                };
                let minima: &mut [u16] = if format == Format::Int4 {
                    // SAFETY: as above.
                    unsafe { shared_minima.part_mut(panel * group, group) }
                } else {
                    &mut []
                };
                if !source.is_finite() {
                    finite.store(false, Ordering::Relaxed);
                }
                let fit = match (format, source.matrix.stored) {
                    (Format::Bf16, StoredType::BF16) | (Format::F32, StoredType::F32) => {
                        copy_words(source, out);
                        true
                    }
                    _ => {
                        read_rows(source, &mut rows);
                        match format {
                            Format::F32 => pack_f32(&rows, inputs, out),
                            Format::Bf16 => pack_bf16(&rows, inputs, out),
                            Format::Int8 => pack_int8(ops, &rows, inputs, out, scales),
                            Format::Int4 => {
                                pack_int4(ops, &rows, &importance, out, (scales, minima));
                            }
                        }
                        match format {
                            Format::F32 => true,
                            Format::Bf16 => StoredType::BF16.all_finite(out),
                            Format::Int8 | Format::Int4 => {
                                let mut all = scales.iter().chain(minima.iter());
                                all.all(|bits| bits & 0x7fff < F16_LARGEST)
                            }
                        }
                    }
                };
                if !fit {
                    fits.store(false, Ordering::Relaxed);
                }
            });
        });
        if !finite.into_inner() {
            return Err(PackError::NotFinite);
        }
        if !fits.into_inner() {
            return Err(PackError::TooLarge);
        }
        Ok(Self {
            format,
            panels,
            steps,
            data,
            scales,
            minima,
        })
    }

    /// Bytes that a matrix of so many outputs and inputs takes as `format`, in whole cache lines.
    pub(crate) fn bytes_for(format: Format, outputs: usize, inputs: usize) -> usize {
        let panels = outputs.div_ceil(LANES);
        let data = panels * inputs.div_ceil(format.step_inputs()) * STEP_BYTES;
        let scales = match format {
            Format::F32 | Format::Bf16 => 0,
            Format::Int8 => 1,
            Format::Int4 => 2,
        };
        let each = (panels * inputs / GROUP * LANES * 2).next_multiple_of(CACHE_LINE);
        data + scales * each
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() + 2 * (self.scales.len() + self.minima.len())
    }
}

fn read_rows(source: &PanelSource<'_>, rows: &mut [f32]) {
    rows.fill(0.0);
    for (lane, row) in rows
        .chunks_exact_mut(source.matrix.inputs)
        .take(source.count)
        .enumerate()
    {
        source.matrix.read(source.row + lane, row);
    }
}

/// Packs what is kept as it is stored: 32 bits of a row at a time.
fn copy_words(source: &PanelSource<'_>, out: &mut [u8]) {
    let steps = out.as_chunks_mut::<STEP_BYTES>().0;
    for lane in 0..source.count {
        let row = source.matrix.row(source.row + lane);
        let (words, rest) = row.as_chunks::<4>();
        for (step, word) in steps.iter_mut().zip(words) {
            step[lane * 4..lane * 4 + 4].copy_from_slice(word);
        }
        if let Some(step) = steps.get_mut(words.len()) {
            step[lane * 4..lane * 4 + rest.len()].copy_from_slice(rest);
        }
    }
}

fn pack_f32(rows: &[f32], inputs: usize, out: &mut [u8]) {
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        for (step, value) in out.as_chunks_mut::<STEP_BYTES>().0.iter_mut().zip(row) {
            step[lane * 4..lane * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

fn pack_bf16(rows: &[f32], inputs: usize, out: &mut [u8]) {
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        for (i, value) in row.iter().enumerate() {
            let at = i / 2 * STEP_BYTES + lane * 4 + i % 2 * 2;
            out[at..at + 2].copy_from_slice(&bf16_bits(*value).to_le_bytes());
        }
    }
}

fn pack_int8(ops: &Ops, rows: &[f32], inputs: usize, out: &mut [u8], scales: &mut [u16]) {
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        for (g, group) in row.as_chunks::<GROUP>().0.iter().enumerate() {
            // SAFETY: the backend was made for kernels that this processor has.
            let Levels { scale, values, .. } = unsafe { (ops.levels8)(group) };
            scales[g * LANES + lane] = scale;
            for (s, four) in values.chunks_exact(4).enumerate() {
                let at = (g * (GROUP / 4) + s) * STEP_BYTES + lane * 4;
                out[at..at + 4].copy_from_slice(four);
            }
        }
    }
}

/// How much the inputs of each group count, the mean being 1. Groups that the text never reached
/// count alike.
fn shares(importance: &[f32]) -> Vec<[f32; GROUP]> {
    let groups = importance.as_chunks::<GROUP>().0.iter();
    groups
        .map(|group| {
            let mean = group.iter().sum::<f32>() / GROUP as f32;
            if mean.is_normal() {
                group.map(|input| input / mean)
            } else {
                [1.0; GROUP]
            }
        })
        .collect()
}

fn pack_int4(
    ops: &Ops,
    rows: &[f32],
    importance: &[[f32; GROUP]],
    out: &mut [u8],
    (scales, minima): (&mut [u16], &mut [u16]),
) {
    let inputs = importance.len() * GROUP;
    for (lane, row) in rows.chunks_exact(inputs).enumerate() {
        let groups = row.as_chunks::<GROUP>().0.iter().zip(importance);
        for (g, (group, importance)) in groups.enumerate() {
            // SAFETY: as above.
            let kept = unsafe { (ops.levels4)(group, importance) };
            scales[g * LANES + lane] = kept.scale;
            minima[g * LANES + lane] = kept.minimum;
            // A step has 8 inputs: the first four in the low halves of its bytes.
            for (s, eight) in kept.values.chunks_exact(8).enumerate() {
                let at = (g * (GROUP / 8) + s) * STEP_BYTES + lane * 4;
                for i in 0..4 {
                    out[at + i] = eight[i] | eight[i + 4] << 4;
                }
            }
        }
    }
}
