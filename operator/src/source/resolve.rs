//! One question to the registry for all objects that follow the same reference.
//!
//! Of a hundred Adapters out of one repository each has a task of its own, and without this each
//! of them would have the upstream asked the same, at every interval and all at once after a start.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hyprstream_contract::{CommitId, registry::ResolveRequest};
use hyprstream_slots::Slots;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::registry::{Registry, RegistryError};

/// What a reference names. All who asked have the same error.
pub(super) type Answer = Result<CommitId, Arc<RegistryError>>;

/// The longest that an answer is good for somebody else.
const LONGEST_LEEWAY: Duration = Duration::from_secs(30);

/// How old an answer may be for whoever asks every `interval`.
pub(super) fn leeway(interval: Duration) -> Duration {
    (interval / 10).min(LONGEST_LEEWAY)
}

/// Asks, and keeps what is asked and was answered lately.
pub(super) struct Resolver {
    registry: Registry,
    slots: Arc<Slots>,
    known: Mutex<HashMap<Key, Known>>,
}

/// The SHA-256 of a request: upstream, namespace, credentials and reference. Credentials are not
/// kept themselves.
type Key = [u8; 32];

enum Known {
    /// It ends when nobody waits for it any more.
    Asking(Begun, WeakShared<BoxFuture<'static, Answer>>),
    Answered(Instant, Answer),
}

/// When a question went out; empty as long as it waits for a slot.
type Begun = Arc<OnceLock<Instant>>;

impl Resolver {
    /// `slots` are the places for questions, of which each namespace has its share.
    pub(super) fn new(registry: Registry, slots: Arc<Slots>) -> Self {
        Self {
            registry,
            slots,
            known: Mutex::default(),
        }
    }

    /// The commit that a reference names, by an answer whose question went out at `since` or later,
    /// whoever asked. Who is too late for one that is under way waits for it and asks again together
    /// with all others who were, so that a burst makes two questions and nobody hears what was true
    /// before `since`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub(super) async fn resolve(&self, request: &ResolveRequest, since: Instant) -> Answer {
        let key: Key = Sha256::digest(serde_json::to_vec(request).expect("it is JSON")).into();
        loop {
            let (begun, question) = {
                let mut known = self.known();
                let under_way = match known.get(&key) {
                    Some(Known::Answered(begun, answer)) if *begun >= since => {
                        return answer.clone();
                    }
                    Some(Known::Asking(begun, question)) => {
                        let question = question.upgrade();
                        question.map(|question| (begun.clone(), question))
                    }
                    _ => None,
                };
                under_way.unwrap_or_else(|| self.ask(&mut known, key, request))
            };
            let answer = question.await;
            let at = begun.get().copied().unwrap_or(since);
            let mut known = self.known();
            let under_way = known.get(&key);
            if matches!(under_way, Some(Known::Asking(b, _)) if Arc::ptr_eq(b, &begun)) {
                known.insert(key, Known::Answered(at, answer.clone()));
            }
            if at >= since {
                return answer;
            }
        }
    }

    fn ask(
        &self,
        known: &mut HashMap<Key, Known>,
        key: Key,
        request: &ResolveRequest,
    ) -> (Begun, Shared<BoxFuture<'static, Answer>>) {
        known.retain(|_, known| match known {
            Known::Asking(_, question) => question.upgrade().is_some(),
            Known::Answered(at, _) => at.elapsed() <= LONGEST_LEEWAY,
        });
        let begun = Begun::default();
        let (slots, registry) = (self.slots.clone(), self.registry.clone());
        let (request, begins) = (request.clone(), begun.clone());
        let question = async move {
            let owners = hyprstream_slots::owner(&request.upstream.namespace);
            let _slot = slots.acquire(&owners, false).await;
            begins.get_or_init(Instant::now);
            let answer = registry.resolve(&request).await;
            answer.map(|answer| answer.commit).map_err(Arc::new)
        };
        let question = question.boxed().shared();
        if let Some(weak) = question.downgrade() {
            known.insert(key, Known::Asking(begun.clone(), weak));
        }
        (begun, question)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Json, Router, routing::post};
    use futures::future::join_all;
    use hyprstream_contract::registry::{RESOLVE_PATH, Reference, ResolveResponse, Upstream};
    use tokio::sync::Semaphore;

    use super::*;

    /// A registry whose n-th answer is the commit that ends with n, each as soon as it may.
    struct Rig {
        resolver: Arc<Resolver>,
        asked: Arc<AtomicUsize>,
        may: Arc<Semaphore>,
        _token: tempfile::NamedTempFile,
    }

    impl Rig {
        async fn new() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (asked, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
            let (count, gate) = (asked.clone(), may.clone());
            let answer = move || {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    let commit = commit(number);
                    Json(ResolveResponse { commit })
                }
            };
            let app = Router::new().route(RESOLVE_PATH, post(answer));
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
            let token = tempfile::NamedTempFile::new().unwrap();
            let registry = Registry::new(
                url.parse().unwrap(),
                token.path().to_owned(),
                &hyprstream_tls::Trust::nobody(),
            )
            .unwrap();
            Self {
                resolver: Arc::new(Resolver::new(registry, Arc::new(Slots::new(4)))),
                asked,
                may,
                _token: token,
            }
        }

        /// Asks as one object would.
        async fn ask(&self, branch: &str, since: Instant) -> CommitId {
            let request = ResolveRequest {
                upstream: Upstream {
                    url: "https://example.org/m".into(),
                    namespace: "ns".into(),
                    credentials: None,
                },
                reference: Reference::Branch(branch.into()),
            };
            self.resolver.resolve(&request, since).await.unwrap()
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        async fn until_asked(&self, count: usize) {
            while self.asked() < count {
                tokio::task::yield_now().await;
            }
        }
    }

    fn commit(number: usize) -> CommitId {
        format!("{number:040x}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_hundred_who_ask_the_same_share_one_question() {
        let rig = Rig::new().await;
        rig.may.add_permits(9);
        let since = Instant::now();
        let answers = join_all((0..100).map(|_| rig.ask("b", since))).await;
        assert!(answers.iter().all(|answer| *answer == commit(1)));
        // Later too, as long as the answer is new enough for them.
        assert_eq!(rig.ask("b", since).await, commit(1));
        assert_eq!(rig.asked(), 1);
        assert_eq!(rig.ask("other", since).await, commit(2));
        assert_eq!(rig.ask("b", Instant::now()).await, commit(3));
    }

    #[tokio::test]
    async fn who_comes_while_a_question_is_under_way_hears_what_was_asked_after_them() {
        let rig = Rig::new().await;
        let first = rig.ask("b", Instant::now());
        let late = async {
            rig.until_asked(1).await;
            let since = Instant::now();
            let all = join_all((0..50).map(|_| rig.ask("b", since)));
            let (all, ()) = tokio::join!(all, async { rig.may.add_permits(9) });
            all
        };
        let (first, late) = tokio::join!(first, late);
        assert_eq!(first, commit(1));
        assert!(late.iter().all(|answer| *answer == commit(2)), "{late:?}");
        assert_eq!(rig.asked(), 2);
    }

    #[tokio::test]
    async fn who_gives_up_neither_ends_a_question_of_others_nor_leaves_one_without_any() {
        let rig = Rig::new().await;
        let since = Instant::now();
        let mut gives_up = Box::pin(rig.ask("b", since));
        tokio::select! {
            _ = &mut gives_up => panic!("nobody answers yet"),
            () = rig.until_asked(1) => {}
        }
        let stays = rig.ask("b", since);
        tokio::pin!(stays);
        assert!(futures::poll!(&mut stays).is_pending());
        drop(gives_up);
        rig.may.add_permits(1);
        assert_eq!(stays.await, commit(1));
        // One that nobody waits for is not waited for by the next.
        let mut gives_up = Box::pin(rig.ask("c", since));
        tokio::select! {
            _ = &mut gives_up => panic!("nobody answers yet"),
            () = rig.until_asked(2) => {}
        }
        drop(gives_up);
        rig.may.add_permits(2);
        assert_eq!(rig.ask("c", since).await, commit(3));
    }

    #[test]
    fn answers_are_older_the_less_often_one_asks() {
        assert_eq!(leeway(Duration::from_secs(1)), Duration::from_millis(100));
        assert_eq!(leeway(Duration::from_mins(1)), Duration::from_secs(6));
        assert_eq!(leeway(Duration::from_hours(1)), LONGEST_LEEWAY);
    }
}
