//! A step laid out for the threads.

mod runs;

use hyprstream_engine::{AdapterId, BackendError, LogitsWanted, ModelSpec, StepBatch};
use hyprstream_models::DecoderConfig;

use crate::{
    cache::BLOCK_SIZE,
    kernels::{CHUNK, MAX_ROWS},
};

pub(crate) use runs::{Piece, Run, Runs};

/// Everything about a step that does not depend on the layer.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// All new tokens, sequence after sequence; those of the same adapters follow one another.
    pub(crate) tokens: Vec<Token>,
    /// Tokens of which more than keys and values is wanted, ascending: what the last layer and
    /// the head compute.
    pub(crate) kept: Vec<usize>,
    /// Of those, whose logits are wanted, in the order of the batch.
    pub(crate) logits: Vec<usize>,
    /// Of those, whose hidden states are wanted, in the order of the batch.
    pub(crate) hidden: Vec<usize>,
    /// For each kind of attention (index of [`Self::kinds`]) its tasks.
    pub(crate) tasks: Vec<Tasks>,
    /// The windows that layers have.
    pub(crate) windows: Vec<Option<usize>>,
    /// All adapters of the batch, each once.
    pub(crate) adapters: Vec<AdapterId>,
    /// The adapters of all tokens.
    pub(crate) runs: Runs,
    /// The adapters of the tokens that are kept.
    pub(crate) kept_runs: Runs,
    /// The adapters of the rows of logits.
    pub(crate) head_runs: Runs,
}

/// One new token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) position: usize,
    /// Its block and place in it.
    pub(crate) slot: (usize, usize),
    /// Whether it is the last of its sequence.
    pub(crate) last: bool,
}

/// The attention of one layer, cut into tasks for each [`Heads`].
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) list: Vec<Task>,
    /// Tiles whose chunks are shared among several tasks.
    pub(crate) joins: usize,
    /// Chunk outcomes that such tiles leave, for one [`Heads`].
    pub(crate) partials: usize,
}

/// Some tokens of one sequence, and some of the chunks that they see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) sequence: usize,
    /// Index of the first token in the step.
    pub(crate) token: usize,
    pub(crate) count: usize,
    /// Position of the first token.
    pub(crate) position: usize,
    pub(crate) chunks: (usize, usize),
    /// Where the chunks of this tile are joined, if it has several tasks.
    pub(crate) join: Option<Join>,
}

/// A tile that several tasks compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Join {
    pub(crate) index: usize,
    /// How many tasks it has.
    pub(crate) tasks: usize,
    /// The outcome of its first chunk.
    pub(crate) partial: usize,
    /// Its chunks.
    pub(crate) chunks: (usize, usize),
}

/// Query heads that are computed together: they share a key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) kv: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Heads {
    /// All query heads of a layer, in groups that a kernel takes.
    pub(crate) fn of(config: &DecoderConfig) -> Vec<Self> {
        let group = config.num_heads / config.num_kv_heads;
        let parts = group.div_ceil(MAX_ROWS);
        let each = |kv: usize| {
            (0..parts).map(move |part| {
                let (from, to) = (part * group / parts, (part + 1) * group / parts);
                Self {
                    kv,
                    first: kv * group + from,
                    count: to - from,
                }
            })
        };
        (0..config.num_kv_heads).flat_map(each).collect()
    }
}

impl Plan {
    /// Lays `batch` out for `threads` threads.
    ///
    /// # Errors
    /// [`BackendError::Step`] when the batch breaks the rules of `SequenceStep`, before
    /// anything is computed.
    pub(crate) fn new(
        batch: &StepBatch,
        spec: &ModelSpec,
        config: &DecoderConfig,
        threads: usize,
    ) -> Result<Self, BackendError> {
        if batch.sequences.is_empty() {
            return Err(BackendError::Step("the batch is empty".into()));
        }
        for sequence in &batch.sequences {
            sequence.check(spec)?;
        }
        let mut plan = Self::default();
        let order = order(batch);
        let mut wanted_of = vec![0..0; batch.sequences.len()];
        let (mut owners, mut kept_owners) = (Vec::new(), Vec::new());
        for &index in &order {
            let sequence = &batch.sequences[index];
            let first = plan.tokens.len();
            let count = sequence.tokens.len();
            for (i, &id) in sequence.tokens.iter().enumerate() {
                let position = sequence.position + i;
                let block = sequence.blocks[position / BLOCK_SIZE] as usize;
                plan.tokens.push(Token {
                    id,
                    position,
                    slot: (block, position % BLOCK_SIZE),
                    last: i + 1 == count,
                });
            }
            let end = first + count;
            let wanted = match sequence.logits {
                LogitsWanted::None => end..end,
                LogitsWanted::Last => end - 1..end,
                LogitsWanted::All | LogitsWanted::Hidden => first..end,
            };
            wanted_of[index] = plan.kept.len()..plan.kept.len() + wanted.len();
            plan.kept.extend(wanted);
            owners.resize(end, index);
            kept_owners.resize(plan.kept.len(), index);
            for (id, _) in &sequence.adapters {
                if !plan.adapters.contains(id) {
                    plan.adapters.push(*id);
                }
            }
        }
        let mut head_owners = Vec::new();
        for (index, kept) in wanted_of.into_iter().enumerate() {
            match batch.sequences[index].logits {
                LogitsWanted::Hidden => plan.hidden.extend(kept),
                _ => plan.logits.extend(kept),
            }
            head_owners.resize(plan.logits.len(), index);
        }
        if !plan.adapters.is_empty() {
            plan.runs = Runs::new(batch, &owners, &plan.adapters);
            plan.kept_runs = Runs::new(batch, &kept_owners, &plan.adapters);
            plan.head_runs = Runs::new(batch, &head_owners, &plan.adapters);
        }
        let group = Heads::of(config).iter().map(|h| h.count).max().unwrap_or(1);
        for layer in &config.layers {
            if !plan.windows.contains(&layer.window) {
                let window = layer.window.unwrap_or(usize::MAX);
                let heads = config.num_kv_heads;
                plan.windows.push(layer.window);
                plan.tasks
                    .push(tasks(batch, &order, window, (group, heads), threads));
            }
        }
        Ok(plan)
    }

    /// The tasks of a layer with this window.
    pub(crate) fn tasks_of(&self, window: Option<usize>) -> &Tasks {
        let index = self.windows.iter().position(|w| *w == window);
        &self.tasks[index.expect("the plan has the tasks of every layer")]
    }
}

/// The sequences of `batch` by adapters, as they are otherwise.
fn order(batch: &StepBatch) -> Vec<usize> {
    let mut order: Vec<usize> = (0..batch.sequences.len()).collect();
    let ids = |at: &usize| batch.sequences[*at].adapters.iter().map(|(id, _)| id);
    order.sort_by(|a, b| ids(a).cmp(ids(b)));
    order
}

/// The tasks of a layer in which a token sees `window` positions.
fn tasks(
    batch: &StepBatch,
    order: &[usize],
    window: usize,
    (group, heads): (usize, usize),
    threads: usize,
) -> Tasks {
    let tile = (MAX_ROWS / group).max(1);
    let tiles: usize = batch
        .sequences
        .iter()
        .map(|s| s.tokens.len().div_ceil(tile))
        .sum();
    // With few tiles the chunks of a tile are shared out.
    let parts = (threads * 8).div_ceil(tiles * heads);
    let mut tasks = Tasks::default();
    let mut first = 0;
    for &sequence in order {
        let step = &batch.sequences[sequence];
        let mut from = 0;
        while from < step.tokens.len() {
            let count = tile.min(step.tokens.len() - from);
            let position = step.position + from;
            let begin = (position + 1).saturating_sub(window) / CHUNK;
            let end = (position + count).div_ceil(CHUNK);
            let each = (end - begin).div_ceil(parts.max(1)).max(1);
            let num_tasks = (end - begin).div_ceil(each);
            let join = (num_tasks > 1).then_some(Join {
                index: tasks.joins,
                tasks: num_tasks,
                partial: tasks.partials,
                chunks: (begin, end),
            });
            if join.is_some() {
                tasks.joins += 1;
                tasks.partials += end - begin;
            }
            for part in (begin..end).step_by(each) {
                tasks.list.push(Task {
                    sequence,
                    token: first + from,
                    count,
                    position,
                    chunks: (part, (part + each).min(end)),
                    join,
                });
            }
            from += count;
        }
        first += step.tokens.len();
    }
    // The longest first, so that no thread begins one when the others are done.
    tasks
        .list
        .sort_by_key(|task| std::cmp::Reverse(task.chunks.1 - task.chunks.0));
    tasks
}
