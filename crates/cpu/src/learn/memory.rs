//! Memory of a batch.

use std::io;

use super::{
    grid::{Grid, View, stride},
    group::Group,
};
use crate::{
    buffer::Buffer,
    kernels::LANES,
    model::{Columns, Model},
};

/// Widths of all activations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    pub(super) hidden: usize,
    pub(super) qkv: usize,
    pub(super) attended: usize,
    /// Gate, and up after it, each beginning with a panel.
    pub(super) gate_up: usize,
    pub(super) up: usize,
    /// Between the factors of all groups of a layer.
    pub(super) narrow: usize,
    /// Derivatives by keys and values, for each query head.
    pairs: usize,
    sandwich: bool,
}

impl Widths {
    pub(super) fn of(model: &Model, groups: &[[Group; 4]]) -> Self {
        let config = &model.config;
        let Columns { all, .. } = model.columns;
        let up = config.intermediate_size.next_multiple_of(LANES);
        let narrow = groups
            .iter()
            .map(|groups| groups.iter().map(|group| group.width).sum());
        Self {
            hidden: config.hidden_size,
            qkv: all,
            attended: config.num_heads * config.head_dim,
            gate_up: 2 * up,
            up,
            narrow: narrow.max().unwrap_or(0),
            pairs: config.num_heads * 2 * config.head_dim,
            sandwich: config.sandwich_norms,
        }
    }

    /// Bytes that a layer keeps for each token.
    fn kept_bytes(&self) -> usize {
        let mut all = vec![
            self.qkv,
            self.attended,
            self.hidden,
            self.gate_up,
            self.narrow,
        ];
        if self.sandwich {
            all.extend([self.hidden; 2]);
        }
        4 * all.into_iter().map(stride).sum::<usize>()
    }
}

/// What the way back needs of one layer beside its input.
struct Kept {
    qkv: Grid,
    attended: Grid,
    /// Of attention, before the norm after it.
    first: Grid,
    middle: Grid,
    gate_up: Grid,
    /// Of down, before the norm after it.
    second: Grid,
    narrow: Grid,
}

/// See [`Kept`]; and what is between the factors.
#[derive(Clone, Copy)]
pub(super) struct KeptAt {
    pub(super) qkv: View,
    pub(super) attended: View,
    pub(super) first: View,
    pub(super) middle: View,
    pub(super) gate_up: View,
    pub(super) second: View,
    pub(super) narrow: View,
}

impl Kept {
    fn new(widths: &Widths) -> io::Result<Self> {
        Ok(Self {
            qkv: Grid::new(widths.qkv)?,
            attended: Grid::new(widths.attended)?,
            first: Grid::new(widths.hidden)?,
            middle: Grid::new(widths.hidden)?,
            gate_up: Grid::new(widths.gate_up)?,
            second: Grid::new(widths.hidden)?,
            narrow: Grid::new(widths.narrow)?,
        })
    }

    /// Bytes that it takes with room for so many rows.
    fn bytes_with(&self, rows: usize, sandwich: bool) -> u64 {
        let after = if sandwich { rows } else { 0 };
        [
            (&self.qkv, rows),
            (&self.attended, rows),
            (&self.first, after),
            (&self.middle, rows),
            (&self.gate_up, rows),
            (&self.second, after),
            (&self.narrow, rows),
        ]
        .into_iter()
        .map(|(grid, rows)| grid.bytes_with(rows))
        .sum()
    }

    fn at_least(&mut self, rows: usize, sandwich: bool) -> io::Result<()> {
        let after = if sandwich { rows } else { 0 };
        self.qkv.at_least(rows)?;
        self.attended.at_least(rows)?;
        self.first.at_least(after)?;
        self.middle.at_least(rows)?;
        self.gate_up.at_least(rows)?;
        self.second.at_least(after)?;
        self.narrow.at_least(rows)
    }

    fn at(&mut self) -> KeptAt {
        KeptAt {
            qkv: self.qkv.view(),
            attended: self.attended.view(),
            first: self.first.view(),
            middle: self.middle.view(),
            gate_up: self.gate_up.view(),
            second: self.second.view(),
            narrow: self.narrow.view(),
        }
    }
}

/// What a batch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) rows: usize,
    /// Rows that the head sees at a time.
    pub(super) head: usize,
    pub(super) layers: usize,
    /// Whether there is a way back.
    pub(super) back: bool,
    pub(super) drops: bool,
}

impl Need {
    /// Inputs of layers that are there at once. Without a way back, each layer's and the next one's.
    fn inputs(self) -> usize {
        if self.back { self.layers + 1 } else { 2 }
    }

    /// Layers' activations that are there at once, where so many layers keep theirs: one more serves
    /// all others.
    fn sets(self, own: usize) -> usize {
        if own == self.layers { own } else { own + 1 }
    }

    fn back_rows(self) -> usize {
        if self.back { self.rows } else { 0 }
    }
}

/// Memory of the activations and their derivatives, which grows with the largest batch.
pub(super) struct Memory {
    widths: Widths,
    /// The input of each layer, and the output of the last.
    x: Vec<Grid>,
    /// Of the layers that keep theirs, and one for all others.
    kept: Vec<Kept>,
    normed: Grid,
    inner: Grid,
    y: Grid,
    dx: Grid,
    turned: Grid,
    d_attended: Grid,
    d_pairs: Grid,
    d_narrow: Grid,
    dropped: Grid,
    flipped: Buffer<f32>,
    pub(super) head: Head,
}

/// Of the head, a few rows at a time.
pub(super) struct Head {
    hidden: Grid,
    d_hidden: Grid,
    logits: Grid,
}

/// See [`Head`].
#[derive(Clone, Copy)]
pub(super) struct HeadAt {
    pub(super) hidden: View,
    pub(super) d_hidden: View,
    pub(super) logits: View,
}

/// See [`Memory`].
#[derive(Clone)]
pub(super) struct At {
    pub(super) x: Vec<View>,
    /// One for each of the last layers that keep theirs, and the last one for all others.
    pub(super) kept: Vec<KeptAt>,
    pub(super) normed: View,
    /// What down takes, and the derivative by it.
    pub(super) inner: View,
    pub(super) y: View,
    pub(super) dx: View,
    pub(super) turned: View,
    pub(super) d_attended: View,
    pub(super) d_pairs: View,
    pub(super) d_narrow: View,
    pub(super) dropped: View,
    /// Columns of what is between the factors, as rows.
    pub(super) flipped: View,
    pub(super) head: HeadAt,
}

impl Memory {
    pub(super) fn new(widths: Widths, vocab: usize) -> io::Result<Self> {
        Ok(Self {
            widths,
            x: Vec::new(),
            kept: Vec::new(),
            normed: Grid::new(widths.hidden)?,
            inner: Grid::new(widths.up)?,
            y: Grid::new(widths.hidden)?,
            dx: Grid::new(widths.hidden)?,
            turned: Grid::new(widths.qkv)?,
            d_attended: Grid::new(widths.attended)?,
            d_pairs: Grid::new(widths.pairs)?,
            d_narrow: Grid::new(widths.narrow)?,
            dropped: Grid::new(widths.hidden.max(widths.attended).max(widths.up))?,
            flipped: Buffer::new(0)?,
            head: Head {
                hidden: Grid::new(widths.hidden)?,
                d_hidden: Grid::new(widths.hidden)?,
                logits: Grid::new(vocab)?,
            },
        })
    }

    /// Bytes of all that there is.
    pub(super) fn bytes(&self) -> u64 {
        let kept = self.kept.iter();
        let kept: u64 = kept.map(|kept| kept.bytes_with(0, false)).sum();
        kept + self.others(0, 0, 0, 0)
    }

    /// Bytes that it takes, but for what layers keep, with room for so many rows.
    fn others(&self, rows: usize, head: usize, back_rows: usize, dropped: usize) -> u64 {
        let x: u64 = self.x.iter().map(|x| x.bytes_with(rows)).sum();
        let grids = [
            (&self.normed, rows),
            (&self.inner, rows),
            (&self.y, rows),
            (&self.turned, rows),
            (&self.dx, back_rows),
            (&self.d_attended, back_rows),
            (&self.d_pairs, back_rows),
            (&self.d_narrow, back_rows),
            (&self.dropped, dropped),
            (&self.head.hidden, head),
            (&self.head.d_hidden, head),
            (&self.head.logits, head),
        ];
        let grids = grids.into_iter().map(|(grid, rows)| grid.bytes_with(rows));
        let flipped = (size_of_val(&*self.flipped)).max(self.flipped_len(back_rows) * 4) as u64;
        x + grids.sum::<u64>() + flipped
    }

    fn flipped_len(&self, back_rows: usize) -> usize {
        self.widths.narrow * if back_rows == 0 { 0 } else { stride(back_rows) }
    }

    /// Bytes that it takes after [`Self::at`].
    fn bytes_after(&self, need: Need, own: usize) -> u64 {
        let widths = self.widths;
        let Need { rows, head, .. } = need;
        let dropped = if need.drops { rows } else { 0 };
        let more = need.inputs().saturating_sub(self.x.len());
        let x = (more * rows * stride(widths.hidden) * 4) as u64;
        let others = self.others(rows, head, need.back_rows(), dropped) + x;
        let sets = need.sets(own);
        // Without a way back what there is stays.
        let unused = if need.back {
            0
        } else {
            self.kept.len().saturating_sub(sets)
        };
        let (unused, used) = self.kept.split_at(unused);
        let new = sets.saturating_sub(used.len());
        let each = (rows * widths.kept_bytes()) as u64;
        let unused = unused.iter().map(|kept| kept.bytes_with(0, false));
        let used = used.iter().take(sets);
        let used = used.map(|kept| kept.bytes_with(rows, widths.sandwich));
        others + unused.sum::<u64>() + used.sum::<u64>() + new as u64 * each
    }

    /// How many layers keep their activations: as many as fit into `kept_bytes` and into `free` bytes
    /// beside what there is.
    ///
    /// # Errors
    /// Not even one that serves all layers fits.
    pub(super) fn fit(&self, need: Need, kept_bytes: u64, free: u64) -> io::Result<usize> {
        let layers = need.layers;
        let mut own = 0;
        if need.back {
            let each = (need.rows * self.widths.kept_bytes()) as u64;
            let fit = usize::try_from(kept_bytes / each.max(1)).unwrap_or(usize::MAX);
            // One that is for others serves the last of them as well as its own would.
            own = if fit.saturating_add(1) >= layers {
                layers
            } else {
                fit
            };
        }
        let has = self.bytes();
        loop {
            let more = self.bytes_after(need, own).saturating_sub(has);
            if more <= free {
                return Ok(own);
            }
            if own == 0 {
                let (rows, more, free) = (need.rows, more >> 20, free >> 20);
                return Err(io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    format!("{rows} tokens at once need {more} MiB more, and {free} MiB are left"),
                ));
            }
            // All layers but one need as much as all.
            own = if own == layers {
                own.saturating_sub(2)
            } else {
                own - 1
            };
        }
    }

    /// Makes room for a batch of which so many of the last layers keep their activations.
    pub(super) fn at(&mut self, need: Need, own: usize) -> io::Result<At> {
        let widths = self.widths;
        let Need { rows, head, .. } = need;
        let (inputs, sets, back_rows) = (need.inputs(), need.sets(own), need.back_rows());
        if need.back {
            self.kept.truncate(sets);
        }
        while self.x.len() < inputs {
            self.x.push(Grid::new(widths.hidden)?);
        }
        while self.kept.len() < sets {
            self.kept.push(Kept::new(&widths)?);
        }
        for x in &mut self.x[..inputs] {
            x.at_least(rows)?;
        }
        // Without a way back what there is stays for the next, and the last one is used.
        let unused = self.kept.len() - sets;
        for kept in &mut self.kept[unused..] {
            kept.at_least(rows, widths.sandwich)?;
        }
        for grid in [
            &mut self.normed,
            &mut self.inner,
            &mut self.y,
            &mut self.turned,
        ] {
            grid.at_least(rows)?;
        }
        for grid in [
            &mut self.dx,
            &mut self.d_attended,
            &mut self.d_pairs,
            &mut self.d_narrow,
        ] {
            grid.at_least(back_rows)?;
        }
        self.dropped.at_least(if need.drops { rows } else { 0 })?;
        self.flipped.at_least(self.flipped_len(back_rows))?;
        self.head.hidden.at_least(head)?;
        self.head.d_hidden.at_least(head)?;
        self.head.logits.at_least(head)?;
        Ok(At {
            x: self.x.iter_mut().map(Grid::view).collect(),
            kept: self.kept.iter_mut().map(Kept::at).collect(),
            normed: self.normed.view(),
            inner: self.inner.view(),
            y: self.y.view(),
            dx: self.dx.view(),
            turned: self.turned.view(),
            d_attended: self.d_attended.view(),
            d_pairs: self.d_pairs.view(),
            d_narrow: self.d_narrow.view(),
            dropped: self.dropped.view(),
            flipped: View::of(&mut self.flipped, stride(back_rows)),
            head: HeadAt {
                hidden: self.head.hidden.view(),
                d_hidden: self.head.d_hidden.view(),
                logits: self.head.logits.view(),
            },
        })
    }
}
