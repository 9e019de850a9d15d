//! Turns GGUF's blocks of small numbers back into numbers.

mod k;

use anyhow::{Result, bail, ensure};

/// Numbers in one block of the simple quantised kinds.
const BLOCK: usize = 32;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// Blocks of a scale, an offset and 32 times 4 bits.
    Q4_1,
    /// Blocks of a scale and 32 times 5 bits.
    Q5_0,
    /// Blocks of a scale and 32 times 8 bits.
    Q8_0,
    /// Blocks of 8 groups of 32 times 4 bits.
    Q4K,
    /// Blocks of 16 groups of 16 times 6 bits.
    Q6K,
}

impl Kind {
    /// The kind with that number in the format.
    pub(super) fn from_code(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            other => bail!("its numbers are stored in form {other}, which is not read"),
        })
    }

    /// Bytes that `count` numbers take.
    pub(super) fn byte_length(self, count: usize) -> Result<usize> {
        let (numbers, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 => (1, 2),
            Self::Q4_1 => (BLOCK, 2 + 2 + BLOCK / 2),
            Self::Q5_0 => (BLOCK, 2 + 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4K => (k::BLOCK, k::Q4_K_BYTES),
            Self::Q6K => (k::BLOCK, k::Q6_K_BYTES),
        };
        ensure!(
            count.is_multiple_of(numbers),
            "{count} numbers do not fill blocks of {numbers}"
        );
        Ok(count / numbers * bytes)
    }

    /// The numbers that `data` holds.
    pub(super) fn decode(self, data: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Self::F16 => data.chunks_exact(2).map(half).collect(),
            Self::Q4_1 => {
                let mut out = Vec::with_capacity(data.len() / 20 * BLOCK);
                for block in data.chunks_exact(4 + BLOCK / 2) {
                    let (scale, offset) = (half(&block[..2]), half(&block[2..4]));
                    // The low halves come first, then the high ones.
                    out.extend(
                        block[4..]
                            .iter()
                            .map(|b| f32::from(b & 15) * scale + offset),
                    );
                    out.extend(
                        block[4..]
                            .iter()
                            .map(|b| f32::from(b >> 4) * scale + offset),
                    );
                }
                out
            }
            Self::Q5_0 => {
                let mut out = Vec::with_capacity(data.len() / 22 * BLOCK);
                for block in data.chunks_exact(6 + BLOCK / 2) {
                    let scale = half(&block[..2]);
                    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                    let (low, high) = (block[6..].iter(), block[6..].iter());
                    let fours = low.map(|b| b & 15).chain(high.map(|b| b >> 4));
                    out.extend(fours.enumerate().map(|(place, four)| {
                        let number = four | ((fifth >> place & 1) << 4) as u8;
                        scale * f32::from(number.cast_signed() - 16)
                    }));
                }
                out
            }
            Self::Q4K => k::q4_k(data),
            Self::Q6K => k::q6_k(data),
            Self::Q8_0 => {
                let mut out = Vec::with_capacity(data.len() / 34 * BLOCK);
                for block in data.chunks_exact(2 + BLOCK) {
                    let scale = half(&block[..2]);
                    out.extend(
                        block[2..]
                            .iter()
                            .map(|b| f32::from(b.cast_signed()) * scale),
                    );
                }
                out
            }
        }
    }
}

/// A 16 bit floating point number as it is stored.
fn half(bytes: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let sign = (bits & 0x8000) << 16;
    let (exponent, fraction) = ((bits >> 10) & 31, bits & 0x3ff);
    let rest = match exponent {
        // Zero, or a number with its leading one left of the fraction's top bit.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | rest)
}

/// The upper half of a number's bits, rounded to the nearest, to even when between.
pub(super) fn bfloat16(number: f32) -> u16 {
    let bits = number.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_floats_are_exact() {
        for (bits, value) in [
            (0x0000u16, 0.0f32),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(
                half(&bits.to_le_bytes()).to_bits(),
                value.to_bits(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn four_bit_blocks_hold_low_halves_before_high_ones() {
        let mut block = vec![0x00, 0x3c, 0x00, 0xc0];
        block.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let numbers = Kind::Q4_1.decode(&block);
        assert_eq!(numbers.len(), 32);
        let expected: Vec<f32> = (0..16u8)
            .chain((0..16).rev())
            .map(|i| f32::from(i) - 2.0)
            .collect();
        assert_eq!(numbers, expected);
        assert_eq!(Kind::Q4_1.byte_length(64).unwrap(), 40);
        assert!(Kind::Q4_1.byte_length(33).is_err());
    }

    #[test]
    fn five_bit_blocks_have_their_fifth_bits_apart() {
        let mut block = vec![0x00, 0x3c];
        block.extend((1u32 | 1 << 31).to_le_bytes());
        block.extend([0x52; 16]);
        let numbers = Kind::Q5_0.decode(&block);
        assert_eq!((numbers[0], numbers[1]), (2.0, 2.0 - 16.0));
        assert_eq!((numbers[30], numbers[31]), (5.0 - 16.0, 5.0));
        assert_eq!(Kind::Q5_0.byte_length(32).unwrap(), block.len());
    }

    #[test]
    fn eight_bit_blocks_are_signed() {
        let mut block = vec![0x00, 0x38];
        block.extend((0..32u8).map(|i| i.wrapping_sub(16)));
        let numbers = Kind::Q8_0.decode(&block);
        assert_eq!((numbers[0], numbers[31]), (-8.0, 7.5));
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        assert_eq!(bfloat16(1.0), 0x3f80);
        assert_eq!(bfloat16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bfloat16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bfloat16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(bfloat16(-0.0), 0x8000);
    }
}
