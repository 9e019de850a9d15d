use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::apply::Help;

/// Longest pause after failed requests.
pub(super) const LAST_PAUSE: Duration = Duration::from_mins(5);

/// How often in a row reconciliations failed, by UID of the object. It is not needed to converge.
#[derive(Default)]
pub(super) struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// How long to wait after another failure.
    pub(super) fn failed(&self, uid: &str, help: Help) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.entry(uid.to_owned()).or_default();
        *failures = failures.saturating_add(1);
        pause(*failures, help)
    }

    /// The next failure is a first one.
    pub(super) fn succeeded(&self, uid: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(uid);
    }

    /// Forgets objects that `keep` does not name.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|uid, _| keep(uid));
    }
}

/// The pause after so many failures in a row, of which there was one.
fn pause(failures: u32, help: Help) -> Duration {
    let first = match help {
        Help::Edit => Duration::from_secs(10),
        Help::Retry => Duration::from_secs(1),
    };
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(9))
        .min(LAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_last_and_begin_anew_after_a_success() {
        let backoff = Backoff::default();
        let pauses: Vec<u64> = (0..11)
            .map(|_| backoff.failed("u", Help::Retry).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff.failed("v", Help::Edit).as_secs(), 10);
        backoff.succeeded("u");
        assert_eq!(backoff.failed("u", Help::Retry).as_secs(), 1);
    }
}
