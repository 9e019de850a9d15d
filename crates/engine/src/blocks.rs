//! The cache blocks that sequences own.

use crate::BlockId;

/// Hands out cache blocks and takes them back.
///
/// Blocks are counted, so that several sequences can hold one (a shared prefix): a block is free
/// again when its last holder returns it.
#[derive(Debug)]
pub(crate) struct BlockPool {
    // Invariant: a block is in `free` exactly when its count in `holders` is 0.
    free: Vec<BlockId>,
    holders: Vec<u32>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks of `block_size` tokens.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        // Low numbers are handed out first, so that a little used cache stays in few pages.
        let free = (0..num_blocks as BlockId).rev().collect();
        Self {
            free,
            holders: vec![0; num_blocks],
            block_size,
        }
    }

    /// Blocks in all.
    pub(crate) fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub(crate) fn available(&self) -> usize {
        self.free.len()
    }

    /// Blocks that `tokens` tokens need.
    pub(crate) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Adds blocks to `blocks` until they have room for `tokens` tokens. Says false, and changes
    /// nothing, when the pool has too few.
    #[must_use]
    pub(crate) fn grow(&mut self, blocks: &mut Vec<BlockId>, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(blocks.len());
        if missing > self.free.len() {
            return false;
        }
        for block in self.free.drain(self.free.len() - missing..).rev() {
            self.holders[block as usize] = 1;
            blocks.push(block);
        }
        true
    }

    /// Takes back all of `blocks` from one holder.
    pub(crate) fn release(&mut self, blocks: &mut Vec<BlockId>) {
        for block in blocks.drain(..).rev() {
            let holders = &mut self.holders[block as usize];
            debug_assert!(*holders > 0, "block {block} returned twice");
            *holders = holders.saturating_sub(1);
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Grow(usize, usize),
        Release(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0..6_usize, 0..90_usize).prop_map(|(who, tokens)| Act::Grow(who, tokens)),
            (0..6_usize).prop_map(Act::Release),
        ];
        prop::collection::vec(act, 0..200)
    }

    proptest! {
        #[test]
        fn no_block_leaks_or_has_two_owners(acts in acts(), num_blocks in 0..20_usize) {
            let mut pool = BlockPool::new(num_blocks, 16);
            let mut owners: Vec<Vec<BlockId>> = vec![Vec::new(); 6];
            for act in acts {
                match act {
                    Act::Grow(who, tokens) => {
                        let before = owners[who].clone();
                        let grown = pool.grow(&mut owners[who], tokens);
                        prop_assert!(owners[who].starts_with(&before));
                        if grown {
                            prop_assert_eq!(owners[who].len(), before.len().max(tokens.div_ceil(16)));
                        } else {
                            prop_assert_eq!(&owners[who], &before);
                            prop_assert!(tokens.div_ceil(16) - before.len() > pool.available());
                        }
                    }
                    Act::Release(who) => pool.release(&mut owners[who]),
                }
                let held: Vec<_> = owners.iter().flatten().copied().collect();
                prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len());
                prop_assert_eq!(held.len() + pool.available(), pool.total());
            }
            for blocks in &mut owners {
                pool.release(blocks);
            }
            prop_assert_eq!(pool.available(), num_blocks);
        }
    }
}
