//! Samples as tokens, on disk; in memory is where each lies.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use crate::random::{Purpose, permutation};

/// What a model reads, and which of it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// At least 2.
    pub tokens: Vec<u32>,
    /// For each token, whether predicting it counts. The first never does.
    pub trained: Vec<bool>,
}

impl Sample {
    /// How many of its tokens count.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.trained.iter().filter(|trained| **trained).count()
    }
}

/// Whether samples stand alone or by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// One sample.
    One,
    /// A preferred answer and one that is not, each with its prompt.
    Pair,
}

impl Unit {
    fn samples(self) -> usize {
        match self {
            Self::One => 1,
            Self::Pair => 2,
        }
    }
}

/// Where a sample lies: 20 bytes for each, whatever its length.
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u64,
    tokens: u32,
    targets: u32,
    /// Number of the record that it was made of.
    record: u32,
}

/// Writes samples to a file without a name, which is gone with the last that reads it.
pub struct SamplesWriter {
    file: BufWriter<File>,
    offset: u64,
    entries: Vec<Entry>,
    unit: Unit,
    hash: Sha256,
}

/// The samples of a data set.
#[derive(Debug)]
pub struct Samples {
    file: File,
    entries: Vec<Entry>,
    unit: Unit,
    digest: String,
}

/// Marks a token that counts, within its number.
const TRAINED: u32 = 1 << 31;

impl SamplesWriter {
    /// A writer into the folder `scratch`, which must have room for four bytes a token.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn create(scratch: &Path, unit: Unit) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::with_capacity(1 << 18, tempfile::tempfile_in(scratch)?),
            offset: 0,
            entries: Vec::new(),
            unit,
            hash: Sha256::new(),
        })
    }

    /// Adds one unit, made of the record of this number: one sample, or two of a pair.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// When it is not as many samples as a unit has.
    pub fn push(&mut self, record: u32, samples: &[Sample]) -> io::Result<()> {
        assert_eq!(samples.len(), self.unit.samples(), "samples of a unit");
        for sample in samples {
            let mut bytes = Vec::with_capacity(sample.tokens.len() * 4);
            for (token, trained) in sample.tokens.iter().zip(&sample.trained) {
                let word = token | if *trained { TRAINED } else { 0 };
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            self.file.write_all(&bytes)?;
            self.hash.update((bytes.len() as u64).to_le_bytes());
            self.hash.update(&bytes);
            self.entries.push(Entry {
                offset: self.offset,
                tokens: sample.tokens.len() as u32,
                targets: sample.targets() as u32,
                record,
            });
            self.offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// What was written.
    ///
    /// # Errors
    /// When the last of it cannot be written.
    pub fn finish(self) -> io::Result<Samples> {
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        Ok(Samples {
            file,
            entries: self.entries,
            unit: self.unit,
            digest: hex::encode(self.hash.finalize()),
        })
    }
}

impl Samples {
    /// Number of units.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() / self.unit.samples()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What a unit is.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// SHA-256 of all tokens and of what counts, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Tokens in all.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.tokens)).sum()
    }

    /// Tokens that count, in all.
    #[must_use]
    pub fn targets(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.targets)).sum()
    }

    fn entries(&self, unit: u32) -> &[Entry] {
        let each = self.unit.samples();
        &self.entries[unit as usize * each..][..each]
    }

    /// The samples of one unit.
    ///
    /// # Errors
    /// When they cannot be read.
    ///
    /// # Panics
    /// When there is none of this number.
    pub fn read(&self, unit: u32) -> io::Result<Vec<Sample>> {
        let read = |entry: &Entry| {
            let mut bytes = vec![0; entry.tokens as usize * 4];
            self.file.read_exact_at(&mut bytes, entry.offset)?;
            let words = bytes.chunks_exact(4);
            let words = words.map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
            let (mut tokens, mut trained) = (Vec::new(), Vec::new());
            for word in words {
                tokens.push(word & !TRAINED);
                trained.push(word & TRAINED != 0);
            }
            Ok(Sample { tokens, trained })
        };
        self.entries(unit).iter().map(read).collect()
    }
}

/// Some units of a data set: all, or those that a split gives.
#[derive(Clone, Debug)]
pub struct Subset {
    samples: Arc<Samples>,
    /// In ascending order.
    units: Vec<u32>,
}

impl Subset {
    /// All units of `samples`.
    #[must_use]
    pub fn all(samples: Arc<Samples>) -> Self {
        Self {
            units: (0..samples.len() as u32).collect(),
            samples,
        }
    }

    /// All but those of `held_back` records, and those: which follows from the seed alone. Units of
    /// one record are never parted.
    ///
    /// # Errors
    /// The number of records, when nothing would be left.
    pub fn split(
        samples: &Arc<Samples>,
        held_back: impl FnOnce(usize) -> usize,
        seed: u64,
    ) -> Result<(Self, Self), usize> {
        let record = |unit: u32| samples.entries(unit)[0].record;
        let mut records: Vec<u32> = (0..samples.len() as u32).map(record).collect();
        records.dedup();
        let count = held_back(records.len());
        if count >= records.len() {
            return Err(records.len());
        }
        let order = permutation(records.len(), seed, Purpose::HoldOut, 0);
        let mut held: Vec<u32> = order[..count]
            .iter()
            .map(|i| records[*i as usize])
            .collect();
        held.sort_unstable();
        let (back, rest) =
            (0..samples.len() as u32).partition(|unit| held.binary_search(&record(*unit)).is_ok());
        let of = |units| Self {
            samples: Arc::clone(samples),
            units,
        };
        Ok((of(rest), of(back)))
    }

    /// Number of units.
    #[must_use]
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What a unit is.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.samples.unit
    }

    /// SHA-256 of the data set and of what is chosen of it, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.samples.digest.as_bytes());
        self.units
            .iter()
            .for_each(|unit| hash.update(unit.to_le_bytes()));
        hex::encode(hash.finalize())
    }

    /// Tokens of each unit.
    #[must_use]
    pub fn lengths(&self) -> Vec<u32> {
        let tokens = |unit: &u32| self.samples.entries(*unit).iter().map(|e| e.tokens).sum();
        self.units.iter().map(tokens).collect()
    }

    /// The number of the unit at this index within the whole data set.
    pub(crate) fn number(&self, index: u32) -> u32 {
        self.units[index as usize]
    }

    /// The samples of the unit at this index.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, index: u32) -> io::Result<Vec<Sample>> {
        self.samples.read(self.number(index))
    }
}
