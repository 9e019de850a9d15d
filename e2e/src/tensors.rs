//! Safetensors files of random numbers.

use anyhow::Result;
use serde_json::{Map, json};

/// Numbers between -0.5 and 0.5 that depend on the seed alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> f32 {
        let Self(state) = self;
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

/// The file of tensors of these names and shapes: `u64` length of the header, header, f32 data.
/// `value` gives the numbers, by the name of their tensor.
pub(crate) fn file(
    shapes: Vec<(String, Vec<usize>)>,
    mut value: impl FnMut(&str) -> f32,
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, shape) in shapes {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            data.extend_from_slice(&f32::to_le_bytes(value(&name)));
        }
        let offsets = json!([start, data.len()]);
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}),
        );
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    Ok(file)
}
