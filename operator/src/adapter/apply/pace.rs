//! When workers are asked again: pure, but for the time, which comes in.

use std::time::Duration;

use tokio::time::Instant;

use super::super::workers::Asking;

/// For how long what is unsettled is asked for at the full pace.
const PATIENT: Duration = Duration::from_secs(30);

/// When to ask a Model's workers.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Since when it is as it is.
    changed: Instant,
    next: Instant,
    last: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            changed: now,
            next: now,
            last: None,
        }
    }

    /// The list, or the workers, are others.
    pub(super) fn change(&mut self, now: Instant, asking: &Asking) {
        self.changed = now;
        let earliest = self.last.map_or(now, |last| last + asking.at_first);
        self.next = self.next.min(earliest.max(now));
    }

    /// They were asked; `spread`, from 0 to 1, keeps Models apart.
    pub(super) fn asked(&mut self, now: Instant, is_settled: bool, spread: f64, asking: &Asking) {
        self.last = Some(now);
        let age = now.duration_since(self.changed);
        let pause = if is_settled {
            asking.settled.mul_f64(0.8 + 0.4 * spread)
        } else if age < asking.first {
            asking.at_first
        } else {
            // What does not settle is asked for less and less often.
            let slower = asking
                .unsettled
                .mul_f64(age.as_secs_f64() / PATIENT.as_secs_f64());
            slower.max(asking.unsettled).min(asking.settled)
        };
        self.next = now + pause;
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_asked_often_at_first_then_less_and_rarely_once_all_is_settled() {
        let asking = Asking::default();
        let begun = Instant::now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let pause = |after: f64, is_settled: bool| {
            let mut pace = Pace::new(begun);
            pace.asked(at(after), is_settled, 0.5, &asking);
            pace.next().duration_since(at(after)).as_millis()
        };
        assert_eq!(pause(0.0, false), 100);
        assert_eq!(pause(1.9, false), 100);
        assert_eq!(pause(2.1, false), 1000);
        assert_eq!(pause(29.0, false), 1000);
        assert_eq!(pause(300.0, false), 10_000);
        assert_eq!(pause(9000.0, false), 30_000);
        assert_eq!(pause(0.0, true), 30_000);
    }

    #[test]
    fn a_change_is_asked_for_at_once_and_many_changes_not_more_often_than_at_first() {
        let asking = Asking::default();
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        pace.asked(begun, true, 0.0, &asking);
        pace.change(begun + Duration::from_millis(10), &asking);
        assert_eq!(pace.next(), begun + Duration::from_millis(100));
        let later = begun + Duration::from_secs(5);
        pace.change(later, &asking);
        assert_eq!(pace.next(), begun + Duration::from_millis(100));
        pace.asked(later, true, 0.0, &asking);
        pace.change(later + Duration::from_secs(1), &asking);
        assert_eq!(pace.next(), later + Duration::from_secs(1));
    }
}
