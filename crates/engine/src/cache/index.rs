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
/// tree; what the hash finds is compared token by token. The hash has a random key, so that
/// nobody can write prompts that collide.
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

    /// The block and the serial of the node after `parent` for `tokens`.
    pub(super) fn find(&self, parent: Parent<'_>, tokens: &[u32]) -> Option<(BlockId, u64)> {
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
        let &block = self.edges.find(self.hash(parent, tokens), is_it)?;
        Some((block, self.serial(block)?))
    }

    /// Makes `block` the node after `parent` for `tokens`; there is none yet.
    pub(super) fn insert(
        &mut self,
        block: BlockId,
        scope: &Arc<Scope>,
        parent: Parent<'_>,
        tokens: &[u32],
    ) {
        let hash = self.hash(parent, tokens);
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

    fn hash(&self, parent: Parent<'_>, tokens: &[u32]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        match parent {
            Parent::Scope(scope) => scope.hash(&mut hasher),
            Parent::Node(serial) => hasher.write_u64(serial),
        }
        tokens.hash(&mut hasher);
        hasher.finish()
    }
}
