//! Types of numbers: those on disk, and those that a model may be asked to compute in.

use std::{fmt, str::FromStr};

/// The type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    BF16,
}

impl StoredType {
    /// Bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Whether none of these numbers, little-endian, is a NaN or infinite.
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        /// Every bit of the exponent is set.
        fn any<const N: usize>(bytes: &[u8], special: impl Fn([u8; N]) -> bool) -> bool {
            // Without a way out of the loop, so that the compiler makes vector code of it.
            bytes
                .as_chunks::<N>()
                .0
                .iter()
                .fold(false, |any, number| any | special(*number))
        }
        let found = match self {
            Self::F32 => any(bytes, |b| {
                u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000
            }),
            Self::F16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Self::BF16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        };
        !found
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        })
    }
}

/// The type in which a model computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DType {
    /// On a GPU as the weights were saved. On the CPU [`Self::BFloat16`], whatever they were saved
    /// in: it takes half the memory and time of [`Self::Float32`].
    #[default]
    Auto,
    /// 32 bits.
    Float32,
    /// 16 bits, 5 of them exponent.
    Float16,
    /// 16 bits, 8 of them exponent.
    BFloat16,
}

/// The text names no type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a type: auto, float32, float16 or bfloat16 is needed")]
pub struct InvalidDType(String);

impl FromStr for DType {
    type Err = InvalidDType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::BFloat16),
            _ => Err(InvalidDType(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_written_as_they_are_read() {
        for text in ["auto", "float32", "float16", "bfloat16"] {
            assert_eq!(text.parse::<DType>().unwrap().to_string(), text);
        }
        assert!("int8".parse::<DType>().is_err());
    }

    #[test]
    fn what_is_not_finite_is_found_in_each_type() {
        for at in [0, 1, 31, 64] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut numbers = vec![65_504.0_f32; 65];
                let all = |numbers: &[f32]| {
                    let each =
                        |to: fn(f32) -> Vec<u8>| numbers.iter().flat_map(|x| to(*x)).collect();
                    let all: [(StoredType, Vec<u8>); 3] = [
                        (StoredType::F32, each(|x| x.to_le_bytes().to_vec())),
                        (
                            StoredType::F16,
                            each(|x| half::f16::from_f32(x).to_le_bytes().to_vec()),
                        ),
                        (
                            StoredType::BF16,
                            each(|x| half::bf16::from_f32(x).to_le_bytes().to_vec()),
                        ),
                    ];
                    all.map(|(dtype, bytes)| dtype.all_finite(&bytes))
                };
                assert_eq!(all(&numbers), [true; 3]);
                numbers[at] = bad;
                assert_eq!(all(&numbers), [false; 3], "{bad} at {at}");
            }
        }
    }
}
