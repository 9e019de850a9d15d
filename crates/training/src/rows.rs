//! Which samples make up an epoch, and in which order: a pure function of the seed and the epoch.

use std::ops::Range;

use crate::random::{Purpose, permutation};

/// Most rows that samples are put into at the same time; the oldest is closed for another.
const OPEN: usize = 256;

/// The rows of one epoch. A row is one sample, or with packing as many as fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    samples: Vec<u32>,
    /// Where each row ends in `samples`.
    ends: Vec<u32>,
}

impl Rows {
    /// The rows of the epoch of this number, of samples of these lengths in tokens. With `packed`
    /// each is filled up to so many tokens, first fit; a longer sample has one of its own.
    #[must_use]
    pub fn of_epoch(lengths: &[u32], packed: Option<usize>, seed: u64, epoch: u32) -> Self {
        let samples = permutation(lengths.len(), seed, Purpose::Order, epoch);
        match packed {
            None => Self {
                ends: (1..=samples.len() as u32).collect(),
                samples,
            },
            Some(capacity) => Self::first_fit(&samples, lengths, capacity),
        }
    }

    fn first_fit(order: &[u32], lengths: &[u32], capacity: usize) -> Self {
        let mut rows: Vec<Vec<u32>> = Vec::new();
        // Of the rows that take more: the index and the tokens that are left.
        let mut open: Vec<(usize, usize)> = Vec::new();
        for &sample in order {
            let tokens = lengths[sample as usize] as usize;
            if let Some(fit) = open.iter().position(|(_, left)| *left >= tokens) {
                let (row, left) = &mut open[fit];
                rows[*row].push(sample);
                *left -= tokens;
                if *left == 0 {
                    open.remove(fit);
                }
                continue;
            }
            if tokens < capacity {
                if open.len() == OPEN {
                    open.remove(0);
                }
                open.push((rows.len(), capacity - tokens));
            }
            rows.push(vec![sample]);
        }
        let mut ends = Vec::with_capacity(rows.len());
        let mut samples = Vec::with_capacity(order.len());
        for row in rows {
            samples.extend(row);
            ends.push(samples.len() as u32);
        }
        Self { samples, ends }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The samples of some rows, in order.
    ///
    /// # Panics
    /// When `rows` reaches beyond the last.
    #[must_use]
    pub fn samples(&self, rows: Range<usize>) -> &[u32] {
        let end = |row: usize| match row {
            0 => 0,
            _ => self.ends[row - 1] as usize,
        };
        &self.samples[end(rows.start)..end(rows.end)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_packing_a_row_is_a_sample() {
        let rows = Rows::of_epoch(&[5, 900, 2], None, 1, 0);
        assert_eq!(rows.len(), 3);
        assert_eq!(rows.samples(0..3).len(), 3);
        assert_eq!(rows.samples(1..2).len(), 1);
    }

    proptest! {
        #[test]
        fn packed_rows_hold_each_sample_once_and_overflow_only_by_one_that_is_longer(
            lengths in prop::collection::vec(1_u32..200, 0..400), seed: u64, epoch in 0_u32..5,
        ) {
            let rows = Rows::of_epoch(&lengths, Some(128), seed, epoch);
            let mut all = rows.samples(0..rows.len()).to_vec();
            all.sort_unstable();
            prop_assert!(all.iter().copied().eq(0..lengths.len() as u32));
            for row in 0..rows.len() {
                let samples = rows.samples(row..row + 1);
                let tokens: u32 = samples.iter().map(|s| lengths[*s as usize]).sum();
                prop_assert!(!samples.is_empty() && (tokens <= 128 || samples.len() == 1));
            }
            prop_assert_eq!(&rows, &Rows::of_epoch(&lengths, Some(128), seed, epoch));
        }
    }
}
