//! The blocks of 256 numbers, in groups with small scales of their own.
//!
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>

use super::half;

/// Numbers in a block.
pub(super) const BLOCK: usize = 256;
/// Bytes of a block of Q4_K: scale, scale of the offsets, 8 scales and offsets of 6 bits, numbers.
pub(super) const Q4_K_BYTES: usize = 2 + 2 + 12 + BLOCK / 2;
/// Bytes of a block of Q6_K: low 4 bits, high 2 bits, 16 scales, scale.
pub(super) const Q6_K_BYTES: usize = BLOCK / 2 + BLOCK / 4 + 16 + 2;

/// The numbers of blocks of Q4_K.
pub(super) fn q4_k(data: &[u8]) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len() / Q4_K_BYTES * BLOCK);
    for block in data.chunks_exact(Q4_K_BYTES) {
        let (scale, offset) = (half(&block[..2]), half(&block[2..4]));
        let (groups, numbers) = block[4..].split_at(12);
        for (pair, bytes) in numbers.chunks_exact(32).enumerate() {
            // Two groups share bytes: the low halves are the first, the high ones the second.
            for (index, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
                let (factor, minimum) = six_bits(groups, index);
                let (d, m) = (scale * f32::from(factor), offset * f32::from(minimum));
                out.extend(bytes.iter().map(|b| d * f32::from(b >> shift & 15) - m));
            }
        }
    }
    out
}

/// Scale and offset of a group: the last four have their high bits in the bytes of the first.
fn six_bits(groups: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (groups[index] & 63, groups[index + 4] & 63)
    } else {
        (
            groups[index + 4] & 15 | groups[index - 4] >> 6 << 4,
            groups[index + 4] >> 4 | groups[index] >> 6 << 4,
        )
    }
}

/// The numbers of blocks of Q6_K.
pub(super) fn q6_k(data: &[u8]) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len() / Q6_K_BYTES * BLOCK);
    for block in data.chunks_exact(Q6_K_BYTES) {
        let (low, rest) = block.split_at(BLOCK / 2);
        let (high, rest) = rest.split_at(BLOCK / 4);
        let (scales, scale) = rest.split_at(16);
        let scale = half(scale);
        for number in 0..BLOCK {
            // Each half of the block has 64 bytes of low bits, used twice, and 32 of high bits,
            // used four times.
            let (part, place) = (number / 128, number % 128);
            let four = low[part * 64 + place % 64] >> (place / 64 * 4) & 15;
            let two = high[part * 32 + place % 32] >> (place / 32 * 2) & 3;
            let value = (four | two << 4).cast_signed() - 32;
            let factor = f32::from(scales[number / 16].cast_signed());
            out.push(scale * factor * f32::from(value));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::*;

    #[test]
    fn q4_k_has_a_scale_and_an_offset_for_each_group() {
        let mut block = vec![0x00, 0x3c, 0x00, 0x38];
        let mut groups = [0u8; 12];
        // Group 0: scale 3, offset 2. Group 5: scale 0x21, offset 0x12.
        (groups[0], groups[4]) = (3, 2);
        groups[9] = 0x21;
        (groups[1], groups[5]) = (2 << 6, 1 << 6);
        block.extend(groups);
        block.extend([0xa5; 128]);
        let numbers = q4_k(&block);
        assert_eq!(numbers.len(), 256);
        // Low halves are 5, high ones 10.
        assert_eq!((numbers[0], numbers[32]), (3.0 * 5.0 - 1.0, 0.0));
        assert_eq!(numbers[5 * 32], 33.0 * 10.0 - 0.5 * 18.0);
    }

    #[test]
    fn q6_k_puts_two_high_bits_over_four_low_ones() {
        let mut block = vec![0x21; 128];
        block.extend([0b1110_0100; 64]);
        block.extend([2u8; 16]);
        block.extend([0x00, 0x38]);
        let numbers = q6_k(&block);
        // The four quarters of a half have the high bits 0 to 3; its second half the high nibbles.
        let expected = [1, 1 + 16, 2 + 32, 2 + 48].map(|n| f32::from(n as i8 - 32));
        for (quarter, expected) in expected.into_iter().enumerate() {
            assert_eq!(numbers[quarter * 32], expected, "{quarter}");
            assert_eq!(numbers[128 + quarter * 32 + 31], expected, "{quarter}");
        }
    }
}
