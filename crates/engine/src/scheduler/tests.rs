use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{BlockId, LogitsWanted, cache::Scope};

const SIZE: usize = 16;

#[derive(Debug, Clone)]
struct Wish {
    /// Which of a few texts the prompt is a beginning of, and how much of it.
    text: u32,
    prompt: usize,
    answer: usize,
    salt: u8,
    priority: i32,
    /// The logits of the whole prompt are wanted.
    scored: bool,
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
        (0..3_u32, 1..100_usize, 1..60_usize, 0..2_u8),
        prop_oneof![3 => Just(0), 1 => -200..200_i32],
        prop::bool::weighted(0.1),
        0..60_usize,
        prop::option::weighted(0.2, 0..120_usize),
    )
        .prop_map(
            |((text, prompt, answer, salt), priority, scored, arrives, leaves)| Wish {
                text,
                prompt,
                answer,
                salt,
                priority,
                scored,
                arrives,
                leaves,
            },
        );
    prop::collection::vec(wish, 1..25)
}

fn scope(salt: u8) -> Arc<Scope> {
    Arc::new(Scope {
        salt: Some(salt.to_string().into()),
        ..Scope::default()
    })
}

/// Texts that part after 40 tokens.
fn text(which: u32, len: usize) -> Vec<u32> {
    let token = |at: usize| at as u32 % 7 + if at < 40 { 0 } else { 10 * which };
    (0..len).map(token).collect()
}

/// What every cache block holds: the scope and all tokens up to its last written one.
type Memory = HashMap<BlockId, (u8, Vec<u32>)>;

/// Does what a backend does with one share, and checks that it may.
fn run_share(
    scheduler: &Scheduler<Goal>,
    share: Share,
    memory: &mut Memory,
    salt: u8,
) -> Result<(), TestCaseError> {
    let step = scheduler.step_of(share);
    let sequence = &scheduler.running[share.index];
    let end = step.position + share.tokens;
    prop_assert_eq!(&step.tokens[..], &sequence.tokens[step.position..end]);
    prop_assert_eq!(step.blocks.len(), end.div_ceil(SIZE));
    for (i, block) in step
        .blocks
        .iter()
        .enumerate()
        .take(step.position.div_ceil(SIZE))
    {
        let known = ((i + 1) * SIZE).min(step.position);
        let right = (salt, sequence.tokens[..known].to_vec());
        prop_assert_eq!(memory.get(block), Some(&right), "not what was stored");
    }
    for position in step.position..end {
        let block = step.blocks[position / SIZE];
        for (index, other) in scheduler.running.iter().enumerate() {
            let shared = index != share.index && other.blocks.ids().contains(&block);
            prop_assert!(!shared, "written while shared");
        }
        memory.insert(block, (salt, sequence.tokens[..=position].to_vec()));
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_sequence_ends_and_no_block_is_lost_or_shared_wrongly(
        mut wishes in wishes(), num_blocks in 10..40_usize, max_sequences in 1..8_usize,
        spare in 0..64_usize, max_prompt_rows in 1..40_usize, cached in prop::bool::weighted(0.8),
    ) {
        wishes.sort_by_key(|wish| wish.arrives);
        let max_step_tokens = max_sequences + spare;
        let limits = SchedulerLimits { max_sequences, max_step_tokens, max_prompt_rows };
        let mut scheduler = Scheduler::new(Blocks::new(num_blocks, SIZE), limits);
        let mut arrivals: VecDeque<_> = wishes.iter().cloned().enumerate().collect();
        let mut memory = Memory::new();
        let mut rows: HashMap<usize, usize> = HashMap::new();
        let mut ended = HashSet::new();
        let mut step = 0;
        while ended.len() < wishes.len() {
            prop_assert!(step < 20_000, "starved: {} of {}", ended.len(), wishes.len());
            while arrivals.front().is_some_and(|(_, wish)| wish.arrives <= step) {
                let (id, wish) = arrivals.pop_front().unwrap();
                let total = wish.prompt + wish.answer;
                prop_assume!(total <= num_blocks * SIZE);
                let goal = Goal { id, total, ended: false };
                let mut sequence = Sequence::new(text(wish.text, wish.prompt), goal);
                sequence.scope = cached.then(|| scope(wish.salt));
                sequence.priority = wish.priority;
                if wish.scored {
                    sequence.output = Output::Logits(0);
                }
                scheduler.add(vec![sequence]);
            }
            let none = scheduler.is_empty();
            let plan = scheduler.plan();
            let sum: usize = plan.shares.iter().map(|share| share.tokens).sum();
            prop_assert!(sum <= limits.max_step_tokens);
            prop_assert!(scheduler.running.len() <= max_sequences);
            prop_assert!(scheduler.running.is_sorted_by_key(|s| s.order));
            prop_assert!(scheduler.waiting.iter().is_sorted_by_key(|s| s.order));
            if !none {
                let first = plan.shares.first().map(|share| share.index);
                prop_assert_eq!(first, Some(0), "the first of those that run advances");
            }
            for sequence in &scheduler.running {
                let generates = sequence.missing() == 1 && sequence.output == Output::Next;
                prop_assert!(!generates || sequence.share == 1, "who generates is in every step");
            }
            let mut step_rows = 0;
            for share in &plan.shares {
                let (id, before) = (scheduler.running[share.index].of.id, share.tokens);
                run_share(&scheduler, *share, &mut memory, wishes[id].salt)?;
                let step = scheduler.step_of(*share);
                if step.logits == LogitsWanted::All {
                    step_rows += step.num_rows();
                }
                scheduler.computed(*share);
                let sequence = scheduler.running_mut(share.index);
                if let Output::Logits(wanted) = &mut sequence.output {
                    if step.logits == LogitsWanted::All {
                        prop_assert!(step.position <= *wanted, "a position was left out");
                        *rows.entry(id).or_default() += sequence.computed - *wanted;
                        *wanted = sequence.computed;
                    }
                    prop_assert!(before <= max_prompt_rows);
                }
                if sequence.missing() == 0 {
                    sequence.output = Output::Next;
                    // Equal sequences go on equally, so that answers are shared too.
                    let token = sequence.tokens.iter().sum::<u32>() % 3;
                    sequence.tokens.push(token);
                    sequence.of.ended = sequence.tokens.len() == sequence.of.total;
                }
            }
            prop_assert!(step_rows <= max_prompt_rows);
            scheduler.remove(|sequence| {
                let wish = &wishes[sequence.of.id];
                let ends = sequence.of.ended || wish.leaves.is_some_and(|at| at <= step);
                if ends {
                    ended.insert(sequence.of.id);
                }
                ends
            });
            step += 1;
        }
        prop_assert_eq!(scheduler.blocks().available(), num_blocks);
        prop_assert!(cached || scheduler.blocks().num_idle() == 0);
        for (id, wish) in wishes.iter().enumerate() {
            if wish.scored && wish.leaves.is_none() {
                prop_assert_eq!(rows.get(&id), Some(&wish.prompt), "every position once");
            }
        }
    }
}

fn scheduler(
    num_blocks: usize,
    max_sequences: usize,
    max_step_tokens: usize,
) -> Scheduler<&'static str> {
    let limits = SchedulerLimits {
        max_sequences,
        max_step_tokens,
        max_prompt_rows: 1000,
    };
    Scheduler::new(Blocks::new(num_blocks, SIZE), limits)
}

fn sequence(prompt: Vec<u32>) -> Sequence<&'static str> {
    Sequence::new(prompt, "")
}

fn shared(prompt: Vec<u32>) -> Sequence<&'static str> {
    Sequence {
        scope: Some(scope(0)),
        ..sequence(prompt)
    }
}

/// Runs a step; the tokens of each share.
fn advance(scheduler: &mut Scheduler<&'static str>) -> Vec<usize> {
    let plan = scheduler.plan();
    for share in &plan.shares {
        scheduler.computed(*share);
        let sequence = scheduler.running_mut(share.index);
        if sequence.missing() == 0 {
            sequence.tokens.push(0);
        }
    }
    plan.shares.iter().map(|share| share.tokens).collect()
}

#[test]
fn a_long_prompt_runs_in_pieces_beside_those_that_generate() {
    let mut scheduler = scheduler(100, 4, 32);
    scheduler.add(vec![sequence(vec![1; 5])]);
    assert_eq!(advance(&mut scheduler), [5]);
    scheduler.add(vec![sequence(vec![2; 70])]);
    assert_eq!(advance(&mut scheduler), [1, 31]);
    assert_eq!(advance(&mut scheduler), [1, 31]);
    assert_eq!(advance(&mut scheduler), [1, 8]);
    assert_eq!(advance(&mut scheduler), [1, 1]);
}

#[test]
fn several_prompts_enter_one_step() {
    let mut scheduler = scheduler(100, 4, 64);
    for len in [10, 20, 30, 40] {
        scheduler.add(vec![sequence(vec![1; len])]);
    }
    assert_eq!(advance(&mut scheduler), [10, 20, 30, 4]);
}

#[test]
fn nobody_overtakes_the_first_of_the_queue() {
    let mut scheduler = scheduler(4, 4, 64);
    scheduler.add(vec![sequence(vec![1; 40])]);
    scheduler.add(vec![sequence(vec![2; 33])]);
    scheduler.add(vec![sequence(vec![3; 1])]);
    assert_eq!(advance(&mut scheduler), [40]);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 2));
}

/// One that wants the logits of its whole prompt.
fn scored(prompt: Vec<u32>) -> Sequence<&'static str> {
    Sequence {
        output: Output::Logits(0),
        ..Sequence::new(prompt, "scored")
    }
}

#[test]
fn others_pass_one_that_waits_for_rows_of_logits() {
    let mut scheduler = scheduler(1000, 8, 512);
    scheduler.limits.max_prompt_rows = 100;
    scheduler.add((0..6).map(|_| scored(vec![1; 250])).collect());
    assert_eq!(advance(&mut scheduler), [100]);
    scheduler.add(vec![named("chat", 0)]);
    assert_eq!(advance(&mut scheduler), [100, 1], "at the next step");
    assert_eq!(advance(&mut scheduler), [50, 1, 50]);
}

#[test]
fn one_that_waits_for_rows_of_logits_is_not_starved_by_those_who_pass() {
    let mut scheduler = scheduler(1000, 4, 64);
    scheduler.limits.max_prompt_rows = 10;
    scheduler.add(vec![scored(vec![1; 30])]);
    scheduler.add(vec![scored(vec![2; 30])]);
    let mut steps = 0;
    // More arrive than there is room for, and each stays for a while.
    while !scheduler.waiting.iter().any(|s| s.of == "scored") || steps == 0 {
        scheduler.add(vec![named("chat", 0)]);
        advance(&mut scheduler);
        steps += 1;
    }
    while scheduler.waiting.iter().any(|s| s.of == "scored") {
        scheduler.add(vec![named("chat", 0), named("chat", 0)]);
        advance(&mut scheduler);
        scheduler.remove(|s| {
            s.tokens.len() > 8 && s.of == "chat" || s.missing() == 1 && s.of == "scored"
        });
        steps += 1;
        assert!(steps < 20, "starved");
    }
}

#[test]
fn a_request_of_many_prompts_lets_others_in_between() {
    let mut scheduler = scheduler(1000, 64, 100);
    scheduler.add((0..20).map(|_| sequence(vec![1; 200])).collect());
    for _ in 0..5 {
        advance(&mut scheduler);
    }
    scheduler.add(vec![named("chat", 0)]);
    let mut steps = 0;
    while scheduler.waiting.iter().any(|s| s.of == "chat") {
        advance(&mut scheduler);
        steps += 1;
    }
    assert!(steps <= 3, "one prompt takes two steps, {steps}");
    let ran = |s: &Sequence<_>| s.of == "chat" && s.missing() == 1;
    assert!(scheduler.running.iter().any(ran));
}

#[test]
fn the_choices_of_a_prompt_count_as_one() {
    let mut scheduler = scheduler(1000, 64, 100);
    let request = [vec![1; 200], vec![1; 200], vec![1; 200], vec![2; 200]];
    scheduler.add(request.into_iter().map(shared).collect());
    let due: Vec<_> = scheduler.waiting.iter().map(|s| s.order.due).collect();
    assert_eq!(due, [0, 2, 2, 2]);
}

#[test]
fn a_prefix_is_computed_once_and_never_the_whole_prompt_is_left_out() {
    let mut scheduler = scheduler(100, 8, 512);
    // 40 tokens are two whole blocks, and 32 are so too, of which the last must be computed.
    for len in [40, 40, 32] {
        scheduler.add(vec![shared(vec![1; len])]);
    }
    let other: Vec<u32> = (0..20).collect();
    scheduler.add(vec![shared(other.clone())]);
    let first = scheduler.plan();
    assert_eq!((first.prefix_queries, first.prefix_hits), (60, 0));
    for share in &first.shares {
        scheduler.computed(*share);
    }
    assert_eq!(
        first.shares.iter().map(|s| s.tokens).collect::<Vec<_>>(),
        [40, 20]
    );
    let next = scheduler.plan();
    assert_eq!((next.prefix_queries, next.prefix_hits), (72, 48));
    let cached: Vec<_> = scheduler.running.iter().map(|s| s.cached).collect();
    assert_eq!(cached, [Some(0), Some(32), Some(16), Some(0)]);
}

#[test]
fn a_salt_or_no_scope_shares_nothing_and_waits_for_nobody() {
    let mut scheduler = scheduler(100, 8, 512);
    scheduler.add(vec![shared(vec![1; 40])]);
    scheduler.add(vec![Sequence {
        scope: Some(scope(1)),
        ..sequence(vec![1; 40])
    }]);
    scheduler.add(vec![sequence(vec![1; 40])]);
    scheduler.add(vec![sequence(vec![1; 40])]);
    assert_eq!(advance(&mut scheduler), [40, 40, 40, 40]);
}

#[test]
fn a_sequence_that_lost_its_blocks_finds_them_again() {
    let mut scheduler = scheduler(6, 2, 512);
    scheduler.add(vec![shared((0..30).collect())]);
    scheduler.add(vec![shared((50..98).collect())]);
    assert_eq!(advance(&mut scheduler), [30, 48]);
    assert_eq!(advance(&mut scheduler), [1, 1]);
    assert_eq!(
        advance(&mut scheduler),
        [1, 1],
        "the second has the sixth block"
    );
    let plan = scheduler.plan();
    assert_eq!((plan.preempted, scheduler.num_running()), (1, 1));
    scheduler.remove(|sequence| sequence.tokens[0] == 0);
    let plan = scheduler.plan();
    assert_eq!(scheduler.running[0].computed, 48, "three whole blocks");
    assert_eq!(plan.shares[0].tokens, 3);
    assert_eq!(plan.prefix_queries, 0, "it was counted when it came");
}

#[test]
fn what_is_wanted_of_a_cached_position_is_computed() {
    let mut scheduler = scheduler(20, 4, 512);
    scheduler.add(vec![shared(vec![1; 40])]);
    advance(&mut scheduler);
    for (output, tokens) in [
        (Output::Logits(0), 40),
        (Output::Logits(20), 24),
        (Output::Hidden(0), 40),
        (Output::Hidden(39), 8),
        (Output::Next, 8),
    ] {
        scheduler.add(vec![Sequence {
            output,
            ..shared(vec![1; 40])
        }]);
        let plan = scheduler.plan();
        let share = *plan.shares.last().unwrap();
        assert_eq!(share.tokens, tokens, "{output:?}");
        let index = share.index;
        let mut at = 0;
        scheduler.remove(|_| {
            at += 1;
            at - 1 == index
        });
    }
}

fn named(name: &'static str, priority: i32) -> Sequence<&'static str> {
    let mut sequence = Sequence::new(vec![1], name);
    sequence.priority = priority;
    sequence
}

/// The sequences in the order in which they run, one at a time, a step each.
fn order_of_running(scheduler: &mut Scheduler<&'static str>) -> Vec<&'static str> {
    let mut order = Vec::new();
    while !scheduler.is_empty() {
        let plan = scheduler.plan();
        order.push(scheduler.running_mut(plan.shares[0].index).of);
        let index = plan.shares[0].index;
        let mut at = 0;
        scheduler.remove(|sequence| {
            let runs = sequence.share > 0 && at == index;
            at += usize::from(sequence.share > 0);
            runs
        });
    }
    order
}

#[test]
fn the_more_important_run_first_and_equals_in_order_of_arrival() {
    let mut scheduler = scheduler(10, 1, 16);
    for (name, priority) in [("a", 0), ("low", 3), ("b", 0), ("high", -1), ("c", 0)] {
        scheduler.add(vec![named(name, priority)]);
    }
    assert_eq!(
        order_of_running(&mut scheduler),
        ["high", "a", "b", "c", "low"]
    );
}

#[test]
fn waiting_long_outweighs_any_priority() {
    let mut scheduler = scheduler(10, 1, 16);
    scheduler.add(vec![named("patient", i32::MAX)]);
    let longest = 2 * i64::from(MAX_PRIORITY) * STEPS_PER_PRIORITY + 2;
    let mut steps = 0;
    // Somebody as important as can be comes with every step.
    loop {
        scheduler.add(vec![named("pushing", i32::MIN)]);
        let plan = scheduler.plan();
        let runs = scheduler.running_mut(plan.shares[0].index).of;
        scheduler.remove(|sequence| sequence.share > 0);
        if runs == "patient" {
            break;
        }
        steps += 1;
        assert!(steps < longest, "starved");
    }
    assert!(steps > longest / 2, "{steps}: priority does count");
}
