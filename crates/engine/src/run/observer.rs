//! What metrics are made of.

use std::time::Duration;

use super::event::Stats;

/// Hears what the engine does, on the engine's thread: it must be quick and never block.
pub trait Observer: Send + Sync {
    /// A step is done.
    fn step(&self, report: &StepReport);
    /// A request got its first token, so long after its submission.
    fn first_token(&self, after: Duration);
    /// A request got a further token, so long after the one before.
    fn next_token(&self, after: Duration);
    /// A request ended: `stop`, `length`, `abort` (its stream was dropped) or `error`.
    fn finished(&self, stats: &Stats, reason: &'static str);
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Cache blocks that requests hold.
    pub used_blocks: usize,
    /// Cache blocks that no request holds, but the prefix cache keeps until they are needed.
    pub cached_blocks: usize,
    /// Prompt tokens of the requests that began in this step and were looked for in the prefix
    /// cache.
    pub prefix_queries: usize,
    /// How many of those were found.
    pub prefix_hits: usize,
    /// Tokens of the step.
    pub tokens: usize,
    /// Requests that lost their cache blocks before it.
    pub preempted: usize,
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn step(&self, _: &StepReport) {}
    fn first_token(&self, _: Duration) {}
    fn next_token(&self, _: Duration) {}
    fn finished(&self, _: &Stats, _: &'static str) {}
}
