//! One stored tensor.

use std::{fmt, ops::Range, sync::Arc};

use half::{bf16, f16};

use super::{MappedFile, invalid};
use crate::{LoadError, StoredType};

/// A tensor in a mapped file, which stays mapped as long as this lives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub(super) name: Arc<str>,
    pub(super) file: Arc<MappedFile>,
    /// Invariant: lies within the file, and holds as many numbers as `shape` says.
    pub(super) range: Range<usize>,
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
}

impl StoredTensor {
    /// Its name in the checkpoint; that of the whole where this is some of its rows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> StoredType {
        self.dtype
    }

    /// Its sizes, the outermost first; numbers lie row after row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes, little-endian. They may begin at an address that does not suit the type.
    pub fn bytes(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// Number of numbers.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of its rows (the outermost dimension) as a tensor of its own, without a copy.
    ///
    /// # Panics
    /// When `rows` reaches beyond its end.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let count = self.shape.first().copied().unwrap_or(0);
        assert!(
            rows.start <= rows.end && rows.end <= count,
            "{rows:?} of {count} rows"
        );
        let row = self.range.len().checked_div(count).unwrap_or(0);
        let start = self.range.start + rows.start * row;
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self {
            name: Arc::clone(&self.name),
            file: Arc::clone(&self.file),
            range: start..start + rows.len() * row,
            dtype: self.dtype,
            shape,
        }
    }

    /// Its numbers in 32 bits, which hold each type exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            StoredType::F32 => numbers(bytes, f32::from_le_bytes),
            StoredType::F16 => numbers(bytes, |b| f16::from_le_bytes(b).to_f32()),
            StoredType::BF16 => numbers(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        }
    }

    /// Refuses numbers that are not finite: every answer of the model would be nonsense.
    ///
    /// # Errors
    /// [`LoadError::InvalidWeights`] with the first of them and its place.
    pub fn check_finite(&self) -> Result<(), LoadError> {
        if self.dtype.all_finite(self.bytes()) {
            return Ok(());
        }
        let numbers = self.to_f32();
        let bad = numbers.iter().position(|number| !number.is_finite());
        let bad = bad.expect("the bits of one of them said so");
        let mut place = vec![0; self.shape.len()];
        let mut rest = bad;
        for (index, size) in place.iter_mut().zip(&self.shape).rev() {
            *index = rest % size;
            rest /= size;
        }
        Err(self.invalid(format_args!(
            "holds {} at {place:?}: the file is damaged, or was saved by a training that had \
             diverged",
            numbers[bad]
        )))
    }

    /// Refuses this tensor, which does or is `what`.
    pub fn invalid(&self, what: impl fmt::Display) -> LoadError {
        let name = &self.name;
        invalid(self.file.path(), format!("the tensor {name:?} {what}"))
    }

    /// Lets the kernel take back the memory of its pages, for who has packed it otherwise. They
    /// are read from disk again if they are looked at again.
    pub fn release(&self) {
        self.file.release(&self.range);
    }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<N>();
    numbers.iter().map(|b| read(*b)).collect()
}
