//! What runs in the next step.

mod sequence;

use std::collections::VecDeque;

use crate::{
    SequenceStep,
    cache::{Blocks, Prefix},
};

use sequence::Order;
pub(crate) use sequence::{Output, Sequence};

/// Steps that one point of priority is worth: a request waits at most so many steps longer than
/// one that arrives later and is that much more important.
const STEPS_PER_PRIORITY: i64 = 64;

/// Priorities beyond this, up or down, count as this.
pub(crate) const MAX_PRIORITY: i32 = 100;

/// Chooses the sequences of every step and gives them cache blocks.
///
/// The order of sequences is that of their arrival, moved by their priority: a sequence of
/// priority `p` counts as having arrived `p` times [`STEPS_PER_PRIORITY`] steps later. So nobody
/// waits forever for those who are more important.
///
/// Sequences of one request are ordered as if each came when those before it had been computed by
/// steps of their own. So a request of many long prompts lets others in between, and who comes
/// later waits for about one of its prompts, not for all.
///
/// The rules: sequences that generate come first, one token each, so that a long prompt never
/// makes them wait for more than one step; prompts share what is left of the step's tokens, in
/// order and in pieces; new sequences enter in order while their whole prompt finds blocks, those
/// that hold idle prefixes included. Two let others pass: one whose prefix is just being computed
/// by another, until it can share that; and one that wants rows of logits when the step has none
/// left, which those who pass do not want either. When blocks run out, the last of those that run
/// gives all of its blocks back and later computes its tokens again, or finds them in the prefix
/// cache.
///
/// So the first of those that run always advances: it can take the blocks of all others, and no
/// sequence is accepted that could outgrow the whole cache. No order of requests starves one.
///
/// The scheduler knows no backend, no text and no clock; `T` is what the engine keeps with a
/// sequence.
pub(crate) struct Scheduler<T> {
    // Invariant: both are sorted by `order`.
    waiting: VecDeque<Sequence<T>>,
    running: Vec<Sequence<T>>,
    blocks: Blocks,
    limits: SchedulerLimits,
    steps: i64,
    arrivals: u64,
}

/// Sizes of a step.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::struct_field_names,
    reason = "they are limits of different things"
)]
pub(crate) struct SchedulerLimits {
    /// Most sequences in one step; at least 1.
    pub(crate) max_sequences: usize,
    /// Most tokens in one step; at least `max_sequences`.
    pub(crate) max_step_tokens: usize,
    /// Most rows of logits of prompts in one step; at least 1.
    pub(crate) max_prompt_rows: usize,
}

/// One sequence's share of the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Index of the sequence among the running ones.
    pub(crate) index: usize,
    /// New tokens to compute.
    pub(crate) tokens: usize,
}

/// The next step.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Shares, each sequence at most once.
    pub(crate) shares: Vec<Share>,
    /// Sequences that lost their blocks.
    pub(crate) preempted: usize,
    /// Prompt tokens of newcomers that were looked for in the prefix cache, and that were found.
    pub(crate) prefix_queries: usize,
    pub(crate) prefix_hits: usize,
}

impl<T> Scheduler<T> {
    pub(crate) fn new(blocks: Blocks, limits: SchedulerLimits) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks,
            limits,
            steps: 0,
            arrivals: 0,
        }
    }

    /// Puts the sequences of one request into the queue.
    pub(crate) fn add(&mut self, request: Vec<Sequence<T>>) {
        let mut steps_before = 0;
        let same: Vec<bool> = (0..request.len())
            .map(|at| at > 0 && request[at].tokens == request[at - 1].tokens)
            .collect();
        for (mut sequence, same) in request.into_iter().zip(same) {
            let priority = sequence.priority.clamp(-MAX_PRIORITY, MAX_PRIORITY);
            sequence.order = Order {
                due: self.steps + steps_before + i64::from(priority) * STEPS_PER_PRIORITY,
                number: self.arrivals,
            };
            self.arrivals += 1;
            if let Some(scope) = &sequence.scope {
                let (chain, tokens) = (&mut sequence.chain, &sequence.tokens);
                self.blocks.extend(chain, scope, tokens);
            }
            // The choices of one prompt share what is computed of it.
            if !(same && sequence.scope.is_some() && sequence.output == Output::Next) {
                steps_before += self.limits.steps_of(&sequence);
            }
            self.wait(sequence);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    pub(crate) fn running_mut(&mut self, index: usize) -> &mut Sequence<T> {
        &mut self.running[index]
    }

    /// Chooses the next step. Nothing to do gives an empty plan.
    pub(crate) fn plan(&mut self) -> Plan {
        self.steps += 1;
        let mut plan = Plan {
            preempted: self.find_blocks(),
            ..Plan::default()
        };
        let mut budget = Budget {
            tokens: self.limits.max_step_tokens,
            prompt_rows: self.limits.max_prompt_rows,
        };
        for generating in [true, false] {
            for sequence in &mut self.running {
                let generates = sequence.missing() == 1 && sequence.output == Output::Next;
                if generates == generating {
                    sequence.share = budget.take(sequence);
                }
            }
        }
        // A step that took blocks away has none to give.
        while plan.preempted == 0 && budget.tokens > 0 {
            if !self.admit(&mut budget, &mut plan) {
                break;
            }
        }
        let share = |(index, sequence): (usize, &Sequence<T>)| Share {
            index,
            tokens: sequence.share,
        };
        let shares = self.running.iter().enumerate().map(share);
        plan.shares = shares.filter(|share| share.tokens > 0).collect();
        plan
    }

    /// What the backend is told of a share.
    pub(crate) fn step_of(&self, share: Share) -> SequenceStep {
        self.running[share.index].step(share.tokens, self.blocks.block_size())
    }

    /// Notes that the tokens of `share` are in the cache.
    pub(crate) fn computed(&mut self, share: Share) {
        let sequence = &mut self.running[share.index];
        sequence.computed += share.tokens;
        if let Some(scope) = &sequence.scope {
            let tokens = &sequence.tokens[..sequence.computed];
            let (chain, blocks) = (&mut sequence.chain, &mut sequence.blocks);
            self.blocks.publish(scope, tokens, chain, blocks);
        }
    }

    /// Keeps what a running sequence has computed from being used by others: it may be wrong.
    pub(crate) fn distrust(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        sequence.scope = None;
        self.blocks.distrust(&sequence.blocks);
    }

    /// Removes the sequences that `ended` says, with their blocks.
    pub(crate) fn remove(&mut self, mut ended: impl FnMut(&mut Sequence<T>) -> bool) {
        let Self {
            waiting,
            running,
            blocks,
            ..
        } = self;
        waiting.retain_mut(|sequence| !ended(sequence));
        running.retain_mut(|sequence| {
            let ends = ended(sequence);
            if ends {
                blocks.release(&mut sequence.blocks);
            }
            !ends
        });
    }

    fn wait(&mut self, sequence: Sequence<T>) {
        let at = self.waiting.partition_point(|s| s.order < sequence.order);
        self.waiting.insert(at, sequence);
    }

    /// Gives every running sequence room for its tokens; says how many had to leave for that.
    fn find_blocks(&mut self) -> usize {
        let mut preempted = 0;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if self
                .blocks
                .grow(&mut sequence.blocks, sequence.tokens.len())
            {
                index += 1;
            } else if let Some(mut last) = self.running.pop() {
                self.blocks.release(&mut last.blocks);
                last.computed = 0;
                self.wait(last);
                preempted += 1;
            }
        }
        preempted
    }

    /// Lets the first of the queue run, if there is room, and says whether there was.
    fn admit(&mut self, budget: &mut Budget, plan: &mut Plan) -> bool {
        if self.running.len() >= self.limits.max_sequences {
            return false;
        }
        let Some((at, prefix)) = self.first_ready(budget) else {
            return false;
        };
        let first = &self.waiting[at];
        // One block for each running sequence is left to grow into, or the newcomer would soon
        // be sent away again.
        let spare = self.running.len();
        if !self.blocks.has_room(first.tokens.len(), &prefix, spare) {
            return false;
        }
        let Some(mut first) = self.waiting.remove(at) else {
            return false;
        };
        let found = prefix.num_blocks() * self.blocks.block_size();
        self.blocks.share(prefix, &mut first.blocks);
        let grown = self.blocks.grow(&mut first.blocks, first.tokens.len());
        debug_assert!(grown, "room was found");
        first.computed = found;
        if first.cached.is_none() {
            first.cached = Some(found);
            if first.scope.is_some() {
                plan.prefix_queries += first.tokens.len();
                plan.prefix_hits += found;
            }
        }
        first.share = budget.take(&first);
        let index = self.running.partition_point(|s| s.order < first.order);
        self.running.insert(index, first);
        true
    }

    /// The first of the queue that has something to do in this step, and would not compute what
    /// another is just computing.
    fn first_ready(&self, budget: &Budget) -> Option<(usize, Prefix)> {
        self.waiting.iter().enumerate().find_map(|(at, sequence)| {
            if budget.offer(sequence) == 0 {
                return None;
            }
            let Some(scope) = &sequence.scope else {
                return Some((at, Prefix::default()));
            };
            let sharable = &sequence.tokens[..sequence.sharable()];
            let prefix = self.blocks.find(scope, sharable, &sequence.chain);
            let size = self.blocks.block_size();
            let awaited = self.running.iter().any(|other| {
                let more = prefix.num_blocks().max(other.computed / size) + 1;
                other.missing() > 1
                    && more * size <= sharable.len()
                    && other.scope.as_ref() == Some(scope)
                    && other.chain.shares(&sequence.chain, more)
            });
            (!awaited).then_some((at, prefix))
        })
    }
}

impl SchedulerLimits {
    /// Steps that the tokens of `sequence` take when nothing else runs.
    fn steps_of<T>(&self, sequence: &Sequence<T>) -> i64 {
        let most = match sequence.output {
            Output::Logits(_) => self.max_step_tokens.min(self.max_prompt_rows),
            Output::Next | Output::Hidden(_) => self.max_step_tokens,
        };
        sequence.missing().div_ceil(most) as i64
    }
}

/// What is left of a step.
struct Budget {
    tokens: usize,
    prompt_rows: usize,
}

impl Budget {
    /// The tokens that `sequence` may compute.
    fn offer<T>(&self, sequence: &Sequence<T>) -> usize {
        let tokens = sequence.missing().min(self.tokens);
        match sequence.output {
            Output::Logits(_) => tokens.min(self.prompt_rows),
            Output::Next | Output::Hidden(_) => tokens,
        }
    }

    /// The same, taken away from what is left.
    fn take<T>(&mut self, sequence: &Sequence<T>) -> usize {
        let tokens = self.offer(sequence);
        if matches!(sequence.output, Output::Logits(_)) {
            self.prompt_rows -= tokens;
        }
        self.tokens -= tokens;
        tokens
    }
}

#[cfg(test)]
mod tests;
