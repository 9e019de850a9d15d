use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Wish {
    prompt: usize,
    answer: usize,
    /// Step before which it arrives, and after which it is cancelled.
    arrives: usize,
    leaves: Option<usize>,
}

struct Goal {
    id: usize,
    total: usize,
    ended: bool,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let wish = (
        1..100_usize,
        1..60_usize,
        0..60_usize,
        prop::option::weighted(0.2, 0..120_usize),
    )
        .prop_map(|(prompt, answer, arrives, leaves)| Wish {
            prompt,
            answer,
            arrives,
            leaves,
        });
    prop::collection::vec(wish, 1..25)
}

proptest! {
    #[test]
    fn every_sequence_ends_and_no_block_is_lost_or_shared(
        mut wishes in wishes(), num_blocks in 10..40_usize, max_sequences in 1..8_usize,
        spare in 0..64_usize,
    ) {
        wishes.sort_by_key(|wish| wish.arrives);
        let limits = SchedulerLimits { max_sequences, max_step_tokens: max_sequences + spare };
        let mut scheduler = Scheduler::new(BlockPool::new(num_blocks, 16), limits);
        let mut arrivals: VecDeque<_> = wishes.iter().cloned().enumerate().collect();
        let mut ended = HashSet::new();
        let mut step = 0;
        while ended.len() < wishes.len() {
            prop_assert!(step < 20_000, "starved: {} of {}", ended.len(), wishes.len());
            while arrivals.front().is_some_and(|(_, wish)| wish.arrives <= step) {
                let (id, wish) = arrivals.pop_front().unwrap();
                let total = wish.prompt + wish.answer;
                prop_assume!(total <= num_blocks * 16);
                let tokens = vec![id as u32; wish.prompt];
                scheduler.add(Sequence::new(tokens, Goal { id, total, ended: false }));
            }
            let oldest = scheduler.running.iter().chain(&scheduler.waiting).map(|s| s.of.id).min();
            let plan = scheduler.plan();
            let sum: usize = plan.shares.iter().map(|share| share.tokens).sum();
            prop_assert!(sum <= limits.max_step_tokens);
            prop_assert!(scheduler.running.len() <= max_sequences);
            if let Some(oldest) = oldest {
                prop_assert!(plan.preempted > 0 || sum > 0, "a step without work");
                prop_assert!(
                    scheduler.running.first().is_some_and(|s| s.of.id == oldest),
                    "the oldest runs"
                );
            }
            let mut owners = HashMap::new();
            for share in &plan.shares {
                let described = scheduler.step_of(*share);
                prop_assert_eq!(described.tokens.len(), share.tokens);
                let needed = (described.position + share.tokens).div_ceil(16);
                prop_assert_eq!(described.blocks.len(), needed);
                for block in described.blocks {
                    prop_assert!(owners.insert(block, share.index).is_none(), "shared");
                }
                let sequence = scheduler.running_mut(share.index);
                sequence.computed += share.tokens;
                if sequence.missing() == 0 {
                    let id = sequence.of.id as u32;
                    sequence.tokens.push(id);
                    sequence.of.ended = sequence.tokens.len() == sequence.of.total;
                }
            }
            scheduler.remove(|sequence| {
                let gone = wishes[sequence.of.id].leaves.is_some_and(|at| at <= step);
                let ends = sequence.of.ended || gone;
                if ends {
                    ended.insert(sequence.of.id);
                }
                ends
            });
            step += 1;
        }
        prop_assert_eq!(scheduler.blocks().available(), num_blocks);
    }
}

fn scheduler(num_blocks: usize, max_sequences: usize, max_step_tokens: usize) -> Scheduler<()> {
    let limits = SchedulerLimits {
        max_sequences,
        max_step_tokens,
    };
    Scheduler::new(BlockPool::new(num_blocks, 16), limits)
}

fn advance(scheduler: &mut Scheduler<()>) -> Vec<usize> {
    let plan = scheduler.plan();
    for share in &plan.shares {
        let sequence = scheduler.running_mut(share.index);
        sequence.computed += share.tokens;
        if sequence.missing() == 0 {
            sequence.tokens.push(0);
        }
    }
    plan.shares.iter().map(|share| share.tokens).collect()
}

#[test]
fn a_long_prompt_runs_in_pieces_beside_those_that_generate() {
    let mut scheduler = scheduler(100, 4, 32);
    scheduler.add(Sequence::new(vec![1; 5], ()));
    assert_eq!(advance(&mut scheduler), [5]);
    scheduler.add(Sequence::new(vec![2; 70], ()));
    assert_eq!(advance(&mut scheduler), [1, 31]);
    assert_eq!(advance(&mut scheduler), [1, 31]);
    assert_eq!(advance(&mut scheduler), [1, 8]);
    assert_eq!(advance(&mut scheduler), [1, 1]);
}

#[test]
fn several_prompts_enter_one_step() {
    let mut scheduler = scheduler(100, 4, 64);
    for len in [10, 20, 30, 40] {
        scheduler.add(Sequence::new(vec![1; len], ()));
    }
    assert_eq!(advance(&mut scheduler), [10, 20, 30, 4]);
}

#[test]
fn nobody_overtakes_the_first_of_the_queue() {
    let mut scheduler = scheduler(4, 4, 64);
    scheduler.add(Sequence::new(vec![1; 40], ()));
    scheduler.add(Sequence::new(vec![2; 33], ()));
    scheduler.add(Sequence::new(vec![3; 1], ()));
    assert_eq!(advance(&mut scheduler), [40]);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 2));
}
