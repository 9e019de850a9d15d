//! Which tokens of a step have an adapter in common.

use hyprstream_engine::{AdapterId, StepBatch};

/// Most tokens of a piece of work.
const PIECE: usize = 32;

/// Tokens and their adapters. A token with several has a row for each of them between the factors.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// First the first adapters of all tokens, then the second ones: what is added to a token is
    /// added in the order of its own stack, whatever others have.
    pub(crate) list: Vec<Run>,
    /// What each row between the factors is multiplied by.
    pub(crate) scales: Vec<f32>,
    /// All runs, cut for the threads.
    pub(crate) pieces: Vec<Piece>,
}

/// Tokens that follow one another and have an adapter in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index among the adapters of the plan.
    pub(crate) adapter: usize,
    /// First token.
    pub(crate) from: usize,
    pub(crate) count: usize,
    /// Row of the first token between the factors.
    pub(crate) row: usize,
}

/// Some tokens of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the run.
    pub(crate) run: usize,
    pub(crate) from: usize,
    pub(crate) end: usize,
}

impl Runs {
    /// Whether every thread multiplies by the first factors alone, for itself: there is but one
    /// piece of such work.
    pub(crate) fn each_alone(&self) -> bool {
        self.pieces.len() == 1
    }

    /// Rows between the factors that so many threads need.
    pub(crate) fn rows(&self, threads: usize) -> usize {
        let copies = if self.each_alone() { threads } else { 1 };
        self.scales.len() * copies
    }

    /// The adapters of row `row` and what each is multiplied by, in the order of its stack.
    pub(crate) fn of(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        let runs = self.list.iter();
        let here = runs.filter(move |run| (run.from..run.from + run.count).contains(&row));
        here.map(move |run| (run.adapter, self.scales[run.row + row - run.from]))
    }

    /// Of tokens that belong to the sequences `owners` of `batch`, with `adapters` being all that
    /// the batch has.
    pub(super) fn new(batch: &StepBatch, owners: &[usize], adapters: &[AdapterId]) -> Self {
        let mut runs = Self::default();
        let stack = |owner: usize| batch.sequences[owner].adapters.as_slice();
        let depth = owners.iter().map(|owner| stack(*owner).len()).max();
        for depth in 0..depth.unwrap_or(0) {
            let first = runs.list.len();
            for (token, &owner) in owners.iter().enumerate() {
                let Some((id, scale)) = stack(owner).get(depth) else {
                    continue;
                };
                let adapter = adapters.iter().position(|other| other == id);
                let adapter = adapter.expect("all of the batch are there");
                match runs.list[first..].last_mut() {
                    Some(run) if run.adapter == adapter && run.from + run.count == token => {
                        run.count += 1;
                    }
                    _ => runs.list.push(Run {
                        adapter,
                        from: token,
                        count: 1,
                        row: runs.scales.len(),
                    }),
                }
                runs.scales.push(*scale);
            }
        }
        for (index, run) in runs.list.iter().enumerate() {
            let end = run.from + run.count;
            let pieces = (run.from..end).step_by(PIECE).map(|from| Piece {
                run: index,
                from,
                end: (from + PIECE).min(end),
            });
            runs.pieces.extend(pieces);
        }
        runs
    }
}
