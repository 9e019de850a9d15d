//! A radix tree over whole blocks of tokens.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use super::Scope;
use crate::BlockId;

/// From a prefix and the next block of tokens to the cache block that holds their keys and values.
///
/// Every node owns one cache block and is named by it. Edges lie in one hash table for the whole
/// tree; what the hash finds is compared token by token. The hash of a block covers everything
/// before it too, so that it depends on the sequence alone and can be kept with it. It has a random
/// key, so that nobody can write prompts that collide.
#[derive(Debug)]
pub(super) struct Index {
    /// By block.
    nodes: Vec<Option<Node>>,
    edges: HashTable<BlockId>,
    hasher: RandomState,
    next_serial: u64,
}

#[derive(Debug)]
struct Node {
    /// Unlike the block, never used twice: children of a node that is gone are lost, and are not
    /// taken for children of the next node in the same block.
    serial: u64,
    /// The serial of the node before; 0 at the beginning of a sequence.
    parent: u64,
    scope: Arc<Scope>,
    tokens: Box<[u32]>,
    hash: u64,
}

/// The hashes of a sequence's whole blocks, each with all before it. They are made once: what is
/// known of a sequence does not change, it only grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    hashes: Vec<u64>,
}

impl Chain {
    /// The hash of the block `at`, if it is known.
    pub(super) fn get(&self, at: usize) -> Option<u64> {
        self.hashes.get(at).copied()
    }

    /// Whether both begin with the same `blocks` blocks, as far as their hashes say.
    pub(crate) fn shares(&self, other: &Self, blocks: usize) -> bool {
        let Some(last) = blocks.checked_sub(1) else {
            return true;
        };
        self.get(last)
            .is_some_and(|hash| other.get(last) == Some(hash))
    }
}

/// What comes before a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parent<'a> {
    /// Nothing: it is the first of a sequence in this scope.
    Scope(&'a Scope),
    /// The node of this serial, which knows the scope.
    Node(u64),
}

impl Parent<'_> {
    fn serial(self) -> u64 {
        match self {
            Self::Scope(_) => 0,
            Self::Node(serial) => serial,
        }
    }
}

impl Index {
    pub(super) fn new(num_blocks: usize) -> Self {
        let mut nodes = Vec::new();
        nodes.resize_with(num_blocks, || None);
        Self {
            nodes,
            edges: HashTable::new(),
            hasher: RandomState::new(),
            next_serial: 1,
        }
    }

    /// The block and the serial of the node after `parent` for `tokens`, of which `hash` is that
    /// of a [`Chain`].
    pub(super) fn find(
        &self,
        parent: Parent<'_>,
        tokens: &[u32],
        hash: u64,
    ) -> Option<(BlockId, u64)> {
        let is_it = |block: &BlockId| {
            self.nodes[*block as usize].as_ref().is_some_and(|node| {
                node.parent == parent.serial()
                    && *node.tokens == *tokens
                    && match parent {
                        Parent::Scope(scope) => *node.scope == *scope,
                        Parent::Node(_) => true,
                    }
            })
        };
        let &block = self.edges.find(hash, is_it)?;
        Some((block, self.serial(block)?))
    }

    /// Makes `block` the node after `parent` for `tokens`; there is none yet.
    pub(super) fn insert(
        &mut self,
        block: BlockId,
        scope: &Arc<Scope>,
        parent: Parent<'_>,
        tokens: &[u32],
        hash: u64,
    ) {
        self.nodes[block as usize] = Some(Node {
            serial: self.next_serial,
            parent: parent.serial(),
            scope: Arc::clone(scope),
            tokens: tokens.into(),
            hash,
        });
        self.next_serial += 1;
        let nodes = &self.nodes;
        self.edges.insert_unique(hash, block, |&block| {
            nodes[block as usize].as_ref().map_or(0, |node| node.hash)
        });
    }

    /// Forgets the node of `block`, if it is one.
    pub(super) fn remove(&mut self, block: BlockId) {
        let Some(node) = self.nodes[block as usize].take() else {
            return;
        };
        if let Ok(edge) = self.edges.find_entry(node.hash, |other| *other == block) {
            edge.remove();
        }
    }

    /// The serial of the node of `block`, if it is one.
    pub(super) fn serial(&self, block: BlockId) -> Option<u64> {
        Some(self.nodes[block as usize].as_ref()?.serial)
    }

    /// Whether `block` is a node that outlives its holders.
    pub(super) fn is_kept(&self, block: BlockId) -> bool {
        let node = self.nodes[block as usize].as_ref();
        node.is_some_and(|node| node.scope.group.is_none())
    }

    /// Makes `chain` know every whole block of `block_size` tokens of `tokens`.
    pub(super) fn extend(
        &self,
        chain: &mut Chain,
        scope: &Scope,
        tokens: &[u32],
        block_size: usize,
    ) {
        for block in tokens.chunks_exact(block_size).skip(chain.hashes.len()) {
            let mut hasher = self.hasher.build_hasher();
            match chain.hashes.last() {
                None => scope.hash(&mut hasher),
                Some(before) => hasher.write_u64(*before),
            }
            block.hash(&mut hasher);
            chain.hashes.push(hasher.finish());
        }
    }
}
