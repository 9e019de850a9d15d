//! How numbers lie in memory.
#![allow(
    clippy::inline_always,
    reason = "kernels call these, and what is not inlined is compiled without their instructions"
)]

/// Inputs that share a scale in quantised weights and activations.
pub(crate) const GROUP: usize = 32;

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, a scale for each 32 inputs of an output.
    Int8,
    /// 4 bits, a scale and a minimum for each 32 inputs of an output.
    Int4,
}

impl Format {
    /// Inputs in one step of 64 bytes through a panel of 16 outputs.
    pub(crate) const fn step_inputs(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
            Self::Int4 => 8,
        }
    }

    /// Whether weights have scales.
    pub(crate) const fn is_quantized(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }
}

/// How a row of activations is kept for a multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, then a scale and a sum for each 32 values.
    Q8,
}

impl RowKind {
    /// Bytes from one row of `len` values to the next.
    ///
    /// An odd number of cache lines, so that the rows of a tile lie in different sets of the
    /// cache.
    pub(crate) fn stride(self, len: usize) -> usize {
        let bytes = match self {
            Self::F32 => 4 * len,
            Self::Bf16 => 2 * len,
            Self::Q8 => len + 8 * len.div_ceil(GROUP),
        };
        (bytes.div_ceil(64) | 1) * 64
    }
}

/// Rounds to the nearest bf16, to even between two; a NaN stays one.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The value of an f16.
#[inline(always)]
pub(crate) fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    // Shifted into place the exponent is too small by 112; multiplying mends that, and
    // subnormals with it.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    let value = if magnitude >= 0x7c00 {
        f32::from_bits(0x7f80_0000 | (magnitude << 13))
    } else {
        value
    };
    f32::from_bits(value.to_bits() | sign)
}

/// The nearest f16, to even between two. Too large values become the largest finite one.
pub(crate) fn f16_bits(value: f32) -> u16 {
    const LARGEST: f32 = 65_504.0;
    let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = value.abs().min(LARGEST);
    // The distance of two neighbours; below the smallest normal number it stays the same.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-14);
    let unit = f32::from_bits(((exponent - 10 + 127) as u32) << 23);
    let units = (magnitude / unit).round_ties_even() as u32;
    // A carry into the exponent is what rounding up to the next power of two is.
    let biased = (exponent + 14) as u32;
    sign | ((biased << 10) + units) as u16
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_way_there_and_back() {
        for bits in 0..=u16::MAX {
            let value = f16_value(bits);
            if value.is_finite() {
                assert_eq!(f16_bits(value), bits, "{value}");
            }
        }
        assert_eq!(f16_value(0x3c00), 1.0);
        assert_eq!(f16_value(1), 5.960_464_5e-8);
        assert!(f16_value(0x7e00).is_nan() && f16_value(0xfc00) == f32::NEG_INFINITY);
        assert_eq!(f16_value(f16_bits(1e9)), 65_504.0);
        assert_eq!(f16_value(f16_bits(1.000_4)), 1.0);
        assert_eq!(f16_value(f16_bits(1.000_6)), 1.000_976_6);
    }

    #[test]
    fn bf16_rounds_to_the_nearest() {
        assert_eq!(bf16_value(bf16_bits(1.0)), 1.0);
        assert_eq!(bf16_value(bf16_bits(1.003)), 1.0);
        assert_eq!(bf16_value(bf16_bits(1.005)), 1.007_812_5);
        // Between two neighbours the even one is taken.
        assert_eq!(bf16_value(bf16_bits(1.003_906_3)), 1.0);
        assert_eq!(bf16_value(bf16_bits(1.011_718_8)), 1.015_625);
        assert!(bf16_value(bf16_bits(f32::NAN)).is_nan());
        assert_eq!(bf16_value(bf16_bits(f32::INFINITY)), f32::INFINITY);
    }
}
