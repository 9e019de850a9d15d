//! Who shares a fetch, who waits, and what outlives whom.

use std::sync::atomic::AtomicUsize;

use hyprstream_contract::volume::VolumeMode;

use super::{super::fake::WithoutObjects, *};

/// Fetches when told to, and counts.
struct Fake {
    fetches: AtomicUsize,
    go: std::sync::Mutex<std::sync::mpsc::Receiver<Result<(), FetchError>>>,
}

impl WithoutObjects for Fake {
    fn open(&self, _: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
        Ok(None)
    }

    fn bring(&self, _: &VolumeAttributes, progress: &Progress) -> Result<(), FetchError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        progress.bytes_total.store(2 << 20, Ordering::Relaxed);
        progress.bytes_done.store(1 << 20, Ordering::Relaxed);
        self.go.lock().unwrap().recv().unwrap()
    }

    fn build(&self, _: &CheckoutKey, _: &VolumeAttributes) -> Result<Checkout, FetchError> {
        Ok(Checkout {
            path: "/c".into(),
            files: vec![],
        })
    }
}

struct Setup {
    checkouts: Arc<Checkouts>,
    fake: Arc<Fake>,
    go: std::sync::mpsc::Sender<Result<(), FetchError>>,
    key: CheckoutKey,
    volume: VolumeAttributes,
}

fn setup() -> Setup {
    setup_abandoning_after(ABANDONED_AFTER)
}

fn setup_abandoning_after(time: Duration) -> Setup {
    let (go, receiver) = std::sync::mpsc::channel();
    let fake = Arc::new(Fake {
        fetches: AtomicUsize::new(0),
        go: std::sync::Mutex::new(receiver),
    });
    let volume = VolumeAttributes {
        repository: "mirror/1".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
        source: "s".into(),
        reference: None,
        include: vec![],
        mode: VolumeMode::ReadOnly,
    };
    let checkouts =
        Checkouts::abandoning_after(time, fake.clone(), Layout::new("/nowhere").unwrap());
    Setup {
        checkouts,
        fake,
        go,
        key: CheckoutKey::of(&volume).unwrap(),
        volume,
    }
}

const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn twenty_callers_share_one_fetch() {
    let s = setup();
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (checkouts, key, volume) = (s.checkouts.clone(), s.key.clone(), s.volume.clone());
            tokio::spawn(async move {
                checkouts
                    .ensure(&key, &volume, &Access::default(), LONG)
                    .await
            })
        })
        .collect();
    s.go.send(Ok(())).unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().path.to_str(), Some("/c"));
    }
    assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_fetch_outlives_the_patience_of_its_caller() {
    let s = setup();
    let mut text = String::new();
    while !text.contains("fetched 1.0 MiB of 2.0 MiB") {
        let error = s
            .checkouts
            .ensure(
                &s.key,
                &s.volume,
                &Access::default(),
                Duration::from_millis(5),
            )
            .await;
        text = error.unwrap_err().to_string();
    }
    s.go.send(Ok(())).unwrap();
    s.checkouts
        .ensure(&s.key, &s.volume, &Access::default(), LONG)
        .await
        .unwrap();
    assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_reaches_its_callers_and_the_next_one_tries_again() {
    let s = setup();
    s.go.send(Err(FetchError::Refused { why: "x".into() }))
        .unwrap();
    let error = s
        .checkouts
        .ensure(&s.key, &s.volume, &Access::default(), LONG)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Fetch(_)));
    s.go.send(Ok(())).unwrap();
    s.checkouts
        .ensure(&s.key, &s.volume, &Access::default(), LONG)
        .await
        .unwrap();
    assert_eq!(s.fake.fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_fetch_that_nobody_asks_for_ends() {
    let s = setup_abandoning_after(Duration::from_millis(100));
    let (progress, mut outcome) = s.checkouts.join(&s.key, &s.volume, &Access::default());
    while !progress.cancelled.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    s.go.send(Err(FetchError::Cancelled)).unwrap();
    let outcome = outcome.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(*outcome.unwrap().unwrap_err(), FetchError::Cancelled);
    s.go.send(Ok(())).unwrap();
    s.checkouts
        .ensure(&s.key, &s.volume, &Access::default(), LONG)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_leased_checkout_is_not_removed() {
    let s = setup();
    let remove = || {
        s.checkouts
            .remove_unused(&s.key, || Ok::<_, ()>(()))
            .unwrap()
            .is_some()
    };
    let (first, second) = (s.checkouts.lease(&s.key), s.checkouts.lease(&s.key));
    drop(first);
    assert!(!remove());
    drop(second);
    assert!(remove());
}
