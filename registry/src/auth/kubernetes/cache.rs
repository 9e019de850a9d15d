//! Answers that are asked for once and kept for a while.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Most answers that are kept. A cluster's users and jobs are fewer.
const MOST: usize = 4096;

pub(super) type Key = [u8; 32];

/// An answer, and how long it holds.
#[derive(Clone)]
pub(super) struct Answer<V> {
    pub(super) value: V,
    /// For this long nobody asks again.
    pub(super) fresh: Duration,
    /// For this long it holds while nobody can be asked.
    pub(super) usable: Duration,
}

/// Answers by a digest of the question.
pub(super) struct Cache<V> {
    answers: Mutex<HashMap<Key, (Instant, Answer<V>)>>,
    /// Questions that are under way, so that many requests of one client ask once.
    asking: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self {
            answers: Mutex::default(),
            asking: Mutex::default(),
        }
    }
}

impl<V: Clone> Cache<V> {
    /// The kept answer while it is fresh, else what `ask` says. If that fails, the kept answer for
    /// as long as it is usable.
    pub(super) async fn get<E>(
        &self,
        key: Key,
        ask: impl AsyncFnOnce() -> Result<Answer<V>, E>,
    ) -> Result<V, E> {
        if let Some(value) = self.kept(&key, |answer| answer.fresh) {
            return Ok(value);
        }
        let turn = {
            let mut asking = self.asking.lock();
            // Those that nobody holds or waits for.
            asking.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(asking.entry(key).or_default())
        };
        let _turn = turn.lock().await;
        if let Some(value) = self.kept(&key, |answer| answer.fresh) {
            return Ok(value);
        }
        match ask().await {
            Ok(answer) => {
                let value = answer.value.clone();
                self.keep(key, answer);
                Ok(value)
            }
            Err(error) => self.kept(&key, |answer| answer.usable).ok_or(error),
        }
    }

    fn kept(&self, key: &Key, holds: impl FnOnce(&Answer<V>) -> Duration) -> Option<V> {
        let answers = self.answers.lock();
        let (at, answer) = answers.get(key)?;
        (at.elapsed() < holds(answer)).then(|| answer.value.clone())
    }

    fn keep(&self, key: Key, answer: Answer<V>) {
        let mut answers = self.answers.lock();
        if answers.len() >= MOST {
            answers.retain(|_, (at, answer)| at.elapsed() < answer.fresh);
        }
        if answers.len() >= MOST {
            // Somebody makes up questions: then every answer is asked for anew.
            answers.clear();
        }
        answers.insert(key, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    fn answer(value: u32, fresh: Duration, usable: Duration) -> Answer<u32> {
        Answer {
            value,
            fresh,
            usable,
        }
    }

    #[tokio::test]
    async fn a_fresh_answer_is_not_asked_for_again() {
        let cache = Cache::default();
        let first = cache
            .get([1; 32], async || Ok::<_, ()>(answer(1, LONG, LONG)))
            .await;
        let second = cache
            .get([1; 32], async || Ok::<_, ()>(answer(2, LONG, LONG)))
            .await;
        let other = cache
            .get([2; 32], async || Ok::<_, ()>(answer(3, LONG, LONG)))
            .await;
        assert_eq!((first, second, other), (Ok(1), Ok(1), Ok(3)));
    }

    #[tokio::test]
    async fn an_old_answer_is_used_only_when_nobody_can_be_asked() {
        let cache = Cache::default();
        for (usable, after_a_failure) in [(LONG, Ok(1)), (Duration::ZERO, Err(()))] {
            let asked = async || Ok::<_, ()>(answer(1, Duration::ZERO, usable));
            assert_eq!(cache.get([1; 32], asked).await, Ok(1));
            assert_eq!(cache.get([1; 32], async || Err(())).await, after_a_failure);
        }
    }

    #[tokio::test]
    async fn made_up_questions_do_not_fill_the_memory() {
        let cache = Cache::default();
        for number in 0..2 * MOST as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            let asked = async || Ok::<_, ()>(answer(1, LONG, LONG));
            cache.get(key, asked).await.unwrap();
        }
        assert!(cache.answers.lock().len() <= MOST);
        assert!(cache.asking.lock().len() <= 1);
    }
}
