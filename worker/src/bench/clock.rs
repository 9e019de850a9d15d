//! Times a round of requests on the engine's thread.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyprstream_engine::{Observer, Stats, StepReport};

/// How long the engine may take to say that a round's last step is over, once all answers ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hears the engine and keeps the moments of one round. See the module `bench` for what the
/// moments mean.
#[derive(Default)]
pub(super) struct Clock {
    round: Mutex<Round>,
    over: Condvar,
}

#[derive(Default)]
struct Round {
    /// Requests of the round.
    expected: usize,
    first_tokens: Vec<Duration>,
    tokens: usize,
    ended: usize,
    preempted: usize,
    /// End of the step in which the last request got its first token.
    all_decode: Option<Mark>,
    /// End of the step in which the first request ended.
    first_end: Option<Mark>,
    /// End of the step in which the last request ended.
    last_end: Option<Mark>,
}

/// A moment, and how many tokens were generated until then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    tokens: usize,
}

/// What a round took.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    /// From the start to the end of the step that gave the last request its first token.
    pub(super) prefill: Duration,
    /// From each request's submission to its first token.
    pub(super) first_tokens: Vec<Duration>,
    /// Tokens that were decoded while every step decoded the whole batch, and how long that was.
    /// `None` when there was no such time.
    pub(super) decode: Option<(usize, Duration)>,
    /// From the start to the end of the last step.
    pub(super) whole: Duration,
    /// Requests that lost their cache blocks; with any the figures are not those of the batch.
    pub(super) preempted: usize,
}

impl Clock {
    /// Forgets the round before and expects so many requests.
    pub(super) fn expect(&self, requests: usize) {
        *self.lock() = Round {
            expected: requests,
            ..Round::default()
        };
    }

    /// What the round took that began at `start`. Waits for the end of its last step, which
    /// comes shortly after its last token. `None` when it does not come.
    pub(super) fn finish(&self, start: Instant) -> Option<Timing> {
        let (mut round, _) = self
            .over
            .wait_timeout_while(self.lock(), PATIENCE, |round| round.last_end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let last_end = round.last_end?;
        let all_decode = round.all_decode?;
        let decode = round
            .first_end
            .map(|end| {
                let tokens = end.tokens.saturating_sub(all_decode.tokens);
                (tokens, end.at.saturating_duration_since(all_decode.at))
            })
            .filter(|(tokens, time)| *tokens > 0 && !time.is_zero());
        Some(Timing {
            prefill: all_decode.at.saturating_duration_since(start),
            first_tokens: std::mem::take(&mut round.first_tokens),
            decode,
            whole: last_end.at.saturating_duration_since(start),
            preempted: round.preempted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Clock {
    fn step(&self, report: &StepReport) {
        let now = Instant::now();
        let mut round = self.lock();
        round.preempted += report.preempted;
        let mark = Mark {
            at: now,
            tokens: round.tokens,
        };
        if round.expected == 0 {
            return;
        }
        if round.first_tokens.len() == round.expected {
            round.all_decode.get_or_insert(mark);
        }
        if round.ended > 0 {
            round.first_end.get_or_insert(mark);
        }
        if round.ended == round.expected {
            round.last_end.get_or_insert(mark);
            self.over.notify_all();
        }
    }

    fn first_token(&self, after: Duration) {
        let mut round = self.lock();
        round.first_tokens.push(after);
        round.tokens += 1;
    }

    fn next_token(&self, _: Duration) {
        self.lock().tokens += 1;
    }

    fn finished(&self, _: &Stats, _: &'static str) {
        self.lock().ended += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: StepReport = StepReport {
        running: 0,
        waiting: 0,
        used_blocks: 0,
        tokens: 0,
        preempted: 0,
        cached_blocks: 0,
        prefix_queries: 0,
        prefix_hits: 0,
    };

    /// Each step is a list of what its requests do: first token, next token, end.
    fn round(requests: usize, steps: &[&str]) -> Timing {
        let clock = Clock::default();
        clock.expect(requests);
        let start = Instant::now();
        for step in steps {
            for event in step.chars() {
                match event {
                    'f' => clock.first_token(Duration::from_millis(1)),
                    'n' => clock.next_token(Duration::from_millis(1)),
                    _ => clock.finished(&Stats::default(), "length"),
                }
            }
            clock.step(&STEP);
        }
        clock.finish(start).unwrap()
    }

    #[test]
    fn only_steps_that_decode_the_whole_batch_are_decode() {
        // The first request decodes while the second's prompt runs, and ends before it.
        let timing = round(2, &["f", "n", "nf", "nn", "nne", "n", "ne"]);
        assert_eq!(timing.decode.unwrap().0, 4);
        assert_eq!(timing.first_tokens.len(), 2);
    }

    #[test]
    fn answers_of_one_token_have_no_decode() {
        assert_eq!(round(1, &["fe"]).decode, None);
        assert_eq!(round(2, &["fe", "fe"]).decode, None);
    }
}
