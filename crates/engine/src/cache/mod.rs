//! The cache blocks: who holds them, and which prefixes are in them.

mod index;

use std::{collections::BTreeMap, sync::Arc};

use crate::BlockId;

pub(crate) use index::Chain;
use index::{Index, Parent};

/// What must be equal, besides the tokens, for cached keys and values to be equal. The model is
/// the engine's own and the same for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// Keeps tenants apart.
    pub(crate) salt: Option<Arc<str>>,
    /// Low-rank adapters that the sequence runs with, in order.
    pub(crate) adapters: Vec<AdapterKey>,
    /// The choices of one request, where nothing else is to be shared. The blocks are free as
    /// soon as nobody holds them.
    pub(crate) group: Option<u64>,
}

/// An adapter as far as keys and values depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AdapterKey {
    /// Digest of its content; a name could come to mean something else.
    pub(crate) digest: [u8; 32],
    /// Bits of its scale, an f32.
    pub(crate) scale: u32,
}

/// Hands out cache blocks and takes them back, and remembers what full ones hold.
///
/// A block is *held* by one sequence or, when it is full and known as part of a prefix, by
/// several; it is *idle* when nobody holds it but its content is kept for the next request that
/// begins so; else it is *free*. When free ones run out, the block that has been idle longest is
/// taken. A sequence gives its blocks back from the last to the first, so that of a prefix the
/// end is lost before the beginning.
#[derive(Debug)]
pub(crate) struct Blocks {
    // Invariant: every block is in exactly one of: `free`, `idle`, held (`holders` above 0). A
    // block with several holders is in `index`.
    free: Vec<BlockId>,
    holders: Vec<u32>,
    /// Idle blocks by the time since when they are.
    idle: BTreeMap<u64, BlockId>,
    idle_since: Vec<u64>,
    clock: u64,
    index: Index,
    block_size: usize,
}

/// A sequence's blocks in order of position.
#[derive(Debug, Default)]
pub(crate) struct BlockList {
    ids: Vec<BlockId>,
    /// Invariant: the first so many are full, in the index, and never written again.
    shared: usize,
}

impl BlockList {
    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }
}

/// The cached beginning of a sequence.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    blocks: Vec<BlockId>,
    /// How many of them are idle.
    idle: usize,
}

impl Prefix {
    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }
}

impl Blocks {
    /// `num_blocks` free blocks of `block_size` tokens.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        // Low numbers are handed out first, so that a little used cache stays in few pages.
        let free = (0..num_blocks as BlockId).rev().collect();
        Self {
            free,
            holders: vec![0; num_blocks],
            idle: BTreeMap::new(),
            idle_since: vec![0; num_blocks],
            clock: 0,
            index: Index::new(num_blocks),
            block_size,
        }
    }

    /// Blocks in all.
    pub(crate) fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that nobody holds and whose content is kept.
    pub(crate) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Tokens in a block.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that `tokens` tokens need.
    pub(crate) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Makes `chain`, that of a sequence in `scope`, know all whole blocks of `tokens`.
    pub(crate) fn extend(&self, chain: &mut Chain, scope: &Scope, tokens: &[u32]) {
        self.index.extend(chain, scope, tokens, self.block_size);
    }

    /// The longest cached beginning of `tokens` in whole blocks, which `chain` knows.
    pub(crate) fn find(&self, scope: &Scope, tokens: &[u32], chain: &Chain) -> Prefix {
        let mut prefix = Prefix::default();
        let mut parent = Parent::Scope(scope);
        for (at, chunk) in tokens.chunks_exact(self.block_size).enumerate() {
            let known = chain.get(at);
            debug_assert!(known.is_some(), "the chain was extended");
            let found = known.and_then(|hash| self.index.find(parent, chunk, hash));
            let Some((block, serial)) = found else {
                break;
            };
            prefix.idle += usize::from(self.holders[block as usize] == 0);
            prefix.blocks.push(block);
            parent = Parent::Node(serial);
        }
        prefix
    }

    /// Whether a new sequence of `tokens` tokens that begins with `prefix` finds room, `spare`
    /// blocks being left over.
    pub(crate) fn has_room(&self, tokens: usize, prefix: &Prefix, spare: usize) -> bool {
        let new = self.needed(tokens).saturating_sub(prefix.blocks.len());
        new + spare <= self.available() - prefix.idle
    }

    /// Makes `blocks`, which is empty, hold `prefix`, which was just found.
    pub(crate) fn share(&mut self, prefix: Prefix, blocks: &mut BlockList) {
        debug_assert!(blocks.ids.is_empty(), "a prefix comes first");
        for &block in &prefix.blocks {
            self.hold(block);
        }
        blocks.shared = prefix.blocks.len();
        blocks.ids = prefix.blocks;
    }

    /// Adds blocks to `blocks` until they have room for `tokens` tokens. Says false, and changes
    /// nothing, when there are too few.
    #[must_use]
    pub(crate) fn grow(&mut self, blocks: &mut BlockList, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(blocks.ids.len());
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            let idlest = || {
                let (_, block) = self.idle.pop_first()?;
                self.index.remove(block);
                Some(block)
            };
            let Some(block) = self.free.pop().or_else(idlest) else {
                debug_assert!(false, "there are as many as were counted");
                return false;
            };
            self.holders[block as usize] = 1;
            blocks.ids.push(block);
        }
        true
    }

    /// Notes that `tokens`, the beginning of a sequence, are in `blocks`: the full ones can be
    /// shared from now on. Where another sequence has computed the same, its blocks take the
    /// place of this one's.
    pub(crate) fn publish(
        &mut self,
        scope: &Arc<Scope>,
        tokens: &[u32],
        chain: &mut Chain,
        blocks: &mut BlockList,
    ) {
        let full = tokens.len() / self.block_size;
        self.extend(chain, scope, tokens);
        while blocks.shared < full {
            let at = blocks.shared;
            let mine = blocks.ids[at];
            let parent = match at.checked_sub(1) {
                None => Parent::Scope(scope),
                Some(before) => match self.index.serial(blocks.ids[before]) {
                    Some(serial) => Parent::Node(serial),
                    // What came before is no longer to be shared, so neither is what follows.
                    None => return,
                },
            };
            let chunk = &tokens[at * self.block_size..][..self.block_size];
            let Some(hash) = chain.get(at) else {
                debug_assert!(false, "the chain was extended");
                return;
            };
            if let Some((other, _)) = self.index.find(parent, chunk, hash) {
                self.hold(other);
                blocks.ids[at] = other;
                self.drop_holder(mine);
            } else {
                self.index.insert(mine, scope, parent, chunk, hash);
            }
            blocks.shared += 1;
        }
    }

    /// Lets nobody share what is in `blocks` any more: it may be wrong.
    pub(crate) fn distrust(&mut self, blocks: &BlockList) {
        for &block in &blocks.ids {
            self.index.remove(block);
        }
    }

    /// Takes back all of `blocks` from one sequence.
    pub(crate) fn release(&mut self, blocks: &mut BlockList) {
        blocks.shared = 0;
        while let Some(block) = blocks.ids.pop() {
            self.drop_holder(block);
        }
    }

    fn hold(&mut self, block: BlockId) {
        let holders = &mut self.holders[block as usize];
        *holders += 1;
        if *holders == 1 {
            self.idle.remove(&self.idle_since[block as usize]);
        }
    }

    fn drop_holder(&mut self, block: BlockId) {
        let holders = &mut self.holders[block as usize];
        debug_assert!(*holders > 0, "block {block} returned twice");
        *holders = holders.saturating_sub(1);
        if *holders > 0 {
            return;
        }
        if self.index.is_kept(block) {
            self.clock += 1;
            self.idle_since[block as usize] = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.index.remove(block);
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests;
