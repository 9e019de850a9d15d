//! What an adapter is, in 32 bytes.

use std::{collections::BTreeMap, fmt};

use sha2::{Digest as _, Sha256};

use super::{LowRank, Matrix, Site};

/// The SHA-256 of all that an adapter computes with: for each place that it changes, in the order
/// of [`Site`], the place's name, the sizes, the scaling, and the numbers of A, B and the magnitude
/// in f32. So it depends on neither the order, names and types of the stored tensors nor on options
/// without effect, and an adapter of PEFT has that of the same one in MLX's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterDigest([u8; 32]);

/// Changes whenever the same adapter would get another digest.
const VERSION: &[u8] = b"hyprstream adapter 1\n";

impl AdapterDigest {
    /// The digest of an adapter of these parts.
    pub(super) fn of(parts: &BTreeMap<Site, LowRank>) -> Self {
        let mut hash = Sha256::new();
        hash.update(VERSION);
        for (site, part) in parts {
            hash.update(format!("{site}\n"));
            let (outputs, inputs) = part.size();
            for size in [outputs, inputs, part.rank()] {
                hash.update((size as u64).to_le_bytes());
            }
            hash.update(part.scaling.to_le_bytes());
            hash.update([u8::from(part.magnitude.is_some())]);
            for matrix in [&part.a, &part.b] {
                numbers(&mut hash, Matrix::values(matrix));
            }
            numbers(&mut hash, part.magnitude.as_deref().unwrap_or_default());
        }
        Self(hash.finalize().into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn numbers(hash: &mut Sha256, values: &[f32]) {
    let mut bytes = [0; 4096];
    for chunk in values.chunks(bytes.len() / 4) {
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(chunk) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        hash.update(&bytes[..chunk.len() * 4]);
    }
}

/// A digest that was written down before.
impl From<[u8; 32]> for AdapterDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for AdapterDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
