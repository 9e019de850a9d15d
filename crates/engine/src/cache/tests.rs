use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const SIZE: usize = 4;

fn scope(salt: u8) -> Arc<Scope> {
    Arc::new(Scope {
        salt: Some(salt.to_string().into()),
        ..Scope::default()
    })
}

fn chain(blocks: &Blocks, scope: &Scope, tokens: &[u32]) -> Chain {
    let mut chain = Chain::default();
    blocks.extend(&mut chain, scope, tokens);
    chain
}

fn find(blocks: &Blocks, scope: &Scope, tokens: &[u32]) -> Prefix {
    blocks.find(scope, tokens, &chain(blocks, scope, tokens))
}

fn publish(blocks: &mut Blocks, scope: &Arc<Scope>, tokens: &[u32], list: &mut BlockList) {
    let mut chain = chain(blocks, scope, tokens);
    blocks.publish(scope, tokens, &mut chain, list);
}

/// A sequence that has computed all of `tokens`.
fn computed(blocks: &mut Blocks, scope: &Arc<Scope>, tokens: &[u32]) -> BlockList {
    let mut list = BlockList::default();
    let prefix = find(blocks, scope, tokens);
    blocks.share(prefix, &mut list);
    assert!(blocks.grow(&mut list, tokens.len()));
    publish(blocks, scope, tokens, &mut list);
    list
}

#[test]
fn a_prefix_is_found_in_whole_blocks_by_scope_and_tokens() {
    let mut blocks = Blocks::new(10, SIZE);
    let mut list = computed(&mut blocks, &scope(1), &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let found = |blocks: &Blocks, salt, tokens: &[u32]| find(blocks, &scope(salt), tokens).blocks;
    assert_eq!(
        found(&blocks, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        list.ids()[..2]
    );
    assert_eq!(found(&blocks, 1, &[1, 2, 3, 4, 5, 6, 7]), list.ids()[..1]);
    assert_eq!(
        found(&blocks, 1, &[1, 2, 3, 4, 0, 6, 7, 8]),
        list.ids()[..1]
    );
    assert!(found(&blocks, 1, &[1, 2, 3]).is_empty());
    assert!(found(&blocks, 2, &[1, 2, 3, 4]).is_empty());
    // The second block after another first one is another prefix.
    assert!(found(&blocks, 1, &[5, 6, 7, 8]).is_empty());
    let ids = list.ids().to_vec();
    blocks.release(&mut list);
    assert_eq!((blocks.available(), blocks.num_idle()), (10, 2));
    assert_eq!(found(&blocks, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), ids[..2]);
}

#[test]
fn adapters_with_their_scales_keep_prefixes_apart() {
    let mut blocks = Blocks::new(4, SIZE);
    let with = |digest: u8, scale: f32| {
        Arc::new(Scope {
            adapters: vec![AdapterKey {
                digest: [digest; 32],
                scale: scale.to_bits(),
            }],
            ..Scope::default()
        })
    };
    let _list = computed(&mut blocks, &with(1, 1.0), &[1, 2, 3, 4]);
    let found = |scope: &Scope| find(&blocks, scope, &[1, 2, 3, 4]).num_blocks();
    assert_eq!(found(&with(1, 1.0)), 1);
    for other in [with(2, 1.0), with(1, 0.5), Arc::default()] {
        assert_eq!(found(&other), 0, "{other:?}");
    }
}

#[test]
fn the_longest_idle_goes_first_and_of_a_prefix_the_end() {
    let mut blocks = Blocks::new(5, SIZE);
    let scope = scope(1);
    let mut old = computed(&mut blocks, &scope, &[1; 8]);
    let mut new = computed(&mut blocks, &scope, &[2; 8]);
    blocks.release(&mut old);
    blocks.release(&mut new);
    let mut taker = BlockList::default();
    assert!(blocks.grow(&mut taker, 2 * SIZE), "one free and one idle");
    let lengths =
        |blocks: &Blocks| [1, 2].map(|token| find(blocks, &scope, &[token; 8]).num_blocks());
    assert_eq!(lengths(&blocks), [1, 2]);
    // Using the old one again makes the new one the oldest.
    let mut again = BlockList::default();
    let prefix = find(&blocks, &scope, &[1; 8]);
    blocks.share(prefix, &mut again);
    blocks.release(&mut again);
    assert!(blocks.grow(&mut taker, 3 * SIZE));
    assert_eq!(lengths(&blocks), [1, 1]);
    assert!(blocks.grow(&mut taker, 4 * SIZE));
    assert_eq!(lengths(&blocks), [1, 0]);
    assert!(!blocks.grow(&mut taker, 6 * SIZE), "there are five");
    assert_eq!(lengths(&blocks), [1, 0]);
}

#[test]
fn what_was_computed_twice_is_kept_once() {
    let mut blocks = Blocks::new(8, SIZE);
    let scope = scope(1);
    let (mut a, mut b) = (BlockList::default(), BlockList::default());
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    assert!(blocks.grow(&mut a, 9) && blocks.grow(&mut b, 9));
    assert_eq!(blocks.available(), 2);
    publish(&mut blocks, &scope, &tokens, &mut a);
    publish(&mut blocks, &scope, &tokens, &mut b);
    assert_eq!(a.ids()[..2], b.ids()[..2]);
    assert_ne!(
        a.ids()[2],
        b.ids()[2],
        "a block that is not full is nobody else's"
    );
    assert_eq!(blocks.available(), 4);
}

#[test]
fn distrusted_blocks_are_shared_no_more_and_become_free() {
    let mut blocks = Blocks::new(8, SIZE);
    let scope = scope(1);
    let mut bad = computed(&mut blocks, &scope, &[1; 9]);
    let mut heir = computed(&mut blocks, &scope, &[1; 9]);
    blocks.distrust(&bad);
    assert_eq!(find(&blocks, &scope, &[1; 9]).num_blocks(), 0);
    blocks.release(&mut bad);
    assert!(blocks.grow(&mut heir, 16));
    publish(&mut blocks, &scope, &[1; 16], &mut heir);
    assert_eq!(find(&blocks, &scope, &[1; 16]).num_blocks(), 0);
    blocks.release(&mut heir);
    assert_eq!((blocks.available(), blocks.num_idle()), (8, 0));
}

#[test]
fn what_a_group_shares_is_free_after_it() {
    let mut blocks = Blocks::new(4, SIZE);
    let group = Arc::new(Scope {
        group: Some(7),
        ..Scope::default()
    });
    let mut a = computed(&mut blocks, &group, &[1; 9]);
    let mut b = computed(&mut blocks, &group, &[1; 9]);
    assert_eq!(blocks.available(), 0);
    blocks.release(&mut a);
    assert_eq!(find(&blocks, &group, &[1; 9]).num_blocks(), 2);
    blocks.release(&mut b);
    assert_eq!((blocks.available(), blocks.num_idle()), (4, 0));
    assert_eq!(find(&blocks, &group, &[1; 9]).num_blocks(), 0);
}

#[derive(Debug, Clone)]
enum Act {
    /// Begin with what is cached and grow to the whole.
    Begin(usize, u8, Vec<u32>),
    /// Compute so many more tokens.
    Extend(usize, Vec<u32>),
    Release(usize),
    Distrust(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // Few different tokens, so that prefixes are often the same.
    let tokens = || prop::collection::vec(0..2_u32, 1..24);
    let act = prop_oneof![
        4 => (0..6_usize, 0..2_u8, tokens()).prop_map(|(who, salt, t)| Act::Begin(who, salt, t)),
        3 => (0..6_usize, tokens()).prop_map(|(who, t)| Act::Extend(who, t)),
        3 => (0..6_usize).prop_map(Act::Release),
        1 => (0..6_usize).prop_map(Act::Distrust),
    ];
    prop::collection::vec(act, 0..120)
}

#[derive(Default)]
struct Owner {
    salt: u8,
    tokens: Vec<u32>,
    list: BlockList,
}

proptest! {
    /// A model of the memory: of every block the whole prefix whose values it holds.
    #[test]
    fn no_block_leaks_or_is_shared_by_what_differs(acts in acts(), num_blocks in 1..24_usize) {
        let mut blocks = Blocks::new(num_blocks, SIZE);
        let mut memory: HashMap<BlockId, (u8, Vec<u32>)> = HashMap::new();
        let mut owners: Vec<Owner> = (0..6).map(|_| Owner::default()).collect();
        for act in acts {
            match act {
                Act::Begin(who, salt, tokens) => {
                    let owner = &mut owners[who];
                    blocks.release(&mut owner.list);
                    *owner = Owner { salt, ..Owner::default() };
                    let prefix = find(&blocks, &scope(salt), &tokens);
                    for (i, block) in prefix.blocks.iter().enumerate() {
                        let right = (salt, tokens[..(i + 1) * SIZE].to_vec());
                        prop_assert_eq!(memory.get(block), Some(&right));
                    }
                    let fits = blocks.has_room(tokens.len(), &prefix, 0);
                    let known = prefix.num_blocks() * SIZE;
                    blocks.share(prefix, &mut owner.list);
                    prop_assert_eq!(blocks.grow(&mut owner.list, tokens.len()), fits);
                    owner.tokens = tokens[..known].to_vec();
                    if fits {
                        compute(&mut blocks, &mut memory, owner, &tokens[known..])?;
                    }
                }
                Act::Extend(who, tokens) => {
                    let owner = &mut owners[who];
                    let before = owner.list.ids().to_vec();
                    let len = owner.tokens.len() + tokens.len();
                    if blocks.grow(&mut owner.list, len) {
                        compute(&mut blocks, &mut memory, owner, &tokens)?;
                    } else {
                        prop_assert_eq!(owner.list.ids(), &before[..]);
                    }
                }
                Act::Release(who) => {
                    blocks.release(&mut owners[who].list);
                    owners[who].tokens.clear();
                }
                Act::Distrust(who) => blocks.distrust(&owners[who].list),
            }
            let mut holders: HashMap<BlockId, u32> = HashMap::new();
            for owner in &owners {
                let ids: HashSet<_> = owner.list.ids().iter().collect();
                prop_assert_eq!(ids.len(), owner.list.ids().len());
                for &block in owner.list.ids() {
                    *holders.entry(block).or_default() += 1;
                }
            }
            prop_assert_eq!(holders.len() + blocks.available(), blocks.total());
            for (&block, &count) in &holders {
                prop_assert_eq!(blocks.holders[block as usize], count);
            }
        }
        for owner in &mut owners {
            blocks.release(&mut owner.list);
        }
        prop_assert_eq!(blocks.available(), num_blocks);
    }
}

/// Writes `tokens` behind those that `owner` has, and publishes them.
fn compute(
    blocks: &mut Blocks,
    memory: &mut HashMap<BlockId, (u8, Vec<u32>)>,
    owner: &mut Owner,
    tokens: &[u32],
) -> Result<(), TestCaseError> {
    for &token in tokens {
        let block = owner.list.ids()[owner.tokens.len() / SIZE];
        prop_assert_eq!(blocks.holders[block as usize], 1, "written while shared");
        owner.tokens.push(token);
        memory.insert(block, (owner.salt, owner.tokens.clone()));
    }
    publish(blocks, &scope(owner.salt), &owner.tokens, &mut owner.list);
    for (i, block) in owner.list.ids().iter().enumerate() {
        let end = ((i + 1) * SIZE).min(owner.tokens.len());
        if i * SIZE < end {
            let right = (owner.salt, owner.tokens[..end].to_vec());
            prop_assert_eq!(memory.get(block), Some(&right));
        }
    }
    Ok(())
}
