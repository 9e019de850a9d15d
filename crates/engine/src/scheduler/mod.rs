//! What runs in the next step.

mod sequence;

use std::collections::VecDeque;

use crate::{LogitsWanted, SequenceStep, blocks::BlockPool};

pub(crate) use sequence::Sequence;

/// Chooses the sequences of every step and gives them cache blocks.
///
/// The rules: sequences that generate come first, one token each, so that a long prompt never
/// makes them wait for more than one step; prompts share what is left of the step's tokens, in
/// the order of arrival and in pieces; new sequences enter in the order of arrival while their
/// whole prompt finds free blocks. When blocks run out, the sequence that arrived last gives all
/// of its blocks back and later computes its tokens again.
///
/// So the sequence that arrived first always advances: it can take the blocks of all others, and
/// no sequence is accepted that could outgrow the whole cache. No order of requests starves one.
///
/// The scheduler knows no backend, no text and no clock; `T` is what the engine keeps with a
/// sequence.
pub(crate) struct Scheduler<T> {
    // Invariant: every running sequence arrived before every waiting one, and both are in order
    // of arrival.
    waiting: VecDeque<Sequence<T>>,
    running: Vec<Sequence<T>>,
    blocks: BlockPool,
    limits: SchedulerLimits,
}

/// Sizes of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerLimits {
    /// Most sequences in one step; at least 1.
    pub(crate) max_sequences: usize,
    /// Most tokens in one step; at least `max_sequences`.
    pub(crate) max_step_tokens: usize,
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
}

impl<T> Scheduler<T> {
    pub(crate) fn new(blocks: BlockPool, limits: SchedulerLimits) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks,
            limits,
        }
    }

    /// Puts a sequence at the end of the queue.
    pub(crate) fn add(&mut self, sequence: Sequence<T>) {
        self.waiting.push_back(sequence);
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

    pub(crate) fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    pub(crate) fn running_mut(&mut self, index: usize) -> &mut Sequence<T> {
        &mut self.running[index]
    }

    /// Chooses the next step. Nothing to do gives an empty plan.
    pub(crate) fn plan(&mut self) -> Plan {
        let mut plan = Plan {
            preempted: self.find_blocks(),
            ..Plan::default()
        };
        let mut budget = self.limits.max_step_tokens;
        for generating in [true, false] {
            for (index, sequence) in self.running.iter().enumerate() {
                let missing = sequence.missing();
                let tokens = missing.min(budget);
                if (missing == 1) == generating && tokens > 0 {
                    plan.shares.push(Share { index, tokens });
                    budget -= tokens;
                }
            }
        }
        // A step that took blocks away has none to give.
        while plan.preempted == 0 && budget > 0 && self.admit() {
            let index = self.running.len() - 1;
            let tokens = self.running[index].missing().min(budget);
            plan.shares.push(Share { index, tokens });
            budget -= tokens;
        }
        plan
    }

    /// What the backend is told of a share.
    pub(crate) fn step_of(&self, share: Share) -> SequenceStep {
        let sequence = &self.running[share.index];
        let (from, to) = (sequence.computed, sequence.computed + share.tokens);
        SequenceStep {
            tokens: sequence.tokens[from..to].to_vec(),
            position: from,
            blocks: sequence.blocks[..self.blocks.needed(to)].to_vec(),
            logits: if to == sequence.tokens.len() {
                LogitsWanted::Last
            } else {
                LogitsWanted::None
            },
        }
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
                self.waiting.push_front(last);
                preempted += 1;
            }
        }
        preempted
    }

    /// Lets the first of the queue run, if there is room.
    fn admit(&mut self) -> bool {
        if self.running.len() >= self.limits.max_sequences {
            return false;
        }
        let Some(first) = self.waiting.front_mut() else {
            return false;
        };
        // One block for each running sequence is left to grow into, or the newcomer would soon
        // be sent away again.
        let needed = self.blocks.needed(first.tokens.len()) + self.running.len();
        if needed > self.blocks.available() {
            return false;
        }
        if !self.blocks.grow(&mut first.blocks, first.tokens.len()) {
            return false;
        }
        self.running.extend(self.waiting.pop_front());
        true
    }
}

#[cfg(test)]
mod tests;
